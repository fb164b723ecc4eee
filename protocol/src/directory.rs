//! Asking a peer which servers it knows, and telling it of oneself.

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::ProtocolViolation;
use crate::frame::Frame;
use crate::generated as v1;
use crate::generated::{directory_answer, directory_request};
use crate::version::ANSWER_HEADER_BYTES_MAX;
use crate::{ModelId, SignedAnnouncement, wire};

/// Most announcements of one answer.
pub const ANNOUNCEMENTS_MAX: usize = 1024;

/// What is asked of a peer's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryRequest {
    /// Take up this announcement; the answer is [`DirectoryAnswer::Announced`].
    Announce(SignedAnnouncement),
    /// Which servers do you know? The answer is [`DirectoryAnswer::Found`].
    Lookup {
        /// Only those of this model; of every model without one.
        model: Option<ModelId>,
    },
}

/// What a peer's directory answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryAnswer {
    /// The announcement was heard. A directory that is full may not keep it.
    Announced,
    /// The announcements that the peer knows, as they were signed; nobody has checked them.
    Found(Vec<SignedAnnouncement>),
}

impl DirectoryRequest {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let message = match self {
            Self::Announce(signed) => directory_request::Message::Announce(signed.to_wire()),
            Self::Lookup { model } => {
                let model = model.map(wire::model_bytes);
                directory_request::Message::Lookup(v1::Lookup { model })
            }
        };
        wire::header_only(&v1::DirectoryRequest { message: Some(message) })
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "directory request";
        wire::no_payload(&frame.payload, MESSAGE)?;
        match wire::decode_header::<v1::DirectoryRequest>(frame.header, MESSAGE)?.message {
            Some(directory_request::Message::Announce(signed)) => {
                Ok(Self::Announce(SignedAnnouncement::from_wire(&signed)?))
            }
            Some(directory_request::Message::Lookup(v1::Lookup { model })) => {
                Ok(Self::Lookup { model: model.map(|model| wire::model_id(&model)).transpose()? })
            }
            None => Err(ProtocolViolation::UnknownKind { message: MESSAGE }),
        }
    }
}

impl DirectoryAnswer {
    /// The message as it travels. It holds as many announcements as an answer may have and a
    /// frame has room for; those after them are left out.
    #[must_use]
    pub fn encode(self) -> Frame {
        let message = match self {
            Self::Announced => directory_answer::Message::Announced(v1::Announced {}),
            Self::Found(found) => {
                let mut room = ANSWER_HEADER_BYTES_MAX as usize - ANSWER_AROUND_BYTES;
                let announcements = found
                    .iter()
                    .take(ANNOUNCEMENTS_MAX)
                    .map(SignedAnnouncement::to_wire)
                    .take_while(|signed| {
                        let bytes = signed.encoded_len() + ANSWER_AROUND_BYTES;
                        let fits = bytes <= room;
                        room = room.saturating_sub(bytes);
                        fits
                    })
                    .collect();
                directory_answer::Message::Found(v1::Found { announcements })
            }
        };
        wire::header_only(&v1::DirectoryAnswer { message: Some(message) })
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "directory answer";
        wire::no_payload(&frame.payload, MESSAGE)?;
        let malformed = |source| ProtocolViolation::Malformed { message: MESSAGE, source };
        let count = count_announcements(&frame.header).map_err(malformed)?;
        wire::at_most("announcements", ANNOUNCEMENTS_MAX, count)?;
        match wire::decode_header::<v1::DirectoryAnswer>(frame.header, MESSAGE)?.message {
            Some(directory_answer::Message::Announced(v1::Announced {})) => Ok(Self::Announced),
            Some(directory_answer::Message::Found(v1::Found { announcements })) => {
                let found = announcements.iter().map(SignedAnnouncement::from_wire);
                Ok(Self::Found(found.collect::<Result<_, _>>()?))
            }
            None => Err(ProtocolViolation::UnknownKind { message: MESSAGE }),
        }
    }
}

/// Most bytes of a field's number and length.
const ANSWER_AROUND_BYTES: usize = 12;

/// How many announcements an answer claims to have, counted before room is made for them: an
/// empty one takes 2 bytes on the wire and 100 in memory.
fn count_announcements(answer: &[u8]) -> Result<usize, prost::DecodeError> {
    let (mut rest, mut count) = (answer, 0);
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest)?;
        if wire_type == WireType::LengthDelimited {
            let bytes = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX);
            let Some((field, after)) = rest.split_at_checked(bytes) else {
                break;
            };
            rest = after;
            if tag == FOUND_TAG {
                count += count_fields(field)?;
            }
        } else {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        }
    }
    Ok(count)
}

/// The number of `found` in `DirectoryAnswer`.
const FOUND_TAG: u32 = 2;

fn count_fields(mut rest: &[u8]) -> Result<usize, prost::DecodeError> {
    let mut count = 0;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
