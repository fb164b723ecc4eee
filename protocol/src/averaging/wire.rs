//! Between the messages of members and their frames.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::{GROUP_VALUES, MEMBERS_NAMED_MAX, MemberMessage, RUN_VALUES_MAX, Stand};
use crate::error::ProtocolViolation;
use crate::frame::Frame;
use crate::generated as v1;
use crate::generated::member_message::Message as Wire;
use crate::version::{LinkProtocol, Side};
use crate::wire::within;
use crate::{PeerId, wire};

const MESSAGE: &str = "member's message";

/// Most bytes of a hello: a header of its link, without the kind and the length that go before it, which
/// take four.
const HELLO_BYTES_MAX: usize =
    LinkProtocol::Averaging.limits(Side::Opener).header_bytes_max as usize - 4;

impl MemberMessage {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Hello { run, addresses, members } => {
                Wire::Hello(hello_to_wire(run, addresses, members))
            }
            Self::Stand(stand) => Wire::Stand(v1::MemberStand { stand: stand.map(stand_to_wire) }),
            Self::Contribution { start, author, scales, steps } => {
                let value_count = u32::try_from(steps.len()).unwrap_or(u32::MAX);
                let steps = steps.iter().flat_map(|step| step.to_le_bytes());
                payload =
                    steps.chain(scales.iter().flat_map(|scale| scale.to_le_bytes())).collect();
                let author = author.map(wire::peer_bytes).unwrap_or_default();
                let start = Some(stand_to_wire(start));
                Wire::Contribution(v1::RoundContribution { start, author, value_count })
            }
            Self::Proposal { start, deltas } => {
                let delta = |(author, digest): (PeerId, [u8; 32])| v1::ProposedDelta {
                    author: wire::peer_bytes(author),
                    digest: Bytes::copy_from_slice(&digest),
                };
                let deltas = deltas.into_iter().map(delta).collect();
                Wire::Proposal(v1::RoundProposal { start: Some(stand_to_wire(start)), deltas })
            }
            Self::WantDelta { start, author } => Wire::WantDelta(v1::WantDelta {
                start: Some(stand_to_wire(start)),
                author: wire::peer_bytes(author),
            }),
            Self::WantState(stand) => {
                Wire::WantState(v1::WantRunState { stand: Some(stand_to_wire(stand)) })
            }
            Self::State { round, values, momentum } => {
                let value_count = u32::try_from(values.len()).unwrap_or(u32::MAX);
                let rows = values.iter().chain(&momentum);
                payload = rows.flat_map(|value| value.to_le_bytes()).collect();
                Wire::State(v1::RunState { round, value_count })
            }
        };
        let header = v1::MemberMessage { message: Some(message) }.encode_to_vec().into();
        Frame { header, payload }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        let Frame { header, payload } = frame;
        let message = wire::decode_header::<v1::MemberMessage>(header, MESSAGE)?.message;
        match message.ok_or(ProtocolViolation::UnknownKind { message: MESSAGE })? {
            Wire::Contribution(contribution) => self::contribution(&contribution, &payload),
            Wire::State(v1::RunState { round, value_count }) => {
                let count = value_count as usize;
                within(count <= RUN_VALUES_MAX, "the values of a run")?;
                let bytes = as_long(&payload, 8 * count)?;
                let (values, momentum) = bytes.split_at(4 * count);
                Ok(Self::State { round, values: floats(values)?, momentum: floats(momentum)? })
            }
            message @ (Wire::Hello(_)
            | Wire::Stand(_)
            | Wire::Proposal(_)
            | Wire::WantDelta(_)
            | Wire::WantState(_)) => {
                wire::no_payload(&payload, MESSAGE)?;
                Self::without_payload(message)
            }
        }
    }

    fn without_payload(message: Wire) -> Result<Self, ProtocolViolation> {
        match message {
            Wire::Hello(v1::MemberHello { run, addresses, members }) => {
                within(members.len() <= MEMBERS_NAMED_MAX, "the members of a run")?;
                let member = |of: v1::MemberAddresses| {
                    Ok((wire::peer_id(&of.peer)?, wire::addresses(of.addresses)?))
                };
                let members: Result<BTreeMap<_, _>, ProtocolViolation> =
                    members.into_iter().map(member).collect();
                Ok(Self::Hello {
                    run: wire::array(&run, "the run")?,
                    addresses: wire::addresses(addresses)?,
                    members: members?,
                })
            }
            Wire::Stand(v1::MemberStand { stand: None }) => Ok(Self::Stand(None)),
            Wire::Stand(v1::MemberStand { stand }) => Ok(Self::Stand(Some(self::stand(stand)?))),
            Wire::Proposal(v1::RoundProposal { start, deltas }) => {
                within(deltas.len() <= MEMBERS_NAMED_MAX, "the deltas of a round")?;
                let delta = |of: v1::ProposedDelta| {
                    Ok((wire::peer_id(&of.author)?, wire::array(&of.digest, "the delta")?))
                };
                let deltas: Result<BTreeMap<_, _>, ProtocolViolation> =
                    deltas.into_iter().map(delta).collect();
                Ok(Self::Proposal { start: self::stand(start)?, deltas: deltas? })
            }
            Wire::WantDelta(v1::WantDelta { start, author }) => {
                Ok(Self::WantDelta { start: self::stand(start)?, author: wire::peer_id(&author)? })
            }
            Wire::WantState(v1::WantRunState { stand }) => Ok(Self::WantState(self::stand(stand)?)),
            Wire::Contribution(_) | Wire::State(_) => {
                Err(ProtocolViolation::Missing { field: "the values" })
            }
        }
    }
}

