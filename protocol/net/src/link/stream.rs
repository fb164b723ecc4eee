//! What carries the bytes of a link.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead as _, AsyncWrite as _};

#[cfg(target_os = "linux")]
use super::socket::Socket;

/// Bytes to and from the peer.
#[derive(Debug)]
pub(crate) enum Stream {
    /// A stream of the connection between the two.
    Network(libp2p::Stream),
    /// A socket within the machine.
    #[cfg(target_os = "linux")]
    Local {
        socket: Socket,
        /// A stream of the connection on which both have agreed on the socket. Nothing is said on it any
        /// more; when it ends, so does the link.
        connection: libp2p::Stream,
    },
}

impl Stream {
    pub(super) const fn is_local(&self) -> bool {
        !matches!(self, Self::Network(_))
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Network(stream) => Pin::new(stream).poll_read(cx, space),
            #[cfg(target_os = "linux")]
            Self::Local { socket, connection } => {
                let read = socket.poll_read(cx, space);
                // What was written before the connection ended is there by then.
                if read.is_pending() && Pin::new(connection).poll_read(cx, &mut [0]).is_ready() {
                    return match socket.poll_read(cx, space) {
                        Poll::Pending => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                        read => read,
                    };
                }
                read
            }
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Network(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(target_os = "linux")]
            Self::Local { socket, .. } => socket.poll_write(cx, bytes),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Network(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(target_os = "linux")]
            Self::Local { .. } => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Network(stream) => Pin::new(stream).poll_close(cx),
            #[cfg(target_os = "linux")]
            Self::Local { socket, .. } => Poll::Ready(socket.end()),
        }
    }
}
