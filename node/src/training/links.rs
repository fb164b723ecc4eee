//! The tasks that read and write the links of trainers.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use umbel_coordinator::server::LinkId;
use umbel_coordinator::training::{
    MESSAGES_UNANSWERED_MAX, SESSIONS_MAX, SESSIONS_PER_TRAINER_MAX,
};
use umbel_net::{AcceptError, Link, LinkProtocol, LinkReceiver, LinkSender, Network};
use umbel_protocol::PeerId;
use umbel_protocol::error::in_one_line;
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};

use super::Event;
use crate::links::{self, Room};

/// Answers that wait for one link: to messages, that the session is open, and what is said at the end.
const ANSWERS_WAITING_MAX: usize = MESSAGES_UNANSWERED_MAX + 2;

/// How long a trainer may take to read one answer. The longest has 64 MiB, which take 537 s over the slowest
/// link that is allowed, 125,000 bytes a second; and a trainer waits no longer for it either.
const TAKEN_WITHIN: Duration = Duration::from_secs(600);

/// Links that are open at once: one for each session, and some that are about to end.
const LINKS_MAX: usize = 2 * SESSIONS_MAX;

/// Those of one trainer, likewise.
const LINKS_OF_TRAINER_MAX: usize = 2 * SESSIONS_PER_TRAINER_MAX;

/// A link that is open.
pub(super) struct OpenLink {
    pub(super) answers: mpsc::Sender<TrainingAnswer>,
    /// Closes it at once.
    pub(super) close: watch::Sender<bool>,
}

/// Accepts links of trainers until it is dropped.
pub(super) fn accept(
    network: &Network,
    tell: &mpsc::Sender<Event>,
) -> Result<JoinSet<()>, AcceptError> {
    let (trainers, tell) = (network.accept(LinkProtocol::Training)?, tell.clone());
    let mut ids = (0..).map(LinkId);
    let room = Room::new(LINKS_MAX, LINKS_OF_TRAINER_MAX);
    let mut acceptors = JoinSet::new();
    acceptors.spawn(room.serve_each(trainers, move |peer, link| {
        let id = ids.next().expect("nobody opens as many links");
        serve(id, peer, link, tell.clone())
    }));
    Ok(acceptors)
}

async fn serve(id: LinkId, peer: PeerId, link: Link, tell: mpsc::Sender<Event>) {
    let (sender, receiver) = link.split();
    let (answers, waiting) = mpsc::channel(ANSWERS_WAITING_MAX);
    let (close, mut closed) = watch::channel(false);
    let open = OpenLink { answers, close };
    if tell.send(Event::Accepted { link: id, open }).await.is_err() {
        return;
    }
    tokio::select! {
        () = read(id, peer, receiver, &tell) => {}
        () = write(sender, waiting, TAKEN_WITHIN) => {}
        () = async {
            // A driver that only lets go of the link has said something that is still to be sent.
            if closed.wait_for(|closed| *closed).await.is_err() {
                std::future::pending().await
            }
        } => {}
    }
    let _ended = tell.send(Event::LinkClosed { link: id }).await;
}

async fn read(id: LinkId, peer: PeerId, mut receiver: LinkReceiver, tell: &mpsc::Sender<Event>) {
    loop {
        let frame = match links::receive(&mut receiver).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%peer, error = in_one_line(&error), "a trainer's link ended");
                return;
            }
        };
        match TrainerMessage::decode(frame) {
            Ok(message) => {
                let event = Event::Received { link: id, from: peer, message };
                if tell.send(event).await.is_err() {
                    return;
                }
            }
            Err(violation) => {
                tracing::warn!(%peer, %violation, "closing a trainer's link");
                return;
            }
        }
    }
}

/// Sends what is to be said until nothing more comes, and then closes. A trainer that does not read `within`
/// that time is left: what it was to hear would stay in memory.
async fn write(
    mut sender: LinkSender,
    mut answers: mpsc::Receiver<TrainingAnswer>,
    within: Duration,
) {
    while let Some(answer) = answers.recv().await {
        if !sender.send_within(answer.encode(), within).await {
            tracing::debug!("a trainer's link ended, or it does not read");
            return;
        }
    }
    sender.close().await;
}

#[cfg(test)]
mod tests {
    use umbel_protocol::{DType, Tensor};

    use super::*;
    use crate::links::tests::linked;

    /// How long a writer may take to be gone, until the test fails.
    const ENDED_TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread")]
    async fn a_trainer_that_does_not_read_is_left() {
        let (_networks, _unread, (sender, _receiver)) = linked().await;
        // More than the connection takes before it is read.
        let bytes = vec![0; 48 << 20];
        let hidden = Tensor::new(DType::F32, vec![3 << 20, 4], bytes.into()).unwrap();
        let (answers, waiting) = mpsc::channel(ANSWERS_WAITING_MAX);
        answers.try_send(TrainingAnswer::Forwarded { microbatch: 1, hidden }).unwrap();
        let writing = write(sender, waiting, Duration::from_millis(50));
        tokio::time::timeout(ENDED_TIMEOUT, writing).await.expect("it waits for nobody for ever");
        assert!(answers.is_closed(), "and so is what was to be said");
    }
}
