//! Asking a peer for an adapter that was published: two files, by the name of their content.
//!
//! Who asks says from which byte on, and asks again behind what it got. What came is checked against the
//! name when all of it is there.
//!
//! Who has one may also ask a peer to keep it. The peer says what it lacks, until it has everything or wants
//! no more.

use std::fmt;

use bytes::Bytes;
use prost::Message as _;

use crate::error::ProtocolViolation;
use crate::frame::Frame;
use crate::generated as v1;
use crate::{AdapterId, wire};

/// Most bytes of a part: small beside what a link carries in a second, large beside what is around it.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterRequest {
    /// Send a part.
    Part {
        /// Of which adapter.
        id: AdapterId,
        /// The first byte of the configuration and the weights, one behind the other.
        offset: u64,
    },
    /// Keep an adapter for others.
    Keep(KeepAdapter),
}

/// An adapter that a peer is asked to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepAdapter {
    /// Which.
    pub id: AdapterId,
    /// Bytes of the configuration; at least one.
    pub config_bytes: u64,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// Where `bytes` begin in the configuration and the weights, one behind the other.
    pub offset: u64,
    /// None in the first request; [`PART_BYTES_MAX`] at most.
    pub bytes: Bytes,
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
    /// To who asks to keep one.
    Keeping(Keeping),
}

/// Whether an adapter is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Send the bytes from here on.
    Send {
        /// The first that is lacking.
        offset: u64,
    },
    /// It is, and provided.
    Kept,
    /// It is not.
    Refused(KeepRefusal),
}

/// Why an adapter is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepRefusal {
    /// There is no room now.
    Full,
    /// The sender's own share of the room is used by what it sends just now.
    ShareUsed,
    /// Larger than the peer keeps any, or than the model's adapters are.
    TooLarge,
    /// What was sent has another id.
    OtherContent,
    /// It is no adapter of the model that the peer serves.
    OtherModel,
    /// A reason of a newer version, as it came.
    Unknown(i32),
}

impl fmt::Display for KeepRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "it has no room now",
            Self::ShareUsed => "it takes no more at once from one peer",
            Self::TooLarge => "the adapter is larger than it keeps any",
            Self::OtherContent => "what came has another id",
            Self::OtherModel => "it is no adapter of the model that it serves",
            Self::Unknown(code) => return write!(f, "reason {code} of a newer version"),
        })
    }
}

impl AdapterRequest {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let id_bytes = |id: AdapterId| Bytes::copy_from_slice(id.as_bytes());
        match self {
            Self::Part { id, offset } => {
                wire::header_only(&v1::AdapterRequest { id: id_bytes(id), offset, keep: None })
            }
            Self::Keep(KeepAdapter { id, config_bytes, weights_bytes, offset, bytes }) => {
                let keep = Some(v1::KeepAdapter { config_bytes, weights_bytes });
                let header = v1::AdapterRequest { id: id_bytes(id), offset, keep };
                Frame { header: header.encode_to_vec().into(), payload: bytes }
            }
        }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "adapter request";
        let Frame { header, payload: bytes } = frame;
        let v1::AdapterRequest { id, offset, keep } = wire::decode_header(header, MESSAGE)?;
        let id = AdapterId::from_bytes(wire::array(&id, "the adapter")?);
        let Some(v1::KeepAdapter { config_bytes, weights_bytes }) = keep else {
            wire::no_payload(&bytes, MESSAGE)?;
            return Ok(Self::Part { id, offset });
        };
        wire::at_most("bytes of an adapter", PART_BYTES_MAX, bytes.len())?;
        if config_bytes == 0 {
            return Err(ProtocolViolation::OutOfBounds { field: "bytes of a configuration" });
        }
        Ok(Self::Keep(KeepAdapter { id, config_bytes, weights_bytes, offset, bytes }))
    }
}

impl AdapterAnswer {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        match self {
            Self::Unknown => wire::header_only(&v1::AdapterAnswer::default()),
            Self::Part { config_bytes, weights_bytes, bytes } => {
                let header = v1::AdapterAnswer { config_bytes, weights_bytes, keeping: None };
                Frame { header: header.encode_to_vec().into(), payload: bytes }
            }
            Self::Keeping(keeping) => {
                let keeping = Some(keeping.into());
                wire::header_only(&v1::AdapterAnswer { keeping, ..Default::default() })
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
        let v1::AdapterAnswer { config_bytes, weights_bytes, keeping } =
            wire::decode_header(header, MESSAGE)?;
        if config_bytes == 0 || keeping.is_some() {
            wire::no_payload(&payload, MESSAGE)?;
            return keeping.map_or(Ok(Self::Unknown), |keeping| {
                Keeping::try_from(keeping).map(Self::Keeping)
            });
        }
        wire::at_most("bytes of an adapter", PART_BYTES_MAX, payload.len())?;
        Ok(Self::Part { config_bytes, weights_bytes, bytes: payload })
    }
}

impl From<Keeping> for v1::AdapterKeeping {
    fn from(keeping: Keeping) -> Self {
        let (verdict, offset) = match keeping {
            Keeping::Send { offset } => (v1::KeepingVerdict::Send as i32, offset),
            Keeping::Kept => (v1::KeepingVerdict::Kept as i32, 0),
            Keeping::Refused(why) => {
                let verdict = match why {
                    KeepRefusal::Full => v1::KeepingVerdict::Full as i32,
                    KeepRefusal::ShareUsed => v1::KeepingVerdict::ShareUsed as i32,
                    KeepRefusal::TooLarge => v1::KeepingVerdict::TooLarge as i32,
                    KeepRefusal::OtherContent => v1::KeepingVerdict::OtherContent as i32,
                    KeepRefusal::OtherModel => v1::KeepingVerdict::OtherModel as i32,
                    KeepRefusal::Unknown(code) => code,
                };
                (verdict, 0)
            }
        };
        Self { verdict, offset }
    }
}

impl TryFrom<v1::AdapterKeeping> for Keeping {
    type Error = ProtocolViolation;

    fn try_from(keeping: v1::AdapterKeeping) -> Result<Self, ProtocolViolation> {
        let v1::AdapterKeeping { verdict, offset } = keeping;
        let Ok(known) = v1::KeepingVerdict::try_from(verdict) else {
            return Ok(Self::Refused(KeepRefusal::Unknown(verdict)));
        };
        Ok(match known {
            v1::KeepingVerdict::Unspecified => {
                return Err(ProtocolViolation::OutOfBounds { field: "a verdict" });
            }
            v1::KeepingVerdict::Send => Self::Send { offset },
            v1::KeepingVerdict::Kept => Self::Kept,
            v1::KeepingVerdict::Full => Self::Refused(KeepRefusal::Full),
            v1::KeepingVerdict::ShareUsed => Self::Refused(KeepRefusal::ShareUsed),
            v1::KeepingVerdict::TooLarge => Self::Refused(KeepRefusal::TooLarge),
            v1::KeepingVerdict::OtherContent => Self::Refused(KeepRefusal::OtherContent),
            v1::KeepingVerdict::OtherModel => Self::Refused(KeepRefusal::OtherModel),
        })
    }
}
