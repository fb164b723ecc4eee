//! The tasks that open, read and write the links to hops.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use umbel_coordinator::session::HopId;
use umbel_net::{LinkProtocol, LinkReceiver, LinkSender};
use umbel_protocol::PeerId;
use umbel_protocol::compression::{PACKED_BYTES_MIN, Packing};
use umbel_protocol::error::in_one_line;
use umbel_protocol::frame::Frame;
use umbel_protocol::inference::{ClientMessage, ServerMessage};

use super::driver::Event;
use crate::swarm::Swarm;

/// Messages that wait for one link: the replay of a context of 32,768 tokens in chunks of 512, the
/// 32 steps that are under way at most, and the messages around them.
const FRAMES_WAITING_MAX: usize = 128;

/// A link to a hop, open or about to be. Where it is dropped, what waits to be sent goes with it.
pub(super) struct HopLink {
    pub(super) peer: PeerId,
    pub(super) messages: mpsc::Sender<ClientMessage>,
    writer: Task,
    _reader: Task,
}

impl HopLink {
    /// Lets what waits be sent; the task ends when it is. What comes back interests nobody.
    pub(super) fn close(self) -> Task {
        self.writer
    }
}

/// A task that ends with its handle at the latest.
pub(super) struct Task(JoinHandle<()>);

impl Task {
    /// Waits until it has ended by itself.
    pub(super) async fn ended(&mut self) {
        // One that panicked has said so.
        let _panicked = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
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
                .map_err(|error| in_one_line(&error))?;
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
    HopLink { peer, messages, writer: Task(writer), _reader: Task(reader) }
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
        sender.send(frame).await.map_err(|error| in_one_line(&error))?;
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
            Ok(Some(frame)) => ServerMessage::decode(frame).map_err(|error| in_one_line(&error)),
            Ok(None) => Err("the link closed".to_owned()),
            Err(error) => Err(in_one_line(&error)),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use umbel_net::{Identity, Network, NetworkConfig, Role};
    use umbel_protocol::inference::{AnswerRows, Step};
    use umbel_protocol::{SessionId, StepId, Tensor};

    use super::*;
    use crate::swarm::SwarmConfig;

    /// How long a link may take to end.
    const END_TIMEOUT: Duration = Duration::from_secs(30);

    /// Steps of 4 MiB, more of them than all windows and buffers between the peers hold.
    const STEPS: u32 = 16;

    fn step(number: u32) -> ClientMessage {
        ClientMessage::Step(Step {
            session: SessionId::new(1),
            step: StepId(number.into()),
            position: number,
            hidden: Tensor::from_f32(vec![1, 1 << 20], &vec![0.5; 1 << 20]).unwrap(),
            trace: Vec::new(),
            answer_rows: AnswerRows::default(),
            replay: false,
            goes_on: false,
        })
    }

    /// A server that accepts links, a client, and a link on which more is to be sent than is read.
    async fn unread() -> ((Network, Arc<Swarm>), HopLink, LinkReceiver) {
        let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Server);
        let server = Network::start(NetworkConfig { listen, ..config }).await.unwrap();
        let mut incoming = server.accept(LinkProtocol::Session).unwrap();
        let join = server.named_addresses();
        let swarm = Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await.unwrap();
        let (swarm, (tell, _events)) = (Arc::new(swarm), mpsc::channel(1));
        let link = open(Arc::clone(&swarm), HopId(0), server.peer_id(), Vec::new(), tell);
        for number in 0..STEPS {
            link.messages.try_send(step(number)).unwrap();
        }
        let (_, accepted) = incoming.next().await.unwrap();
        ((server, swarm), link, accepted.split().1)
    }

    /// Steps that come until the link ends.
    async fn read_to_the_end(mut receiver: LinkReceiver) -> u32 {
        let read = async {
            let mut steps = 0;
            while let Ok(Some(_)) = receiver.receive().await {
                steps += 1;
            }
            steps
        };
        tokio::time::timeout(END_TIMEOUT, read).await.expect("the link ends")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_for_a_server_that_does_not_read_goes_with_the_link() {
        let (_peers, link, receiver) = unread().await;
        drop(link);
        assert!(read_to_the_end(receiver).await < STEPS);

        // The farewell of one that is closed is waited for, for a while.
        let (_peers, link, receiver) = unread().await;
        let mut writer = link.close();
        assert!(tokio::time::timeout(Duration::from_millis(50), writer.ended()).await.is_err());
        drop(writer);
        assert!(read_to_the_end(receiver).await < STEPS);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_is_sent_before_a_link_is_closed() {
        let (_peers, link, receiver) = unread().await;
        let mut writer = link.close();
        let (steps, ()) = tokio::join!(read_to_the_end(receiver), writer.ended());
        assert_eq!(steps, STEPS);
    }
}