/// A hello that names as many members as its link has room for: all that it may name, with as many
/// addresses as each may have, would take four such headers.
fn hello_to_wire(
    run: [u8; 32],
    addresses: Vec<String>,
    members: BTreeMap<PeerId, Vec<String>>,
) -> v1::MemberHello {
    let mut hello = v1::MemberHello {
        run: Bytes::copy_from_slice(&run),
        addresses: wire::addresses_to_wire(addresses),
        members: Vec::new(),
    };
    let mut bytes = hello.encoded_len();
    for (peer, addresses) in members {
        let peer = wire::peer_bytes(peer);
        let member = v1::MemberAddresses { peer, addresses: wire::addresses_to_wire(addresses) };
        let length = member.encoded_len();
        // A byte for the field's number.
        let more = 1 + prost::length_delimiter_len(length) + length;
        if hello.members.len() < MEMBERS_NAMED_MAX && bytes + more <= HELLO_BYTES_MAX {
            bytes += more;
            hello.members.push(member);
        }
    }
    hello
}

fn contribution(
    contribution: &v1::RoundContribution,
    payload: &Bytes,
) -> Result<MemberMessage, ProtocolViolation> {
    let v1::RoundContribution { start, author, value_count } = contribution;
    let count = *value_count as usize;
    within(count <= RUN_VALUES_MAX, "the values of a run")?;
    let payload = as_long(payload, count + 4 * count.div_ceil(GROUP_VALUES))?;
    let (steps, scales) = payload.split_at(count);
    let author = if author.is_empty() { None } else { Some(wire::peer_id(author)?) };
    Ok(MemberMessage::Contribution {
        start: stand(start.clone())?,
        author,
        scales: floats(scales)?,
        steps: steps.iter().map(|byte| i8::from_le_bytes([*byte])).collect(),
    })
}

/// A payload that has to be of this length.
fn as_long(payload: &Bytes, bytes: usize) -> Result<&[u8], ProtocolViolation> {
    within(payload.len() == bytes, "the bytes of the values")?;
    Ok(payload)
}

/// Numbers of binary32, none of which is infinite or no number.
fn floats(bytes: &[u8]) -> Result<Vec<f32>, ProtocolViolation> {
    let floats: Vec<_> =
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    within(floats.iter().all(|value| value.is_finite()), "the values of a run")?;
    Ok(floats)
}

fn stand(stand: Option<v1::Stand>) -> Result<Stand, ProtocolViolation> {
    let v1::Stand { round, digest } = wire::required(stand, "the state")?;
    Ok(Stand { round, digest: wire::array(&digest, "the state")? })
}

fn stand_to_wire(stand: Stand) -> v1::Stand {
    v1::Stand { round: stand.round, digest: Bytes::copy_from_slice(&stand.digest) }
}
