//! Frames on an open link.

#[cfg(target_os = "linux")]
mod socket;
mod stream;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::poll_fn;
use umbel_protocol::frame::{Frame, FrameDecoder, FrameError, Limits, encode_prefix};
use umbel_protocol::version::Side;
use umbel_protocol::{LinkProtocol, PeerId};

use crate::error::{ReceiveError, SendError};
use crate::rates::{Meter, Rates};

#[cfg(target_os = "linux")]
pub(crate) use socket::Socket;
#[cfg(target_os = "linux")]
pub(crate) use stream::Connection;
pub(crate) use stream::Stream;

/// A frame up to this size is written in one piece, payload included: one copy of 64 KiB takes
/// some 5 µs, a second write would wake the connection and its peer a second time.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// How long closing may wait for a peer that does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream of frames to and from one peer, for one purpose. It closes when it is dropped.
///
/// The stream's own flow control is the only queue: a sender waits until its peer reads.
#[derive(Debug)]
pub struct Link {
    peer: PeerId,
    protocol: LinkProtocol,
    local: bool,
    listened_port: Option<u16>,
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl Link {
    pub(crate) fn new(
        peer: PeerId,
        protocol: LinkProtocol,
        side: Side,
        stream: Stream,
        rates: &Arc<Rates>,
    ) -> Self {
        let local = stream.is_local();
        let stream = SharedStream(Arc::new(Mutex::new(Some(stream))));
        let (own, other) = (protocol.limits(side), protocol.limits(side.other()));
        Self {
            peer,
            protocol,
            local,
            listened_port: None,
            sender: LinkSender {
                stream: stream.clone(),
                limits: own,
                rates: Arc::clone(rates),
                unsent: [const { Bytes::new() }; 2],
                waits: false,
                allowed: 0,
            },
            receiver: LinkReceiver {
                stream,
                decoder: FrameDecoder::new(other),
                rates: Arc::clone(rates),
                owes: false,
            },
        }
    }

    /// The same, where the other end may be on this machine.
    pub(crate) fn beside(self, listened_port: Option<u16>) -> Self {
        Self { listened_port, ..self }
    }

    /// The port that was listened on for the connection, where its other end may be on this machine.
    pub(crate) const fn listened_port(&self) -> Option<u16> {
        self.listened_port
    }

    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// What the link is for.
    #[must_use]
    pub const fn protocol(&self) -> LinkProtocol {
        self.protocol
    }

    /// Whether it stays within this machine, and takes no way of the network.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.local
    }

    /// The two directions, for two tasks. The link closes when both are dropped.
    #[must_use]
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

/// The direction to the peer.
#[derive(Debug)]
pub struct LinkSender {
    stream: SharedStream,
    limits: Limits,
    rates: Arc<Rates>,
    /// What is left of a frame: prefix and header, and what was not copied behind them.
    unsent: [Bytes; 2],
    /// Whether that waits for its turn where the rate has a limit.
    waits: bool,
    /// Bytes of the current piece whose turn has come.
    allowed: usize,
}

impl LinkSender {
    /// Sends a frame, and waits while the peer does not read.
    ///
    /// A call that is dropped before it ends has sent part of its frame; the next call sends the
    /// rest first.
    ///
    /// # Errors
    /// [`SendError`] where the frame is above the limits of the link, or the link is gone.
    pub async fn send(&mut self, frame: Frame) -> Result<(), SendError> {
        let prefix = encode_prefix(&frame, self.limits)?;
        self.write_unsent().await?;
        self.waits = !frame.payload.is_empty();
        self.unsent = in_pieces(&prefix, frame);
        self.write_unsent().await
    }

    /// Sends a frame to a peer that has so long to take it, and says whether it has. Where it has not, the
    /// link is of no more use and is to be dropped: it only keeps what was to be sent in memory.
    pub async fn send_within(&mut self, frame: Frame, within: Duration) -> bool {
        // Where this side's own rate has a limit, what waits for its turn is nobody else's fault.
        self.turn_of(&frame).await;
        matches!(tokio::time::timeout(within, self.send(frame)).await, Ok(Ok(())))
    }

    /// Waits for the turn of a frame, where the rate has a limit. It need not be waited for, but what
    /// has to go first can be sent meanwhile. A call that is dropped before it ends loses nothing.
    pub async fn turn_of(&mut self, frame: &Frame) {
        let bytes = frame.wire_bytes();
        while self.allowed < bytes && !frame.payload.is_empty() {
            self.allowed += self.rates.upload.take(bytes - self.allowed, true).await;
        }
    }

    /// Says that nothing more comes. Frames from the peer can still be received.
    ///
    /// What cannot be sent any more is lost: the peer is gone, or does not read.
    pub async fn close(mut self) {
        let close = async {
            self.write_unsent().await?;
            let closed = poll_fn(|cx| self.stream.poll(cx, |stream, cx| stream.poll_close(cx)));
            closed.await.map_err(SendError::Io)
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a link was gone before it was closed"),
            Err(_) => tracing::debug!("a link was closed with unread frames"),
        }
    }

