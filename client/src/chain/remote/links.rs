//! The tasks that open, read and write the links to hops.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use umbel_coordinator::session::HopId;
use umbel_net::{LinkProtocol, LinkReceiver, LinkSender};
use umbel_protocol::PeerId;
use umbel_protocol::compression::{PACKED_BYTES_MIN, Packing};
use umbel_protocol::frame::Frame;
use umbel_protocol::inference::{ClientMessage, ServerMessage};

use super::driver::Event;
use crate::swarm::Swarm;
use crate::swarm::exchange::chain;

/// Messages that wait for one link: the replay of a context of 32,768 tokens in chunks of 512, the
/// 32 steps that are under way at most, and the messages around them.
const FRAMES_WAITING_MAX: usize = 128;

/// A link to a hop, open or about to be.
pub(super) struct HopLink {
    pub(super) peer: PeerId,
    pub(super) messages: mpsc::Sender<ClientMessage>,
    writer: JoinHandle<()>,
    reader: AbortHandle,
}

impl HopLink {
    /// Lets what waits be sent; the task ends when it is. What comes back interests nobody.
    pub(super) fn close(self) -> JoinHandle<()> {
        self.reader.abort();
        self.writer
    }
}

/// Opens a link; what is sent to it before it stands waits.
pub(super) fn open(
    swarm: Arc<Swarm>,
    hop: HopId,
    peer: PeerId,
    addresses: Vec<String>,
    tell: mpsc::Sender<Event>,
) -> HopLink {
    let (messages, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
    let (opened, receiver) = tokio::sync::oneshot::channel();
    let lost = tell.clone();
    let reading = Arc::clone(&swarm);
    let writer = tokio::spawn(async move {
        let sent = async {
            let link = swarm
                .open_link(peer, &addresses, LinkProtocol::Session)
                .await
                .map_err(|error| chain(&error))?;
            let (sender, receiver) = link.split();
            // Nobody reads a link that was given up while it was dialled.
            let _given_up = opened.send(receiver);
            write(sender, waiting).await
        };
        if let Err(detail) = sent.await {
            let _over = lost.send(Event::Lost { hop, detail }).await;
        }
    });
    let reader = tokio::spawn(async move {
        if let Ok(receiver) = receiver.await {
            let detail = read(hop, receiver, (&reading, peer), &tell).await;
            let _over = tell.send(Event::Lost { hop, detail }).await;
        }
    });
    HopLink { peer, messages, writer, reader: reader.abort_handle() }
}

async fn write(
    mut sender: LinkSender,
    mut messages: mpsc::Receiver<ClientMessage>,
) -> Result<(), String> {
    let mut packing = Packing::Plain;
    while let Some(message) = messages.recv().await {
        if let ClientMessage::Open(open) = &message
            && open.compress
        {
            packing = Packing::WhereSmaller;
        }
        let frame = encode(message, packing).await;
        sender.send(frame).await.map_err(|error| chain(&error))?;
    }
    sender.close().await;
    Ok(())
}

/// The frame of a message; packing a large one takes milliseconds and is done apart.
async fn encode(message: ClientMessage, packing: Packing) -> Frame {
    match &message {
        ClientMessage::Step(step)
            if packing != Packing::Plain && step.hidden.payload().len() >= PACKED_BYTES_MIN =>
        {
            let packed = tokio::task::spawn_blocking(move || message.encode_as(packing));
            packed.await.expect("packing does not panic")
        }
        ClientMessage::Step(_)
        | ClientMessage::Open(_)
        | ClientMessage::Close { .. }
        | ClientMessage::Redirect(_)
        | ClientMessage::Adopt(_)
        | ClientMessage::Ping { .. }
        | ClientMessage::Keep(_)
        | ClientMessage::Adapter(_)
        | ClientMessage::Draw(_) => message.encode(),
    }
}

/// Hands on what a hop says, and returns why it says no more.
async fn read(
    hop: HopId,
    mut receiver: LinkReceiver,
    (swarm, peer): (&Swarm, PeerId),
    tell: &mpsc::Sender<Event>,
) -> String {
    loop {
        let message = match receiver.receive().await {
            Ok(Some(frame)) => ServerMessage::decode(frame).map_err(|error| chain(&error)),
            Ok(None) => Err("the link closed".to_owned()),
            Err(error) => Err(chain(&error)),
        };
        match message {
            Ok(message) => {
                swarm.contacts().hears(peer, &message, swarm.clock().now());
                if tell.send(Event::Message { hop, message }).await.is_err() {
                    return "the session is over".to_owned();
                }
            }
            Err(detail) => return detail,
        }
    }
}
