//! From bytes, as they come, to frames.

use bytes::{Bytes, BytesMut};

use super::{Frame, FrameError, Limits, PREFIX_BYTES, read_prefix};

/// A buffer begins with at most this many bytes and doubles as they fill, so that a peer has to
/// send what it makes this side hold. A decode step fits at once.
const FIRST_BYTES_MAX: usize = 256 << 10;

/// Takes bytes in pieces of any size and gives frames.
///
/// A reader asks for [`space`](Self::space), reads into it, and says how much came by
/// [`filled`](Self::filled). The space never goes beyond the frame at hand, so that header and
/// payload each land in a buffer of their own and nothing is copied afterwards.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: Limits,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Prefix {
        bytes: [u8; PREFIX_BYTES],
        filled: usize,
    },
    Header {
        buffer: Buffer,
        payload_bytes: usize,
    },
    Payload {
        header: Bytes,
        buffer: Buffer,
    },
    /// A prefix was above the limits: where the next frame begins is not known.
    Refused(FrameError),
}

impl FrameDecoder {
    /// A decoder at the beginning of a frame.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, part: Part::BEGINNING }
    }

    /// Where the next bytes go; empty only after an error.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.part {
            Part::Prefix { bytes, filled } => bytes.get_mut(*filled..).unwrap_or_default(),
            Part::Header { buffer, .. } | Part::Payload { buffer, .. } => buffer.space(),
            Part::Refused(_) => &mut [],
        }
    }

    /// Takes note that the first `count` bytes of the space have come.
    ///
    /// # Errors
    /// [`FrameError`] where a frame claims to be larger than allowed; so does every later call,
    /// since nobody knows where the next frame begins.
    ///
    /// # Panics
    /// If `count` is more than the space.
    pub fn filled(&mut self, count: usize) -> Result<Option<Frame>, FrameError> {
        match &mut self.part {
            Part::Prefix { bytes, filled } => {
                *filled += count;
                assert!(*filled <= PREFIX_BYTES, "no more bytes come than there is space");
                if *filled < PREFIX_BYTES {
                    return Ok(None);
                }
                match read_prefix(bytes, self.limits) {
                    Ok(lengths) => {
                        let buffer = Buffer::new(lengths.header as usize);
                        let payload_bytes = lengths.payload as usize;
                        self.part = Part::Header { buffer, payload_bytes };
                    }
                    Err(error) => self.part = Part::Refused(error),
                }
            }
            Part::Header { buffer, .. } | Part::Payload { buffer, .. } => buffer.fill(count),
            Part::Refused(_) => {}
        }
        self.advance()
    }

    /// Takes a piece of what was sent and gives the frames that it completes.
    ///
    /// # Errors
    /// As [`filled`](Self::filled); frames before the one at fault are lost with it.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let space = self.space();
            let count = space.len().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            space[..count].copy_from_slice(now);
            bytes = later;
            frames.extend(self.filled(count)?);
        }
        Ok(frames)
    }

    /// Whether some of a frame has come, but not all of it.
    #[must_use]
    pub const fn is_within_frame(&self) -> bool {
        !matches!(self.part, Part::Prefix { filled: 0, .. })
    }

    /// How much of the frame at hand has come; none before it has begun.
    #[must_use]
    pub fn unfinished_bytes(&self) -> usize {
        match &self.part {
            Part::Prefix { filled, .. } => *filled,
            Part::Header { buffer, .. } => PREFIX_BYTES + buffer.filled,
            Part::Payload { header, buffer } => PREFIX_BYTES + header.len() + buffer.filled,
            Part::Refused(_) => 0,
        }
    }

    /// Allows no more than this of a payload from the next frame on, where the limits allowed more.
    pub fn limit_payload(&mut self, bytes_max: u32) {
        self.limits.payload_bytes_max = self.limits.payload_bytes_max.min(bytes_max);
    }

    /// Goes on to the next part that is not complete.
    fn advance(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Part::Header { buffer, payload_bytes } = &mut self.part
            && buffer.is_full()
        {
            let (header, payload_bytes) = (buffer.take(), *payload_bytes);
            self.part = Part::Payload { header, buffer: Buffer::new(payload_bytes) };
        }
        match &mut self.part {
            Part::Payload { header, buffer } if buffer.is_full() => {
                let frame = Frame { header: std::mem::take(header), payload: buffer.take() };
                self.part = Part::BEGINNING;
                Ok(Some(frame))
            }
            Part::Refused(error) => Err(*error),
            Part::Prefix { .. } | Part::Header { .. } | Part::Payload { .. } => Ok(None),
        }
    }
}

impl Part {
    const BEGINNING: Self = Self::Prefix { bytes: [0; PREFIX_BYTES], filled: 0 };
}

/// A buffer of known size that grows towards it.
#[derive(Debug)]
struct Buffer {
    bytes: BytesMut,
    filled: usize,
    size: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        Self { bytes: BytesMut::zeroed(size.min(FIRST_BYTES_MAX)), filled: 0, size }
    }

    fn space(&mut self) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            let size = self.bytes.len().saturating_mul(2).min(self.size);
            self.bytes.resize(size, 0);
        }
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }

    fn fill(&mut self, count: usize) {
        self.filled += count;
        assert!(self.filled <= self.bytes.len(), "no more bytes come than there is space");
    }

    const fn is_full(&self) -> bool {
        self.filled == self.size
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes).freeze()
    }
}

#[cfg(test)]
mod tests;