    /// The stream of the connection, for who goes on without frames; `None` where the link is gone, or has
    /// no such stream.
    pub(crate) fn into_connection(self) -> Option<libp2p::Stream> {
        match self.stream.lock().take()? {
            Stream::Network(stream) => Some(stream),
            #[cfg(target_os = "linux")]
            Stream::Local { .. } => None,
        }
    }

    async fn write_unsent(&mut self) -> Result<(), SendError> {
        let Self { stream, rates, unsent, waits, allowed, .. } = self;
        for piece in unsent.iter_mut() {
            while !piece.is_empty() {
                if *allowed == 0 {
                    *allowed = rates.upload.take(piece.len(), *waits).await;
                }
                let part = &piece[..piece.len().min(*allowed)];
                let write = poll_fn(|cx| stream.poll(cx, |stream, cx| stream.poll_write(cx, part)));
                match write.await.map_err(broken)? {
                    0 => return Err(SendError::Closed),
                    count => {
                        piece.advance(count);
                        *allowed -= count;
                    }
                }
            }
        }
        poll_fn(|cx| stream.poll(cx, |stream, cx| stream.poll_flush(cx))).await.map_err(broken)
    }
}

/// The direction from the peer.
#[derive(Debug)]
pub struct LinkReceiver {
    stream: SharedStream,
    decoder: FrameDecoder,
    rates: Arc<Rates>,
    /// Whether something was read that is to be paid for before more is.
    owes: bool,
}

impl LinkReceiver {
    /// How much is here of a frame whose rest the peer is to send; `None` where none has begun, or where it
    /// is this side that waits, for its own rate.
    #[must_use]
    pub fn awaited(&self) -> Option<usize> {
        let begun = self.decoder.is_within_frame() && !self.owes;
        begun.then(|| self.decoder.unfinished_bytes())
    }

    /// Takes no larger payload than this from now on, for who knows more than that it is such a link.
    pub fn limit_payload(&mut self, bytes_max: u32) {
        self.decoder.limit_payload(bytes_max);
    }

    /// The next frame; `None` once the peer has closed the link.
    ///
    /// A call that is dropped before it ends loses nothing.
    ///
    /// # Errors
    /// [`ReceiveError`] where the link breaks, or the peer claims a frame above the limits of the
    /// link: the link closes then, in both directions.
    pub async fn receive(&mut self) -> Result<Option<Frame>, ReceiveError> {
        let Self { stream, decoder, rates, owes } = self;
        loop {
            // What the peer sends meanwhile waits on its side, once the buffers between are full.
            if *owes {
                rates.download.settled().await;
                *owes = false;
            }
            let space = decoder.space();
            if space.is_empty() {
                // After an error there is none; the decoder says which.
                return Ok(decoder.filled(0)?);
            }
            let read = poll_fn(|cx| stream.poll(cx, |stream, cx| stream.poll_read(cx, space)));
            match read.await.map_err(ReceiveError::Io)? {
                0 if decoder.is_within_frame() => return Err(ReceiveError::Truncated),
                0 => return Ok(None),
                count => match counted(decoder, count, &rates.download) {
                    Ok(None) => *owes = true,
                    Ok(Some(frame)) => {
                        *owes = !frame.payload.is_empty();
                        return Ok(Some(frame));
                    }
                    Err(error) => {
                        stream.close();
                        return Err(error.into());
                    }
                },
            }
        }
    }
}

/// Hands on what was read, and counts it.
fn counted(
    decoder: &mut FrameDecoder,
    count: usize,
    download: &Meter,
) -> Result<Option<Frame>, FrameError> {
    download.add(count);
    decoder.filled(count)
}

/// One stream for two tasks. The lock is held for the length of one poll, which copies at most a
/// buffer and never waits.
#[derive(Debug, Clone)]
struct SharedStream(Arc<Mutex<Option<Stream>>>);

impl SharedStream {
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Stream, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match self.lock().as_mut() {
            Some(stream) => poll(stream, cx),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Ends the stream for both tasks at once.
    fn close(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame as one piece, or as two where the payload is too large to copy.
fn in_pieces(prefix: &[u8], frame: Frame) -> [Bytes; 2] {
    let copied = frame.wire_bytes() <= COPIED_BYTES_MAX;
    let capacity = prefix.len() + frame.header.len() + if copied { frame.payload.len() } else { 0 };
    let mut first = BytesMut::with_capacity(capacity);
    first.extend_from_slice(prefix);
    first.extend_from_slice(&frame.header);
    if !copied {
        return [first.freeze(), frame.payload];
    }
    first.extend_from_slice(&frame.payload);
    [first.freeze(), Bytes::new()]
}

/// A link that was closed in order is no broken one.
fn broken(error: io::Error) -> SendError {
    use io::ErrorKind;
    if matches!(
        error.kind(),
        ErrorKind::NotConnected | ErrorKind::WriteZero | ErrorKind::BrokenPipe
    ) {
        SendError::Closed
    } else {
        SendError::Io(error)
    }
}
