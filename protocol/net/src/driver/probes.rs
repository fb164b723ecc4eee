//! Whether the process at the other end of a QUIC connection is still there.
//!
//! A process that is killed says no farewell, and QUIC takes a peer that is silent for one that is
//! slow. But a system that gets a datagram for a port which no process holds says so by ICMP (RFC
//! 1122, section 4.1.3.1), and a *connected* UDP socket is told of that as "connection refused". The
//! sockets of QUIC are not connected, so a second one asks, with a datagram that is too short for
//! QUIC to take notice of. What the answer is worth: it can be filtered on the way, so its absence
//! says nothing; it can be forged only by who knows the port of the asking socket, and then costs a
//! connection, which is made anew.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use libp2p::swarm::ConnectionId;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// What is sent: a byte without the fixed bit of QUIC (RFC 9000, section 17), which every endpoint
/// drops.
const DATAGRAM: [u8; 1] = [0];

/// Connections of whose end it is still to be heard. Each is reported once.
const REFUSED_WAITING_MAX: usize = 64;

/// The sockets that ask, one for each connection that was ever asked about.
pub(super) struct Probes {
    sockets: HashMap<ConnectionId, Probe>,
    tell: mpsc::Sender<ConnectionId>,
    refused: mpsc::Receiver<ConnectionId>,
}

struct Probe {
    asking: std::net::UdpSocket,
    listening: AbortHandle,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Probes {
    pub(super) fn new() -> Self {
        let (tell, refused) = mpsc::channel(REFUSED_WAITING_MAX);
        Self { sockets: HashMap::new(), tell, refused }
    }

    /// Asks whether anybody holds the port at the other end of a connection.
    pub(super) fn send(&mut self, connection: ConnectionId, to: SocketAddr) {
        if !self.sockets.contains_key(&connection) {
            match connected(to) {
                Ok((asking, socket)) => {
                    let task = listen(connection, socket, self.tell.clone());
                    let listening = tokio::spawn(task).abort_handle();
                    self.sockets.insert(connection, Probe { asking, listening });
                }
                Err(error) => {
                    tracing::debug!(%to, %error, "a peer cannot be probed");
                    return;
                }
            }
        }
        let Some(probe) = self.sockets.get(&connection) else {
            return;
        };
        // The answer to an earlier datagram may come here instead of to the task.
        if let Err(error) = probe.asking.send(&DATAGRAM)
            && error.kind() == ErrorKind::ConnectionRefused
        {
            let _said_already = self.tell.try_send(connection);
        }
    }

    /// A connection has closed.
    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.sockets.remove(&connection);
    }

    /// The next connection whose other end is gone.
    pub(super) async fn refused(&mut self) -> ConnectionId {
        self.refused.recv().await.expect("the probes themselves hold a sender")
    }
}

/// A socket that hears of errors at `to` and nowhere else: one handle of it to ask, which never
/// waits, and one to listen.
fn connected(to: SocketAddr) -> std::io::Result<(std::net::UdpSocket, UdpSocket)> {
    let own: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(own)?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    let asking = socket.try_clone()?;
    Ok((asking, UdpSocket::from_std(socket)?))
}

/// Waits until the system at the other end refuses a datagram.
async fn listen(connection: ConnectionId, socket: UdpSocket, tell: mpsc::Sender<ConnectionId>) {
    let mut nothing = [0; 1];
    loop {
        match socket.recv(&mut nothing).await {
            // Nobody has a reason to answer; who does is there.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            // The way is broken for now, which says nothing of the process.
            Err(error) => tracing::trace!(%error, "a probe came to nothing"),
        }
    }
    let _ended = tell.send(connection).await;
}
