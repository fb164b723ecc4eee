//! The tasks that read and write links.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use umbel_coordinator::server::{
    LinkId, SESSIONS_LEFT_TO_OTHERS, SESSIONS_MAX, STEPS_QUEUED_PER_SESSION_MAX,
};
use umbel_engine::Device;
use umbel_net::{AcceptError, Link, LinkProtocol, LinkReceiver, LinkSender, Network};
use umbel_protocol::compression::{PACKED_BYTES_MIN, Packing};
use umbel_protocol::error::in_one_line;
use umbel_protocol::frame::Frame;
use umbel_protocol::inference::{ClientMessage, NextHop, PushMessage, ServerMessage, Step};
use umbel_protocol::training::STATE_VALUES_MAX;
use umbel_protocol::{PeerId, SessionId};
use umbel_shard::ModelConfig;

use super::dials::Dials;
use super::{Event, OpenLink};
use crate::links::{self, Room};

/// Events that wait for the driver. When they are this many, readers wait, and with them their
/// peers: that is the back-pressure on everybody.
pub(crate) const EVENTS_WAITING_MAX: usize = 256;

/// Frames that wait for one link: as many as the steps of a session that may wait, and the
/// messages around them.
pub(super) const FRAMES_WAITING_MAX: usize = 2 * STEPS_QUEUED_PER_SESSION_MAX;

/// Links of clients, and as many of servers that push, that are open at once: a few for every session.
const LINKS_MAX: usize = 4 * SESSIONS_MAX;

/// Those of one peer. A client has three quarters of all sessions at most, with a link each; a server that
/// pushes has a link for each session here, all of which may come from it. A quarter more may be about to
/// end.
const LINKS_OF_PEER_MAX: usize = SESSIONS_MAX + SESSIONS_LEFT_TO_OTHERS;

/// The largest payload of a client's message or a push: a step through the whole context of the model in
/// binary32, or a part of an adapter.
pub(super) fn payload_bytes_max(model: &ModelConfig) -> u32 {
    let step = model.context_tokens.saturating_mul(model.hidden_size);
    let bytes = step.max(STATE_VALUES_MAX).saturating_mul(size_of::<f32>());
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Whose a link is, and what computes the hidden states that come over it.
type Sender = (PeerId, Option<Device>);

/// On what terms links are taken.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// What computes, where its threads sleep between passes.
    pub(super) device: Option<Device>,
    /// The largest payload that a frame has.
    pub(super) payload_bytes_max: u32,
    /// Links that are open at once, of clients and as many of servers.
    pub(super) links_max: usize,
    /// Those of one peer.
    pub(super) links_of_peer_max: usize,
}

impl Terms {
    /// Those of any model.
    pub(super) const fn new() -> Self {
        Self {
            device: None,
            payload_bytes_max: u32::MAX,
            links_max: LINKS_MAX,
            links_of_peer_max: LINKS_OF_PEER_MAX,
        }
    }
}

/// Accepts links of clients and of servers until it is dropped.
pub(super) fn accept(
    network: &Network,
    tell: &mpsc::Sender<Event>,
    terms: &Terms,
) -> Result<JoinSet<()>, AcceptError> {
    let Terms { device, payload_bytes_max, links_max, links_of_peer_max } = terms.clone();
    let to_rouse = device.clone();
    let split = move |link: Link| {
        let (sender, mut receiver) = link.split();
        receiver.limit_payload(payload_bytes_max);
        (sender, receiver)
    };
    let room = || Room::new(links_max, links_of_peer_max);
    let mut acceptors = JoinSet::new();
    let (clients, to_driver) = (network.accept(LinkProtocol::Session)?, tell.clone());
    let mut ids = (0..).map(LinkId);
    acceptors.spawn(room().serve_each(clients, move |peer, link| {
        let id = ids.next().expect("nobody opens as many links");
        serve_client(id, (peer, device.clone()), split(link), to_driver.clone())
    }));
    let (servers, to_driver) = (network.accept(LinkProtocol::Push)?, tell.clone());
    acceptors.spawn(room().serve_each(servers, move |peer, link| {
        receive_pushes((peer, to_rouse.clone()), split(link), to_driver.clone())
    }));
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
    /// The client that named it.
    pub(super) client: PeerId,
    /// Tokens that the session may have.
    pub(super) tokens_max: u32,
}

/// Steps on their way into a link to a next hop.
#[derive(Debug)]
pub(super) struct Steps {
    send: mpsc::Sender<(Step, OwnedSemaphorePermit)>,
    /// Tokens for which there is room.
    room: Arc<Semaphore>,
}

impl Steps {
    /// Lets a step wait for those before it. Whether there was room: for as many tokens as the waiting
    /// steps of a session may have. Small messages of a client have its whole journal sent, again and
    /// again if it likes; a next hop that does not read must not pile that up here.
    pub(super) fn push(&self, step: Step) -> bool {
        let room = Arc::clone(&self.room).try_acquire_many_owned(step.token_count());
        room.is_ok_and(|room| self.send.try_send((step, room)).is_ok())
    }
}

/// Opens a link to the next hop of a session; what is sent to the result goes over it. It closes
/// when the sender is dropped or the task is aborted.
pub(super) fn push(
    (network, dials): (&Network, &Dials),
    way: Way,
    tell: mpsc::Sender<Event>,
) -> (Steps, AbortHandle) {
    let Way { session, number, next, packing, client, tokens_max } = way;
    let (send, mut steps) = mpsc::channel::<(Step, OwnedSemaphorePermit)>(FRAMES_WAITING_MAX);
    let room = Arc::new(Semaphore::new(2 * tokens_max as usize));
    let (network, dials) = (network.clone(), dials.clone());
    let task = tokio::spawn(async move {
        let outcome = async {
            let link = dials.open_push(&network, client, &next).await?;
            let (mut sender, mut receiver) = link.split();
            // A task of its own, so that it is looked at when something comes and not with every step.
            let mut ended = JoinSet::new();
            ended.spawn(async move { receiver.receive().await.map(drop) });
            loop {
                tokio::select! {
                    step = steps.recv() => match step {
                        Some((step, room)) => {
                            let frame = encode(PushMessage::Step(step), packing).await;
                            sender.send(frame).await.map_err(|error| in_one_line(&error))?;
                            drop(room);
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
    (Steps { send, room }, task.abort_handle())
}

async fn serve_client(
    id: LinkId,
    from: Sender,
    (sender, receiver): (LinkSender, LinkReceiver),
    tell: mpsc::Sender<Event>,
) {
    let (answers, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
    let (close, mut closed) = watch::channel(false);
    let open = OpenLink { peer: from.0, answers, close };
    if tell.send(Event::Accepted { link: id, open }).await.is_err() {
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

async fn receive_pushes(
    (peer, device): Sender,
    (_sender, mut receiver): (LinkSender, LinkReceiver),
    tell: mpsc::Sender<Event>,
) {
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
    match links::receive(receiver).await {
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
            tracing::debug!(%peer, error = in_one_line(&error), "a link ended");
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
            tracing::debug!(error = in_one_line(&error), "a link ended");
            false
        }
    }
}
