//! The link to one server: messages, and answers to them in their order.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use umbel_coordinator::session::FailureReason;
use umbel_coordinator::training::MESSAGES_UNANSWERED_MAX;
use umbel_net::{LinkReceiver, LinkSender, SendError};
use umbel_protocol::error::in_one_line;
use umbel_protocol::training::{TrainerMessage, TrainingAnswer};
use umbel_protocol::{PeerId, ProtocolViolation};

use super::Fault;
use crate::swarm::Swarm;
use crate::train::TrainError;

/// How often a server that has not answered is looked after: its system says at once if its process has
/// ended.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// How long a server may take for one answer. Others may train there too, and the machine may be slow;
/// one that is gone is noticed by its link.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Messages under way: a server closes the link of who has more without an answer.
pub(crate) const PIPELINED: usize = MESSAGES_UNANSWERED_MAX;

/// A link on which there is a session.
pub(crate) struct HopLink {
    pub(super) peer: PeerId,
    pub(super) sender: LinkSender,
    pub(super) receiver: LinkReceiver,
    /// Counts the answers of all servers.
    pub(super) answers: watch::Sender<u64>,
}

impl HopLink {
    pub(super) async fn ask(
        &mut self,
        swarm: &Swarm,
        message: TrainerMessage,
    ) -> Result<TrainingAnswer, Fault> {
        send(&mut self.sender, message).await?;
        answer(self.peer, &mut self.receiver, &self.answers, swarm).await
    }

    /// Asks several things, some of which are under way at once.
    pub(super) async fn ask_all(
        &mut self,
        swarm: &Swarm,
        messages: Vec<TrainerMessage>,
    ) -> Result<Vec<TrainingAnswer>, Fault> {
        let count = messages.len();
        let mut answers = Vec::with_capacity(count);
        for (sent, message) in messages.into_iter().enumerate() {
            if sent - answers.len() >= PIPELINED {
                answers.push(answer(self.peer, &mut self.receiver, &self.answers, swarm).await?);
            }
            send(&mut self.sender, message).await?;
        }
        while answers.len() < count {
            answers.push(answer(self.peer, &mut self.receiver, &self.answers, swarm).await?);
        }
        Ok(answers)
    }

    /// Sends what comes and hands on the answers, both at once, until nothing more comes and all was
    /// answered. No more than [`PIPELINED`] messages may be without an answer.
    pub(crate) async fn carry<E: Send>(
        &mut self,
        swarm: &Swarm,
        mut messages: mpsc::Receiver<TrainerMessage>,
        (tell, event): (&mpsc::Sender<E>, impl Fn(TrainingAnswer) -> E + Send),
    ) -> Result<(), Fault> {
        let Self { peer, sender, receiver, answers } = self;
        let (sent, mut awaited) = mpsc::channel(PIPELINED);
        let sending = async move {
            while let Some(message) = messages.recv().await {
                send(sender, message).await?;
                if sent.send(()).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let receiving = async move {
            while awaited.recv().await.is_some() {
                let answer = answer(*peer, receiver, answers, swarm).await?;
                // Nobody listens any more where the pass is over.
                let _over = tell.send(event(answer)).await;
            }
            Ok(())
        };
        futures::future::try_join(sending, receiving).await.map(|_| ())
    }
}

async fn send(sender: &mut LinkSender, message: TrainerMessage) -> Result<(), Fault> {
    match tokio::time::timeout(ANSWER_TIMEOUT, sender.send(message.encode())).await {
        Ok(Ok(())) => Ok(()),
        // No other server would be sent it.
        Ok(Err(SendError::Frame(error))) => Err(TrainError::Message(error).into()),
        Ok(Err(error @ (SendError::Closed | SendError::Io(_)))) => Err(lost(in_one_line(&error))),
        Err(_) => Err(Fault::Hop(FailureReason::Silent { after: ANSWER_TIMEOUT })),
    }
}

async fn answer(
    peer: PeerId,
    receiver: &mut LinkReceiver,
    answers: &watch::Sender<u64>,
    swarm: &Swarm,
) -> Result<TrainingAnswer, Fault> {
    let watch = async {
        loop {
            tokio::time::sleep(PROBE_INTERVAL).await;
            swarm.probe(peer);
        }
    };
    let frame = tokio::select! {
        frame = tokio::time::timeout(ANSWER_TIMEOUT, receiver.receive()) => frame,
        () = watch => unreachable!("a loop without end"),
    };
    let silent = |_| Fault::Hop(FailureReason::Silent { after: ANSWER_TIMEOUT });
    let frame = frame.map_err(silent)?.map_err(|error| lost(in_one_line(&error)))?;
    let frame = frame.ok_or_else(|| lost("the link closed".to_owned()))?;
    match TrainingAnswer::decode(frame) {
        Ok(TrainingAnswer::Error { code, detail }) => {
            Err(Fault::Hop(FailureReason::Refused { code, detail }))
        }
        Ok(answer) => {
            answers.send_modify(|answers| *answers += 1);
            Ok(answer)
        }
        Err(violation) => Err(Fault::Hop(FailureReason::Violation(violation))),
    }
}

pub(super) fn lost(detail: String) -> Fault {
    Fault::Hop(FailureReason::LinkLost { detail })
}

pub(crate) fn unexpected(message: &'static str) -> Fault {
    Fault::Hop(FailureReason::Violation(ProtocolViolation::Unexpected { message }))
}
