//! The tasks that read and write links.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use umbel_client::swarm::exchange::{chain, multiaddrs};
use umbel_coordinator::server::{LinkId, STEPS_QUEUED_PER_SESSION_MAX};
use umbel_engine::Device;
use umbel_net::{AcceptError, Link, LinkProtocol, LinkReceiver, LinkSender, Network};
use umbel_protocol::compression::{PACKED_BYTES_MIN, Packing};
use umbel_protocol::frame::Frame;
use umbel_protocol::inference::{ClientMessage, NextHop, PushMessage, ServerMessage, Step};
use umbel_protocol::{PeerId, SessionId};

use super::Event;

/// Events that wait for the driver. When they are this many, readers wait, and with them their
/// peers: that is the back-pressure on everybody.
pub(crate) const EVENTS_WAITING_MAX: usize = 256;

/// Frames that wait for one link: as many as the steps of a session that may wait, and the
/// messages around them.
pub(super) const FRAMES_WAITING_MAX: usize = 2 * STEPS_QUEUED_PER_SESSION_MAX;

/// Links of clients, and of servers that push, that are open at once: a few for every session.
const LINKS_MAX: usize = 1024;

/// Whose a link is, and what computes the hidden states that come over it.
type Sender = (PeerId, Option<Device>);

/// Accepts links of clients and of servers until it is dropped.
pub(super) fn accept(
    network: &Network,
    tell: &mpsc::Sender<Event>,
    device: Option<&Device>,
) -> Result<JoinSet<()>, AcceptError> {
    let device = device.cloned();
    let to_rouse = device.clone();
    let mut acceptors = JoinSet::new();
    let mut clients = network.accept(LinkProtocol::Session)?;
    let to_driver = tell.clone();
    acceptors.spawn(async move {
        let mut links = JoinSet::new();
        let ids = AtomicU64::new(0);
        while let Some((peer, link)) = clients.next().await {
            while links.try_join_next().is_some() {}
            if links.len() >= LINKS_MAX {
                tracing::warn!(%peer, "refused a link: {LINKS_MAX} are open");
                continue;
            }
            let id = LinkId(ids.fetch_add(1, Ordering::Relaxed));
            links.spawn(serve_client(id, (peer, device.clone()), link, to_driver.clone()));
        }
    });
    let mut servers = network.accept(LinkProtocol::Push)?;
    let to_driver = tell.clone();
    acceptors.spawn(async move {
        let mut links = JoinSet::new();
        while let Some((peer, link)) = servers.next().await {
            while links.try_join_next().is_some() {}
            if links.len() >= LINKS_MAX {
                tracing::warn!(%peer, "refused a link: {LINKS_MAX} are open");
                continue;
            }
            links.spawn(receive_pushes((peer, to_rouse.clone()), link, to_driver.clone()));
        }
    });
    Ok(acceptors)
}

/// A link to the next hop of a session.
pub(super) struct Way {
    /// Whose.
    pub(super) session: SessionId,
    /// Which of all that there have been.
    pub(super) number: u64,
    /// To whom.
    pub(super) next: NextHop,
    /// How large steps are written.
    pub(super) packing: Packing,
}

/// Opens a link to the next hop of a session; what is sent to the result goes over it. It closes
/// when the sender is dropped or the task is aborted.
pub(super) fn push(
    network: &Network,
    way: Way,
    tell: mpsc::Sender<Event>,
) -> (mpsc::Sender<Step>, AbortHandle) {
    let Way { session, number, next, packing } = way;
    let (send, mut steps) = mpsc::channel::<Step>(FRAMES_WAITING_MAX);
    let network = network.clone();
    let task = tokio::spawn(async move {
        let addresses = multiaddrs(&next.addresses);
        let outcome = async {
            let link = network
                .open_link(next.peer, &addresses, LinkProtocol::Push)
                .await
                .map_err(|error| chain(&error))?;
            let (mut sender, mut receiver) = link.split();
            // A task of its own, so that it is looked at when something comes and not with every step.
            let mut ended = JoinSet::new();
            ended.spawn(async move { receiver.receive().await.map(drop) });
            loop {
                tokio::select! {
                    step = steps.recv() => match step {
                        Some(step) => {
                            let frame = encode(PushMessage::Step(step), packing).await;
                            sender.send(frame).await.map_err(|error| chain(&error))?;
                        }
                        None => return Ok(()),
                    },
                    // Nothing is said on it in this direction, so anything is its end.
                    _ = ended.join_next() => return Err("it closed the link".to_owned()),
                }
            }
        };
        let outcome: Result<(), String> = outcome.await;
        if let Err(reason) = outcome {
            let detail = format!("cannot push to {}: {reason}", next.peer);
            let (to, link) = (next.session, number);
            let _ended = tell.send(Event::PushFailed { session, to, link, detail }).await;
        }
    });
    (send, task.abort_handle())
}

