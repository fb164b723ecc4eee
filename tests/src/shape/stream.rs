//! Byte streams on their way to a server and back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Way;
use super::pipe::Pipe;

/// Bytes that enter a pipe at once: some segments.
const PIECE_BYTES_MAX: usize = 4 << 10;

/// Pieces under way in one direction: 4 MiB, what a window of TCP grows to. Beyond them the stream
/// is not read on.
const UNDER_WAY_MAX: usize = 1_024;

/// Hands on the connections that come for a server.
pub(super) async fn relay(front: TcpListener, way: Arc<Way>) {
    // What was spawned here ends with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = front.accept() => if let Ok((outside, from)) = accepted {
                connections.spawn(connect(outside, from, Arc::clone(&way)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(outside: TcpStream, from: SocketAddr, way: Arc<Way>) {
    way.passable(from).await;
    let Some(behind) = *way.behind.borrow() else {
        return;
    };
    let Ok(inside) = TcpStream::connect(behind.tcp).await else {
        return;
    };
    // Only the shape delays anything.
    let _best_effort = (outside.set_nodelay(true), inside.set_nodelay(true));
    let ((from_peer, to_peer), (from_server, to_server)) =
        (outside.into_split(), inside.into_split());
    // A direction that breaks breaks the other; one that ends in order does not.
    let both = tokio::try_join!(
        pass(from_peer, to_server, from, &way),
        pass(from_server, to_peer, from, &way)
    );
    // Either way the connection is over.
    let _broken = both;
}

/// Takes one direction of a stream to its end.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    peer: SocketAddr,
    way: &Way,
) -> io::Result<()> {
    let (under_way, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY_MAX);
    let enter = async move {
        let mut pipe = Pipe::new(way.network.random(), Instant::now());
        let mut buffer = vec![0; PIECE_BYTES_MAX];
        loop {
            let Ok(count) = from.read(&mut buffer).await else {
                // The other end hears of it after what is under way.
                return Ok(());
            };
            let shape = way.shape();
            let (at, late) = pipe.piece(&shape, count, Instant::now());
            if late {
                way.lose();
            }
            // Nothing in it is the end of the stream.
            let over = under_way.send((at, buffer[..count].to_vec())).await.is_err();
            if count == 0 || over {
                return Ok(());
            }
            sleep_until(pipe.room_at(&shape)).await;
        }
    };
    let come_out = async move {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            // TCP sends again and again what does not pass.
            way.passable(peer).await;
            if piece.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&piece).await?;
        }
        Err(io::ErrorKind::ConnectionReset.into())
    };
    tokio::try_join!(enter, come_out).map(|((), ())| ())
}
