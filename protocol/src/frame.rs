//! How a message travels on a link: a prefix of two lengths, a protobuf header, raw bytes.
//!
//! ```text
//! 0        4         8           8 + h                 8 + h + p
//! | h: u32 | p: u32  | header    | payload             |
//! ```
//!
//! Both lengths are little-endian. The payload is the elements of the one tensor that the header
//! describes, so that hidden states pass from socket to engine without being copied.

mod decoder;

use std::fmt;

use bytes::Bytes;

pub use decoder::FrameDecoder;

/// Bytes before the header.
pub const PREFIX_BYTES: usize = 8;

/// One message as it travels, without its prefix.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// A protobuf message, at most 4 GiB.
    pub header: Bytes,
    /// The elements of a tensor, at most 4 GiB.
    pub payload: Bytes,
}

impl Frame {
    /// Bytes on the link, prefix included.
    #[must_use]
    pub const fn wire_bytes(&self) -> usize {
        PREFIX_BYTES + self.header.len() + self.payload.len()
    }
}

impl fmt::Debug for Frame {
    /// The lengths; never the content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} + {} bytes)", self.header.len(), self.payload.len())
    }
}

/// The bytes that go before `frame`.
///
/// # Errors
/// [`FrameError`] where the frame is above what its reader allows, so that the mistake shows here
/// and not as a link that the reader closes.
pub fn encode_prefix(frame: &Frame, limits: Limits) -> Result<[u8; PREFIX_BYTES], FrameError> {
    let of = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let lengths = Lengths { header: of(&frame.header), payload: of(&frame.payload) };
    limits.check(lengths)?;
    let ([a, b, c, d], [e, f, g, h]) =
        (lengths.header.to_le_bytes(), lengths.payload.to_le_bytes());
    Ok([a, b, c, d, e, f, g, h])
}

/// What a prefix claims of the bytes behind it.
///
/// # Errors
/// [`FrameError`] where that is more than `limits` allow; nothing has been allocated by then.
pub fn read_prefix(prefix: &[u8; PREFIX_BYTES], limits: Limits) -> Result<Lengths, FrameError> {
    let [a, b, c, d, e, f, g, h] = *prefix;
    let lengths = Lengths {
        header: u32::from_le_bytes([a, b, c, d]),
        payload: u32::from_le_bytes([e, f, g, h]),
    };
    limits.check(lengths)?;
    Ok(lengths)
}

/// The bytes that follow a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Bytes of the header.
    pub header: u32,
    /// Bytes of the payload.
    pub payload: u32,
}

/// The most that a frame may hold, by the protocol of its link
/// ([`LinkProtocol::limits`](crate::LinkProtocol::limits)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the header.
    pub header_bytes_max: u32,
    /// Bytes of the payload.
    pub payload_bytes_max: u32,
}

impl Limits {
    const fn check(self, lengths: Lengths) -> Result<(), FrameError> {
        let Lengths { header, payload } = lengths;
        if header > self.header_bytes_max {
            return Err(FrameError::Header { bytes: header, max: self.header_bytes_max });
        }
        if payload > self.payload_bytes_max {
            return Err(FrameError::Payload { bytes: payload, max: self.payload_bytes_max });
        }
        Ok(())
    }
}

/// A frame that is larger than its link allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header is.
    #[error("a frame's header of {bytes} bytes; this link allows {max}")]
    Header {
        /// Bytes that it claims.
        bytes: u32,
        /// Bytes that are allowed.
        max: u32,
    },
    /// The payload is.
    #[error("a frame's payload of {bytes} bytes; this link allows {max}")]
    Payload {
        /// Bytes that it claims.
        bytes: u32,
        /// Bytes that are allowed.
        max: u32,
    },
}
