//! A network within this process, between peers that are processes of their own: links with delay,
//! jitter, bandwidth, loss and a finite buffer, which can be cut and mended while they are used.
//!
//! It needs no rights: every server listens on loopback and announces a [`Front`] instead, which
//! relays datagrams (QUIC) and byte streams (TCP) to it. All who dial the server share the shape of
//! its front, in both directions. Peers dial from the ports on which they listen, so a front knows
//! which peer speaks to it; clients, which do not listen, are on the side of whoever is not cut off.

mod datagram;
mod pipe;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use umbel_coordinator::random::Random;

/// What each direction of a link is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// One way.
    pub delay: Duration,
    /// Added by chance, at most; what is behind waits, so nothing overtakes.
    pub jitter: Duration,
    /// Bytes that leave in a second.
    pub bytes_per_second: f64,
    /// How likely a packet is lost.
    pub loss: f64,
    /// Bytes that wait before a link at most: beyond them a datagram is lost, and a stream is not
    /// read on.
    pub buffer_bytes: usize,
}

impl Shape {
    /// A link that adds nothing.
    pub const PLAIN: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_second: f64::INFINITY,
        loss: 0.0,
        buffer_bytes: 1 << 20,
    };

    /// A link with this delay in each direction, and nothing else.
    #[must_use]
    pub const fn of_delay(delay: Duration) -> Self {
        Self { delay, ..Self::PLAIN }
    }
}

/// The network.
#[derive(Debug, Clone)]
pub struct ShapedNetwork(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shape: Shape,
    seed: u64,
    pipes: AtomicU64,
    hosts: watch::Sender<Hosts>,
}

/// Who is where, and who is cut off.
#[derive(Debug, Clone, Default)]
struct Hosts {
    /// The sockets on which hosts listen, and from which they dial.
    sockets: BTreeMap<SocketAddr, HostId>,
    cut: BTreeSet<HostId>,
    next: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct HostId(u64);

impl ShapedNetwork {
    /// A network whose links have this shape, and whose chance follows from a seed.
    #[must_use]
    pub fn new(shape: Shape, seed: u64) -> Self {
        let hosts = watch::Sender::new(Hosts::default());
        Self(Arc::new(Inner { shape, seed, pipes: AtomicU64::new(0), hosts }))
    }

    /// A way into a server that is about to start.
    ///
    /// # Errors
    /// Where the system has no free port.
    pub async fn front(&self) -> io::Result<Front> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut host = HostId(0);
        self.0.hosts.send_modify(|hosts| {
            host = HostId(hosts.next);
            hosts.next += 1;
        });
        let way = Arc::new(Way {
            network: self.clone(),
            host,
            shape: Mutex::new(self.0.shape),
            behind: watch::Sender::new(None),
            lost: AtomicU64::new(0),
        });
        let (udp_address, tcp_address) = (udp.local_addr()?, tcp.local_addr()?);
        let mut relays = JoinSet::new();
        relays.spawn(datagram::relay(udp, Arc::clone(&way)));
        relays.spawn(stream::relay(tcp, Arc::clone(&way)));
        Ok(Front { way, udp: udp_address, tcp: tcp_address, _relays: relays })
    }

    /// The generator of a new pipe.
    fn random(&self) -> Random {
        let number = self.0.pipes.fetch_add(1, Ordering::Relaxed);
        Random::new(Random::new(self.0.seed).bits() ^ number)
    }
}

/// Where a server is reached through the network. It is gone when this is dropped.
#[derive(Debug)]
pub struct Front {
    way: Arc<Way>,
    udp: SocketAddr,
    tcp: SocketAddr,
    _relays: JoinSet<()>,
}

impl Front {
    /// What the server is to announce: multiaddresses for QUIC and for TCP.
    #[must_use]
    pub fn addresses(&self) -> [String; 2] {
        let Self { udp, tcp, .. } = self;
        [
            format!("/ip4/{}/udp/{}/quic-v1", udp.ip(), udp.port()),
            format!("/ip4/{}/tcp/{}", tcp.ip(), tcp.port()),
        ]
    }

    /// Where datagrams come in.
    #[must_use]
    pub const fn udp(&self) -> SocketAddr {
        self.udp
    }

    /// Where byte streams come in.
    #[must_use]
    pub const fn tcp(&self) -> SocketAddr {
        self.tcp
    }

    /// The server listens here. What came for it until now is lost.
    pub fn lead_to(&self, udp: SocketAddr, tcp: SocketAddr) {
        self.way.network.0.hosts.send_modify(|hosts| {
            hosts.sockets.insert(udp, self.way.host);
            hosts.sockets.insert(tcp, self.way.host);
        });
        self.way.behind.send_replace(Some(Behind { udp, tcp }));
    }

    /// What the links are like from now on.
    pub fn set_shape(&self, shape: Shape) {
        *self.way.shape_mut() = shape;
    }

    /// Lets nothing pass any more, into the server or out of it.
    pub fn cut(&self) {
        self.way.network.0.hosts.send_modify(|hosts| {
            hosts.cut.insert(self.way.host);
        });
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.way.network.0.hosts.send_modify(|hosts| {
            hosts.cut.remove(&self.way.host);
        });
    }

    /// Datagrams that were lost so far, by chance, for want of room, or because the way was cut;
    /// pieces of streams that came late for the first of these reasons count too.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.way.lost.load(Ordering::Relaxed)
    }
}

/// What the relays of a front go by.
#[derive(Debug)]
struct Way {
    network: ShapedNetwork,
    host: HostId,
    shape: Mutex<Shape>,
    behind: watch::Sender<Option<Behind>>,
    lost: AtomicU64,
}

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
struct Behind {
    udp: SocketAddr,
    tcp: SocketAddr,
}

impl Way {
    fn shape(&self) -> Shape {
        *self.shape_mut()
    }

    fn shape_mut(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing passes between the server and who speaks from `other`.
    fn is_cut(&self, other: SocketAddr) -> bool {
        self.network.0.hosts.borrow().separates(self.host, other)
    }

    /// Waits until something passes.
    async fn passable(&self, other: SocketAddr) {
        let mut hosts = self.network.0.hosts.subscribe();
        let passes = hosts.wait_for(|hosts| !hosts.separates(self.host, other));
        passes.await.expect("the network is there as long as the way");
    }

    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

impl Hosts {
    fn separates(&self, host: HostId, other: SocketAddr) -> bool {
        let other = self.sockets.get(&other);
        self.cut.contains(&host) || other.is_some_and(|other| self.cut.contains(other))
    }
}
