//! What a relay passes on counts as what its links carry, and waits as they do.
//!
//! libp2p copies the bytes of a circuit between two streams of its own. Of the two, the one that the relay
//! has opened begins with what the relay itself has written, so that nobody can make it look like another.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt as _};
use libp2p::core::muxing::{
    StreamMuxer, StreamMuxerBox, StreamMuxerEvent, StreamMuxerExt as _, SubstreamBox,
};
use libp2p::relay::STOP_PROTOCOL_NAME;

use crate::rates::{PIECE_BYTES_MAX, Rates};

/// In so many bytes a stream has said what it is for: the name of what negotiates takes 20, and that of the
/// protocol 33.
const NAMED_WITHIN: usize = 64;

/// The streams of one connection of a relay.
pub(crate) struct Muxer {
    inner: StreamMuxerBox,
    rates: Arc<Rates>,
}

impl Muxer {
    pub(crate) const fn new(inner: StreamMuxerBox, rates: Arc<Rates>) -> Self {
        Self { inner, rates }
    }

    fn stream(&self, inner: SubstreamBox, kind: Kind) -> Stream {
        let turn = || Turn { rates: Arc::clone(&self.rates), waiting: None };
        Stream { inner, kind, reads: turn(), writes: turn() }
    }
}

impl StreamMuxer for Muxer {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, io::Error>> {
        let this = self.get_mut();
        let inner = ready!(this.inner.poll_inbound_unpin(cx))?;
        Poll::Ready(Ok(this.stream(inner, Kind::Another)))
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, io::Error>> {
        let this = self.get_mut();
        let inner = ready!(this.inner.poll_outbound_unpin(cx))?;
        Poll::Ready(Ok(this.stream(inner, Kind::Unknown(Vec::new()))))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.get_mut().inner.poll_close_unpin(cx)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, io::Error>> {
        self.get_mut().inner.poll_unpin(cx)
    }
}

/// One stream, of a circuit perhaps.
pub(crate) struct Stream {
    inner: SubstreamBox,
    kind: Kind,
    reads: Turn,
    writes: Turn,
}

enum Kind {
    /// This side has opened it, and has written so much.
    Unknown(Vec<u8>),
    /// It leads to who is at the end of a circuit.
    Circuit,
    Another,
}

/// When a circuit may go on, in one direction.
struct Turn {
    rates: Arc<Rates>,
    waiting: Option<BoxFuture<'static, ()>>,
}

impl Turn {
    /// Waits until all before is paid for.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.rates.has_limit() {
            return Poll::Ready(());
        }
        let waiting = self.waiting.get_or_insert_with(|| {
            let rates = Arc::clone(&self.rates);
            async move {
                rates.upload.settled().await;
                rates.download.settled().await;
            }
            .boxed()
        });
        ready!(waiting.poll_unpin(cx));
        self.waiting = None;
        Poll::Ready(())
    }

    /// What passes a relay comes in and goes out.
    fn passed(&self, bytes: usize) {
        self.rates.upload.add(bytes);
        self.rates.download.add(bytes);
    }
}

impl Stream {
    fn is_circuit(&self) -> bool {
        matches!(self.kind, Kind::Circuit)
    }

    /// Takes note of what this side has written.
    fn notice(&mut self, written: &[u8]) {
        let Kind::Unknown(begun) = &mut self.kind else { return };
        begun.extend(written.iter().take(NAMED_WITHIN - begun.len()));
        let name = STOP_PROTOCOL_NAME;
        let name = name.as_ref().as_bytes();
        if begun.windows(name.len()).any(|window| window == name) {
            self.kind = Kind::Circuit;
        } else if begun.len() == NAMED_WITHIN {
            self.kind = Kind::Another;
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_circuit() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        ready!(this.reads.poll(cx));
        let piece = buffer.len().min(PIECE_BYTES_MAX);
        let bytes = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer[..piece]))?;
        this.reads.passed(bytes);
        Poll::Ready(Ok(bytes))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_circuit() {
            let written = ready!(Pin::new(&mut this.inner).poll_write(cx, bytes))?;
            this.notice(&bytes[..written]);
            return Poll::Ready(Ok(written));
        }
        ready!(this.writes.poll(cx));
        let piece = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, piece))?;
        this.writes.passed(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}
