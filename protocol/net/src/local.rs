//! Links between two processes of one machine, which do not take the way of the network.
//!
//! A datagram that goes from one process to another by QUIC is encrypted, numbered, acknowledged and
//! routed on its way, and all of that code has left the caches while a model's weights went through them: a
//! hop between two servers of one machine costs some 300 µs then. A Unix socket costs two system calls.
//!
//! Who opens a link on a connection to its own machine asks, on a stream of that connection, for a socket;
//! the answer names one and holds a secret of two halves. The asker says the first half there and is
//! answered with the second, so each knows that the other has read the answer, which only the peer can that
//! the connection has proved. Where something stands between the two that must see what passes (a shaped
//! loopback, a forwarded port), they see different ports, and the link goes over the connection.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::Multiaddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use umbel_protocol::LinkProtocol;
use umbel_protocol::frame::Frame;
use umbel_protocol::local::{LocalAnswer, LocalRequest};
use umbel_protocol::version::Side;

use crate::address::{is_relayed, quic_socket, tcp_socket};
use crate::link::{Connection, Link, LinkReceiver, Socket, Stream};
use crate::links::{Acceptors, Incoming};
use crate::rates::Rates;

/// How long the two may take to agree, which takes them a millisecond: a session waits 1.5 s for a hop to
/// open, which then has time left for the way of the network.
const AGREE_TIMEOUT: Duration = Duration::from_millis(500);

/// Links that are agreed on at once; the others wait.
const AGREED_ON_AT_ONCE: usize = 16;

/// Whether links for this purpose live long enough to be worth the question.
pub(crate) const fn is_worth_it(protocol: LinkProtocol) -> bool {
    matches!(protocol, LinkProtocol::Session | LinkProtocol::Push | LinkProtocol::Training)
}

/// The port that was listened on for a connection whose other end is on this machine.
pub(crate) fn listened_port(remote: &Multiaddr, listener: &Multiaddr) -> Option<u16> {
    if is_relayed(remote) || is_relayed(listener) {
        return None;
    }
    let socket = |address| quic_socket(address).or_else(|| tcp_socket(address));
    let (remote, listener) = (socket(remote)?, socket(listener)?);
    // No socket can have the address of another machine.
    UdpSocket::bind((remote.ip(), 0)).ok().map(|_| listener.port())
}

/// Asks for a link, by one that was opened for this question.
///
/// # Errors
/// Where there will be none: the link is to go over the connection.
pub(crate) async fn ask(
    question: Link,
    protocol: LinkProtocol,
    rates: &Arc<Rates>,
) -> io::Result<Link> {
    let peer = question.peer();
    let stream = tokio::time::timeout(AGREE_TIMEOUT, agree(question, protocol)).await??;
    Ok(Link::new(peer, protocol, Side::Opener, stream, rates))
}

async fn agree(question: Link, protocol: LinkProtocol) -> io::Result<Stream> {
    let port = question.listened_port().ok_or(ErrorKind::Unsupported)?;
    let (mut sender, mut receiver) = question.split();
    let request = LocalRequest { protocol, port };
    sender.send(request.encode()).await.map_err(io::Error::other)?;
    let answer = LocalAnswer::decode(heard(&mut receiver).await?).map_err(io::Error::other)?;
    let LocalAnswer::Waiting { socket, secret: (first, second) } = answer else {
        return Err(ErrorKind::Unsupported.into());
    };
    let mut socket = UnixStream::connect(path(socket)).await?;
    socket.write_all(&first).await?;
    if said(&mut socket).await? != second {
        return Err(ErrorKind::PermissionDenied.into());
    }
    let connection = sender.into_connection().ok_or(ErrorKind::NotConnected)?;
    let connection = Connection::new(connection);
    Ok(Stream::Local { socket: Socket::new(socket)?, connection })
}

/// Answers those who ask, until the network is shut down.
pub(crate) async fn answer(incoming: Incoming, acceptors: Arc<Acceptors>, rates: Arc<Rates>) {
    let questions = futures::stream::unfold(incoming, async |mut incoming| {
        incoming.next().await.map(|(_, question)| (question, incoming))
    });
    let each = questions.for_each_concurrent(AGREED_ON_AT_ONCE, async |question| {
        let peer = question.peer();
        match tokio::time::timeout(AGREE_TIMEOUT, agree_with(question, &acceptors)).await {
            Ok(Ok(Some((protocol, stream)))) => {
                acceptors.deliver(Link::new(peer, protocol, Side::Acceptor, stream, &rates));
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no link within the machine"),
            Err(_) => tracing::debug!(%peer, "no link within the machine: nobody came"),
        }
    });
    each.await;
}

/// What carries a link that somebody asks for, and what it is for; `None` where it is declined.
async fn agree_with(
    question: Link,
    acceptors: &Acceptors,
) -> io::Result<Option<(LinkProtocol, Stream)>> {
    let port = question.listened_port();
    let (mut sender, mut receiver) = question.split();
    let asked = LocalRequest::decode(heard(&mut receiver).await?).map_err(io::Error::other)?;
    let LocalRequest { protocol, port: seen } = asked;
    if Some(seen) != port || !is_worth_it(protocol) || !acceptors.accepts(protocol) {
        sender.send(LocalAnswer::Declined.encode()).await.map_err(io::Error::other)?;
        return Ok(None);
    }
    let (name, first, second) = (random()?, random()?, random()?);
    let listener = UnixListener::bind(path(name))?;
    let answer = LocalAnswer::Waiting { socket: name, secret: (first, second) };
    sender.send(answer.encode()).await.map_err(io::Error::other)?;
    loop {
        let (mut socket, _) = listener.accept().await?;
        // Anybody on the machine may come.
        if said(&mut socket).await.is_ok_and(|said| said == first) {
            socket.write_all(&second).await?;
            let connection = sender.into_connection().ok_or(ErrorKind::NotConnected)?;
            let connection = Connection::new(connection);
            let socket = Socket::new(socket)?;
            return Ok(Some((protocol, Stream::Local { socket, connection })));
        }
    }
}

async fn heard(receiver: &mut LinkReceiver) -> io::Result<Frame> {
    let frame = receiver.receive().await.map_err(io::Error::other)?;
    frame.ok_or(ErrorKind::UnexpectedEof.into())
}

async fn said(socket: &mut UnixStream) -> io::Result<[u8; 16]> {
    let mut said = [0; 16];
    socket.read_exact(&mut said).await?;
    Ok(said)
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// The path by which the abstract namespace is meant.
fn path(name: [u8; 16]) -> OsString {
    let digits = u128::from_be_bytes(name);
    OsString::from_vec(format!("\0umbel-link-{digits:032x}").into_bytes())
}
