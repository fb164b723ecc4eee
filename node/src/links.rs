//! What holds for links of every kind that others open: how many each peer may have, and how long a frame
//! may stand still.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use umbel_net::{Incoming, Link, LinkReceiver, ReceiveError};
use umbel_protocol::PeerId;
use umbel_protocol::frame::Frame;

/// How often it is looked whether a frame that has begun goes on: where 192 sessions share the slowest link
/// that is allowed, 125,000 bytes a second, each has its turn of 16 KiB every 25 seconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// How much of it has to have come meanwhile.
const GROWTH_BYTES_MIN: usize = 16 << 10;

/// Room for links, of everybody and of each peer.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    max: usize,
    of_peer_max: usize,
    taken: Arc<Mutex<BTreeMap<PeerId, usize>>>,
}

/// The place of one link, which is given back with it.
#[derive(Debug)]
pub(crate) struct Place {
    peer: PeerId,
    room: Room,
}

impl Room {
    /// Room for so many links, of which one peer may have so many.
    pub(crate) fn new(max: usize, of_peer_max: usize) -> Self {
        Self { max, of_peer_max, taken: Arc::default() }
    }

    /// Serves every link that comes and has a place, each on a task of its own, until the network has
    /// ended or the future is dropped.
    pub(crate) async fn serve_each<F>(
        self,
        mut incoming: Incoming,
        mut serve: impl FnMut(PeerId, Link) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut links = JoinSet::new();
        while let Some((peer, link)) = incoming.next().await {
            while links.try_join_next().is_some() {}
            let Some(place) = self.take(peer) else { continue };
            let served = serve(peer, link);
            links.spawn(async move {
                served.await;
                drop(place);
            });
        }
    }

    /// A place for a link of this peer, if there is one.
    fn take(&self, peer: PeerId) -> Option<Place> {
        let mut taken = self.taken();
        let of_all: usize = taken.values().sum();
        let of_peer = taken.get(&peer).copied().unwrap_or_default();
        if of_all >= self.max || of_peer >= self.of_peer_max {
            tracing::warn!(%peer, of_all, of_peer, "refused a link");
            return None;
        }
        taken.insert(peer, of_peer + 1);
        drop(taken);
        Some(Place { peer, room: self.clone() })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<PeerId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        if let Some(of_peer) = taken.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// A frame, or why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoFrame {
    /// The link broke, or its peer broke the rules.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// A frame has begun and does not go on, so that what there is of it only takes room.
    #[error("a frame stood still for {} s", LOOK_INTERVAL.as_secs())]
    StoodStill,
}

/// The next frame; `None` once the peer has closed the link.
pub(crate) async fn receive(receiver: &mut LinkReceiver) -> Result<Option<Frame>, NoFrame> {
    receive_looking(receiver, LOOK_INTERVAL).await
}

async fn receive_looking(
    receiver: &mut LinkReceiver,
    interval: Duration,
) -> Result<Option<Frame>, NoFrame> {
    let mut came = receiver.awaited();
    loop {
        if let Ok(received) = timeout(interval, receiver.receive()).await {
            return Ok(received?);
        }
        let before = std::mem::replace(&mut came, receiver.awaited());
        if let (Some(before), Some(now)) = (before, came)
            && now < before + GROWTH_BYTES_MIN
        {
            return Err(NoFrame::StoodStill);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use futures::FutureExt as _;
    use umbel_net::{Identity, LinkProtocol, LinkSender, Network, NetworkConfig, Role};

    use super::*;

    const fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    #[test]
    fn a_peer_that_has_its_share_leaves_room_to_others() {
        let room = Room::new(5, 3);
        let of_one: Vec<_> = (0..4).map(|_| room.take(peer(1))).collect();
        assert_eq!(of_one.iter().flatten().count(), 3);
        let of_other: Vec<_> = (0..3).map(|_| room.take(peer(2))).collect();
        assert_eq!(of_other.iter().flatten().count(), 2, "no more than all may have");
        assert!(room.take(peer(3)).is_none());
        drop(of_one);
        assert!(room.take(peer(3)).is_some());
        drop(of_other);
        assert!(room.taken().is_empty());
    }

    /// A server, a client, and the two ends of a link between them.
    pub(crate) async fn linked()
    -> ([Network; 2], (LinkSender, LinkReceiver), (LinkSender, LinkReceiver)) {
        let listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("it is an address")];
        let config = |role| NetworkConfig::new(Identity::ephemeral(), role);
        let server = Network::start(NetworkConfig { listen, ..config(Role::Server) }).await;
        let client = Network::start(config(Role::Client)).await.expect("it listens nowhere");
        let server = server.expect("loopback has a free port");
        let mut incoming = server.accept(LinkProtocol::Session).expect("nobody does so yet");
        let addresses = server.listen_addresses();
        let link = client.open_link(server.peer_id(), &addresses, LinkProtocol::Session).await;
        let opened = link.expect("the server accepts it").split();
        let (_, accepted) = incoming.next().await.expect("the client has opened it");
        ([server, client], opened, accepted.split())
    }

    fn frame(bytes: usize) -> Frame {
        Frame { header: vec![1].into(), payload: vec![0; bytes].into() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_link_whose_frame_does_not_go_on_ends() {
        let (_networks, (mut sender, _answers), (_sender, mut receiver)) = linked().await;
        // More than the connection takes before it is read.
        assert!(sender.send(frame(48 << 20)).now_or_never().is_none(), "some of it is sent");
        let received = receive_looking(&mut receiver, Duration::from_millis(50)).await;
        assert!(matches!(received, Err(NoFrame::StoodStill)), "{received:?}");

        // It is not the frame's length that matters.
        let rest = tokio::spawn(async move { sender.send(frame(1)).await.map(|()| sender) });
        let whole = receive(&mut receiver).await.expect("it goes on").expect("it is not closed");
        assert_eq!(whole.payload.len(), 48 << 20);
        drop(rest.await.expect("it does not panic").expect("the link is open"));
    }
}
