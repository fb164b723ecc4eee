//! The tasks that read and write the links between members: each member speaks on those that it has opened.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use umbel_coordinator::training::round::{MEMBERS_MAX, Message};
use umbel_net::{
    Incoming, Link, LinkProtocol, LinkReceiver, LinkSender, Multiaddr, Network, SendError,
};
use umbel_protocol::averaging::MemberMessage;
use umbel_protocol::error::in_one_line;
use umbel_protocol::{Frame, PeerId, ProtocolViolation};

use super::words::{Words, from_wire, to_wire};

/// Links that one peer may have open: the one it speaks on, and those of before that are about to end. Peers
/// have names for nothing, but each needs others of its own.
const LINKS_OF_PEER_MAX: usize = 4;

/// How long a member may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens on the links.
pub(super) enum Event {
    /// A member has opened a link. What it says is read once `read` is told so: then there is a link to it
    /// too.
    Hello {
        peer: PeerId,
        addresses: Vec<String>,
        members: BTreeMap<PeerId, Vec<String>>,
        read: oneshot::Sender<()>,
    },
    /// It said something.
    Said { peer: PeerId, message: Message },
    /// There is a link to a member.
    Opened { peer: PeerId, link: Box<Link> },
    /// There is none.
    Unreachable { peer: PeerId },
    /// A link from it has ended, or the one to it with this number.
    Gone { peer: PeerId, link: Option<u64> },
}

/// Reads what members say that know the run by its name, until it is dropped.
pub(super) async fn accept(mut incoming: Incoming, run: [u8; 32], tell: mpsc::Sender<Event>) {
    let mut links = JoinSet::new();
    // Each link has one of its peer's, and lets go of it when it ends.
    let mut places: BTreeMap<PeerId, Arc<()>> = BTreeMap::new();
    while let Some((peer, link)) = incoming.next().await {
        while links.try_join_next().is_some() {}
        places.retain(|_, place| Arc::strong_count(place) > 1);
        // One of each member, and as many that are about to end.
        if links.len() >= 2 * MEMBERS_MAX {
            tracing::warn!(%peer, "refused a member's link: too many are open");
            continue;
        }
        let place = places.entry(peer).or_default();
        if Arc::strong_count(place) > LINKS_OF_PEER_MAX {
            tracing::warn!(%peer, "refused a member's link: it has too many");
            continue;
        }
        let (tell, place) = (tell.clone(), Arc::clone(place));
        links.spawn(async move {
            match read(peer, link, run, &tell).await {
                Ok(()) => {}
                Err(violation) => tracing::warn!(%peer, %violation, "closing a member's link"),
            }
            let _over = tell.send(Event::Gone { peer, link: None }).await;
            drop(place);
        });
    }
}

async fn read(
    peer: PeerId,
    link: Link,
    run: [u8; 32],
    tell: &mpsc::Sender<Event>,
) -> Result<(), ProtocolViolation> {
    let (_silent, mut receiver) = link.split();
    let Ok(Some(hello)) = tokio::time::timeout(HELLO_TIMEOUT, next(peer, &mut receiver)).await
    else {
        return Ok(());
    };
    let MemberMessage::Hello { run: named, addresses, members } = MemberMessage::decode(hello)?
    else {
        return Err(ProtocolViolation::Unexpected { message: "anything but MemberHello" });
    };
    if named != run {
        tracing::warn!(%peer, "refused a trainer of another run");
        return Ok(());
    }
    let (read, may_read) = oneshot::channel();
    let hello = Event::Hello { peer, addresses, members, read };
    if tell.send(hello).await.is_err() || may_read.await.is_err() {
        return Ok(());
    }
    while let Some(frame) = next(peer, &mut receiver).await {
        let message = from_wire(MemberMessage::decode(frame)?)?;
        if tell.send(Event::Said { peer, message }).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn next(peer: PeerId, receiver: &mut LinkReceiver) -> Option<Frame> {
    receiver.receive().await.unwrap_or_else(|error| {
        tracing::debug!(%peer, error = in_one_line(&error), "a member's link ended");
        None
    })
}

/// Opens a link to a member.
pub(super) async fn open(
    network: Network,
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    tell: mpsc::Sender<Event>,
) {
    let opened = network.open_link(peer, &addresses, LinkProtocol::Averaging).await;
    let event = match opened {
        Ok(link) => Event::Opened { peer, link: Box::new(link) },
        Err(error) => {
            tracing::debug!(%peer, error = in_one_line(&error), "a member cannot be reached");
            Event::Unreachable { peer }
        }
    };
    let _over = tell.send(event).await;
}

/// Says first who it is that speaks, and then what is to be said, until the member closes the link, on
/// which it says nothing itself.
pub(super) async fn write(
    (link, number): (Link, u64),
    hello: MemberMessage,
    words: Arc<Words>,
    tell: mpsc::Sender<Event>,
) {
    let peer = link.peer();
    let (sender, mut receiver) = link.split();
    tokio::select! {
        Err(error) = say(sender, hello, &words) => {
            tracing::debug!(%peer, error = in_one_line(&error), "a member's link ended");
        }
        _closed = next(peer, &mut receiver) => {}
    }
    let _over = tell.send(Event::Gone { peer, link: Some(number) }).await;
}

async fn say(
    mut sender: LinkSender,
    hello: MemberMessage,
    words: &Words,
) -> Result<Infallible, SendError> {
    sender.send(hello.encode()).await?;
    loop {
        // What travels is made when its turn comes: until then all members share the values.
        sender.send(to_wire(words.next().await).encode()).await?;
    }
}

#[cfg(test)]
mod tests {
    use umbel_net::{Identity, NetworkConfig, Role};

    use super::*;

    async fn network(listens: bool) -> Network {
        let address = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
        let listen = if listens { vec![address] } else { Vec::new() };
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
        Network::start(NetworkConfig { listen, ..config }).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_has_its_links_leaves_room_to_others() {
        let (trainer, greedy, other) =
            (network(true).await, network(false).await, network(false).await);
        let incoming = trainer.accept(LinkProtocol::Averaging).unwrap();
        let (tell, mut told) = mpsc::channel(8);
        let accepting = tokio::spawn(accept(incoming, [7; 32], tell));
        let addresses = trainer.listen_addresses();
        let open = async |network: &Network| {
            let link = network.open_link(trainer.peer_id(), &addresses, LinkProtocol::Averaging);
            link.await.unwrap().split()
        };
        let mut held = Vec::new();
        for _ in 0..LINKS_OF_PEER_MAX {
            held.push(open(&greedy).await);
        }
        let (_sender, mut refused) = open(&greedy).await;
        tokio::select! {
            frame = next(trainer.peer_id(), &mut refused) => assert!(frame.is_none(), "it is closed"),
            _gone = told.recv() => panic!("those before it were given up first, as they say nothing"),
        }

        let (mut sender, _silent) = open(&other).await;
        let hello =
            MemberMessage::Hello { run: [7; 32], addresses: Vec::new(), members: BTreeMap::new() };
        sender.send(hello.encode()).await.unwrap();
        loop {
            match told.recv().await.unwrap() {
                Event::Hello { peer, .. } => break assert_eq!(peer, other.peer_id()),
                // Those that say nothing are given up after a while, which may come first.
                Event::Gone { .. } => {}
                Event::Said { .. } | Event::Opened { .. } | Event::Unreachable { .. } => {
                    panic!("nobody has said anything else")
                }
            }
        }
        accepting.abort();
    }
}
