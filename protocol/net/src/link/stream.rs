//! What carries the bytes of a link.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead as _, AsyncWrite as _};

#[cfg(target_os = "linux")]
pub(crate) use local::Connection;

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
        /// On which both have agreed on the socket; when it ends, so does the link.
        connection: Connection,
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
                if read.is_pending() && connection.has_ended(cx) {
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

#[cfg(target_os = "linux")]
mod local {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    use futures::AsyncRead as _;
    use futures::task::AtomicWaker;

    /// A stream of a connection on which nothing is said any more. It is looked at when something happens
    /// to it, and not whenever the link is: the code for that would have to come from memory for each
    /// frame.
    #[derive(Debug)]
    pub(crate) struct Connection {
        stream: libp2p::Stream,
        news: Arc<News>,
    }

    #[derive(Debug)]
    struct News {
        has_come: AtomicBool,
        reader: AtomicWaker,
    }

    impl Connection {
        pub(crate) fn new(stream: libp2p::Stream) -> Self {
            // The first look has it tell of what comes.
            let news = News { has_come: AtomicBool::new(true), reader: AtomicWaker::new() };
            Self { stream, news: Arc::new(news) }
        }

        pub(super) fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
            self.news.reader.register(cx.waker());
            if !self.news.has_come.swap(false, Ordering::AcqRel) {
                return false;
            }
            let waker = Waker::from(Arc::clone(&self.news));
            let mut cx = Context::from_waker(&waker);
            let has_ended = Pin::new(&mut self.stream).poll_read(&mut cx, &mut [0]).is_ready();
            if has_ended {
                self.news.has_come.store(true, Ordering::Release);
            }
            has_ended
        }
    }

    impl Wake for News {
        fn wake(self: Arc<Self>) {
            self.has_come.store(true, Ordering::Release);
            self.reader.wake();
        }
    }
}
