//! A Unix socket that carries a link.
//!
//! tokio's own would do, but it is told each time that the other end has read something, which wakes the
//! thread that has written it from its sleep, or takes the core from the one that has just been woken to
//! read. This one hears that there is room only while it waits for that.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes that are read at once, whatever is wanted: the result of a token, with what is around it.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// One end.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: AsyncFd<UnixStream>,
    /// A second handle of it, while it is full.
    full: Option<AsyncFd<UnixStream>>,
    /// What was read and is not wanted yet.
    ahead: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Socket {
    /// Takes over a socket.
    pub(crate) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let stream = watched(stream.into_std()?, Interest::READABLE)?;
        let ahead = vec![0; READ_AHEAD_BYTES].into();
        Ok(Self { stream, full: None, ahead, from: 0, to: 0 })
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.from == self.to {
            if space.len() >= READ_AHEAD_BYTES {
                return self.poll_receive(cx, Some(space));
            }
            let count = ready!(self.poll_receive(cx, None))?;
            (self.from, self.to) = (0, count);
        }
        let count = space.len().min(self.to - self.from);
        space[..count].copy_from_slice(&self.ahead[self.from..self.from + count]);
        self.from += count;
        Poll::Ready(Ok(count))
    }

    /// Reads into `space`, or ahead.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        space: Option<&mut [u8]>,
    ) -> Poll<io::Result<usize>> {
        let space = match space {
            Some(space) => space,
            None => &mut self.ahead,
        };
        loop {
            let mut readable = ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.get_ref().read(space) {
                Ok(count) => {
                    // What fills less than the space was all there was; the system tells of more.
                    if count > 0 && count < space.len() {
                        readable.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => readable.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                let mut room = ready!(full.poll_write_ready(cx))?;
                room.clear_ready();
            }
            match self.stream.get_ref().write(bytes) {
                Ok(count) => {
                    self.full = None;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.full.is_none() {
                        let handle = self.stream.get_ref().try_clone()?;
                        self.full = Some(watched(handle, Interest::WRITABLE)?);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Says that nothing more comes.
    pub(super) fn end(&self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)
    }
}

/// A socket that does not block, and of which the system tells so much.
fn watched(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[expect(
        unsafe_code,
        reason = "tokio cannot see that a socket stays open as long as it is owned"
    )]
    // SAFETY: a `UnixStream` has one descriptor from its creation to its end, and it ends with what is made
    // of it here.
    let watched = unsafe { AsyncFd::register_with_interest(stream, interest) };
    Ok(watched?)
}
