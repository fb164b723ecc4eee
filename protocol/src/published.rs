//! Asking a peer for an adapter that was published: two files, by the name of their content.
//!
//! Who asks says from which byte on, and asks again behind what it got. What came is checked against the
//! name when all of it is there.

use bytes::Bytes;
use prost::Message as _;

use crate::error::ProtocolViolation;
use crate::frame::Frame;
use crate::generated as v1;
use crate::{AdapterId, wire};

/// Most bytes of a part: small beside what a link carries in a second, large beside what is around it.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterRequest {
    /// Which adapter.
    pub id: AdapterId,
    /// The first byte of the configuration and the weights, one behind the other.
    pub offset: u64,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterAnswer {
    /// The peer has no such adapter.
    Unknown,
    /// Some bytes of it.
    Part {
        /// Bytes of the configuration; at least one.
        config_bytes: u64,
        /// Bytes of the weights.
        weights_bytes: u64,
        /// [`PART_BYTES_MAX`], or as many as are left.
        bytes: Bytes,
    },
}

impl AdapterRequest {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let id = Bytes::copy_from_slice(self.id.as_bytes());
        wire::header_only(&v1::AdapterRequest { id, offset: self.offset })
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "adapter request";
        wire::no_payload(&frame.payload, MESSAGE)?;
        let request = wire::decode_header::<v1::AdapterRequest>(frame.header, MESSAGE)?;
        let id = AdapterId::from_bytes(wire::array(&request.id, "the adapter")?);
        Ok(Self { id, offset: request.offset })
    }
}

impl AdapterAnswer {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        match self {
            Self::Unknown => wire::header_only(&v1::AdapterAnswer::default()),
            Self::Part { config_bytes, weights_bytes, bytes } => {
                let header = v1::AdapterAnswer { config_bytes, weights_bytes };
                Frame { header: header.encode_to_vec().into(), payload: bytes }
            }
        }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "adapter answer";
        let Frame { header, payload } = frame;
        let v1::AdapterAnswer { config_bytes, weights_bytes } =
            wire::decode_header(header, MESSAGE)?;
        if config_bytes == 0 {
            wire::no_payload(&payload, MESSAGE)?;
            return Ok(Self::Unknown);
        }
        wire::at_most("bytes of an adapter", PART_BYTES_MAX, payload.len())?;
        Ok(Self::Part { config_bytes, weights_bytes, bytes: payload })
    }
}
