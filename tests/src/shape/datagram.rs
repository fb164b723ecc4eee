//! Datagrams on their way to a server and back.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Way;
use super::pipe::Pipe;

/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Datagrams under way in one direction of one connection: 100 ms of full packets at 1 Gbit/s.
const UNDER_WAY_MAX: usize = 10_000;

/// Peers that speak to one server: more than any test starts. Others are not heard.
const FLOWS_MAX: usize = 256;

/// A datagram, and when it comes out.
type Due = (Instant, Vec<u8>);

/// Hands on what comes for a server, and what it answers.
pub(super) async fn relay(front: UdpSocket, way: Arc<Way>) {
    let front = Arc::new(front);
    let mut flows: BTreeMap<SocketAddr, Entrance> = BTreeMap::new();
    // What was spawned here ends with it.
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is that of one datagram: whoever it was for has closed its port.
        let Ok((count, from)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        if !flows.contains_key(&from) {
            let Some(behind) = *way.behind.borrow() else {
                way.lose();
                continue;
            };
            if flows.len() >= FLOWS_MAX {
                way.lose();
                continue;
            }
            match open(&front, &way, from, behind.udp, &mut tasks).await {
                Ok(entrance) => flows.insert(from, entrance),
                Err(_) => continue,
            };
        }
        if let Some(entrance) = flows.get_mut(&from) {
            entrance.enter(&buffer[..count], &way, from);
        }
    }
}

/// The near end of a pipe.
struct Entrance {
    pipe: Pipe,
    under_way: mpsc::Sender<Due>,
}

impl Entrance {
    fn new(way: &Way) -> (Self, mpsc::Receiver<Due>) {
        let (under_way, due) = mpsc::channel(UNDER_WAY_MAX);
        let pipe = Pipe::new(way.network.random(), Instant::now());
        (Self { pipe, under_way }, due)
    }

    fn enter(&mut self, datagram: &[u8], way: &Way, other: SocketAddr) {
        let due = match way.is_cut(other) {
            true => None,
            false => self.pipe.datagram(&way.shape(), datagram.len(), Instant::now()),
        };
        let passes =
            due.is_some_and(|due| self.under_way.try_send((due, datagram.to_vec())).is_ok());
        if !passes {
            way.lose();
        }
    }
}

/// Two pipes between a peer and the server, and the socket as which the server knows that peer.
async fn open(
    front: &Arc<UdpSocket>,
    way: &Arc<Way>,
    peer: SocketAddr,
    server: SocketAddr,
    tasks: &mut JoinSet<()>,
) -> io::Result<Entrance> {
    let inner = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    inner.connect(server).await?;
    let inner = Arc::new(inner);
    let (into, mut due) = Entrance::new(way);
    let server_side = Arc::clone(&inner);
    tasks.spawn(async move {
        while let Some((at, datagram)) = due.recv().await {
            sleep_until(at).await;
            // A server that has ended refuses it, which on a long way nobody hears either.
            let _refused = server_side.send(&datagram).await;
        }
    });
    let (mut out, mut due) = Entrance::new(way);
    let (outside, way) = (Arc::clone(front), Arc::clone(way));
    tasks.spawn(async move {
        while let Some((at, datagram)) = due.recv().await {
            sleep_until(at).await;
            let _gone = outside.send_to(&datagram, peer).await;
        }
    });
    tasks.spawn(async move {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // As above: the server may be gone, or not there yet.
            if let Ok(count) = inner.recv(&mut buffer).await {
                out.enter(&buffer[..count], &way, peer);
            }
        }
    });
    Ok(into)
}