async fn serve_client(id: LinkId, from: Sender, link: Link, tell: mpsc::Sender<Event>) {
    let (sender, receiver) = link.split();
    let (answers, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
    let (close, mut closed) = watch::channel(false);
    if tell.send(Event::Accepted { link: id, answers, close }).await.is_err() {
        return;
    }
    tokio::select! {
        () = read_client(id, from, receiver, &tell) => {}
        () = write(sender, waiting) => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
    let _ended = tell.send(Event::LinkClosed { link: id }).await;
}

async fn read_client(
    id: LinkId,
    (peer, device): Sender,
    mut receiver: LinkReceiver,
    tell: &mpsc::Sender<Event>,
) {
    while let Some(frame) = receive(peer, device.as_ref(), &mut receiver).await {
        match ClientMessage::decode(frame) {
            Ok(message) => {
                let event = Event::Received { link: id, from: peer, message };
                if tell.send(event).await.is_err() {
                    return;
                }
            }
            Err(violation) => {
                tracing::warn!(%peer, %violation, "closing a client's link");
                return;
            }
        }
    }
}

async fn receive_pushes((peer, device): Sender, link: Link, tell: mpsc::Sender<Event>) {
    let (_sender, mut receiver) = link.split();
    let (close, mut closed) = watch::channel(false);
    let read = async {
        while let Some(frame) = receive(peer, device.as_ref(), &mut receiver).await {
            match PushMessage::decode(frame) {
                Ok(PushMessage::Step(step)) => {
                    let event = Event::Pushed { from: peer, step, close: close.clone() };
                    if tell.send(event).await.is_err() {
                        return;
                    }
                }
                Err(violation) => {
                    tracing::warn!(%peer, %violation, "closing a server's link");
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = read => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

async fn receive(
    peer: PeerId,
    device: Option<&Device>,
    receiver: &mut LinkReceiver,
) -> Option<Frame> {
    match receiver.receive().await {
        Ok(frame) => {
            // Hidden states: until it is known whose they are, its threads can wake.
            if let (Some(Frame { payload, .. }), Some(device)) = (&frame, device)
                && !payload.is_empty()
            {
                device.rouse();
            }
            frame
        }
        Err(error) => {
            tracing::debug!(%peer, error = chain(&error), "a link ended");
            None
        }
    }
}

/// The frame of a push; packing a large one takes milliseconds and is done apart.
async fn encode(message: PushMessage, packing: Packing) -> Frame {
    let PushMessage::Step(step) = &message;
    if packing == Packing::Plain || step.hidden.payload().len() < PACKED_BYTES_MIN {
        return message.encode();
    }
    let packed = tokio::task::spawn_blocking(move || message.encode_as(packing));
    packed.await.expect("packing does not panic")
}

/// Sends answers in their order, but for what says that the server is there: a client that does not hear
/// it takes the server for dead, whatever waits for its turn.
async fn write(mut sender: LinkSender, mut answers: mpsc::Receiver<ServerMessage>) {
    let mut waiting = VecDeque::new();
    loop {
        let next = match waiting.pop_front() {
            Some(answer) => Some(answer),
            None => answers.recv().await,
        };
        let Some(answer) = next else { return };
        let frame = answer.encode();
        loop {
            let first = tokio::select! {
                biased;
                () = sender.turn_of(&frame) => break,
                Some(answer) = answers.recv(), if waiting.len() < FRAMES_WAITING_MAX => answer,
            };
            if !matches!(first, ServerMessage::Pong { .. }) {
                waiting.push_back(first);
            } else if !send(&mut sender, first.encode()).await {
                return;
            }
        }
        if !send(&mut sender, frame).await {
            return;
        }
    }
}

/// Whether a frame was sent.
async fn send(sender: &mut LinkSender, frame: Frame) -> bool {
    match sender.send(frame).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(error = chain(&error), "a link ended");
            false
        }
    }
}
