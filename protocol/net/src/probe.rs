//! What a system says of ports that no process holds.
//!
//! A process that is killed says no farewell, and QUIC takes a peer that is silent for one that is
//! slow. But a system that gets a datagram for a port which no process holds says so by ICMP (RFC
//! 1122, section 4.1.3.1), and a *connected* UDP socket is told of that as "connection refused". The
//! sockets of QUIC are not connected, so another one asks, with a datagram that is too short for
//! QUIC to take notice of. What the answer is worth: it can be filtered on the way, so its absence
//! says nothing; it can be forged only by who knows the port of the asking socket, and then costs a
//! connection, which is made anew.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use futures::future::join_all;
use libp2p::Multiaddr;
use tokio::net::{TcpStream, UdpSocket};

use crate::address::{quic_socket, tcp_socket};

/// What is sent: a byte without the fixed bit of QUIC (RFC 9000, section 17), which every endpoint
/// drops.
const DATAGRAM: [u8; 1] = [0];

/// A socket that asks one port.
pub(crate) struct Asking(std::net::UdpSocket);

/// The same socket, for who waits for the answer.
pub(crate) struct Listening(UdpSocket);

/// A socket that hears of errors at `to` and nowhere else: one handle of it to ask, which never
/// waits, and one to listen.
pub(crate) fn probe(to: SocketAddr) -> io::Result<(Asking, Listening)> {
    let own: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(own)?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    let asking = Asking(socket.try_clone()?);
    Ok((asking, Listening(UdpSocket::from_std(socket)?)))
}

impl Asking {
    /// Asks, and says whether an earlier question was refused, which the other handle may then not
    /// hear.
    pub(crate) fn ask(&self) -> bool {
        self.0.send(&DATAGRAM).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }
}

impl Listening {
    /// Waits until the system at the other end says that nobody holds the port.
    pub(crate) async fn refused(&self) {
        let mut nothing = [0; 1];
        loop {
            match self.0.recv(&mut nothing).await {
                // Nobody has a reason to answer; who does is there.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                // The way is broken for now, which says nothing of the process.
                Err(error) => tracing::trace!(%error, "a probe came to nothing"),
            }
        }
    }
}

/// Waits until each of these addresses has refused; for ever, where one does not. Dialling alone
/// takes seconds to tell a port of QUIC that nobody holds from one that is slow.
pub(crate) async fn all_refused(addresses: &[Multiaddr]) {
    if addresses.is_empty() {
        return std::future::pending().await;
    }
    // Those of QUIC first: a peer that is there is not to be troubled with connections in vain.
    join_all(addresses.iter().filter(|address| tcp_socket(address).is_none()).map(refused)).await;
    join_all(addresses.iter().filter(|address| tcp_socket(address).is_some()).map(refused)).await;
}

async fn refused(address: &Multiaddr) {
    let refused = match (quic_socket(address), tcp_socket(address)) {
        (Some(to), _) => match probe(to) {
            Ok((asking, listening)) => {
                if !asking.ask() {
                    listening.refused().await;
                }
                true
            }
            Err(_) => false,
        },
        (None, Some(to)) => TcpStream::connect(to)
            .await
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused),
        (None, None) => false,
    };
    if !refused {
        std::future::pending().await
    }
}
