//! Between the messages of a session and their frames.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::{
    ClientMessage, DETAIL_BYTES_MAX, HOPS_MAX, HopTiming, NextHop, OpenSession, PushMessage,
    ServerMessage, SessionError, Step,
};
use crate::error::{ErrorCode, ProtocolViolation};
use crate::frame::Frame;
use crate::generated as v1;
use crate::generated::{client_message, push_message, server_message};
use crate::{StepId, wire};

impl ClientMessage {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Open(open) => client_message::Message::Open(open.into()),
            Self::Step(step) => client_message::Message::Step(step_to_wire(step, &mut payload)),
            Self::Close { session } => {
                let session = wire::session_bytes(session);
                client_message::Message::Close(v1::CloseSession { session })
            }
        };
        let header = v1::ClientMessage { message: Some(message) }.encode_to_vec().into();
        Frame { header, payload }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        let Frame { header, payload } = frame;
        let message = wire::decode_header::<v1::ClientMessage>(header, "client's message")?.message;
        match message {
            Some(client_message::Message::Open(open)) => {
                wire::no_payload(&payload, "Open")?;
                Ok(Self::Open(open.try_into()?))
            }
            Some(client_message::Message::Step(step)) => {
                Ok(Self::Step(step_from_wire(step, payload)?))
            }
            Some(client_message::Message::Close(v1::CloseSession { session })) => {
                wire::no_payload(&payload, "Close")?;
                Ok(Self::Close { session: wire::session_id(&session)? })
            }
            None => Err(ProtocolViolation::UnknownKind { message: "client's message" }),
        }
    }
}

impl ServerMessage {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Opened { session, tokens_max } => {
                let session = wire::session_bytes(session);
                server_message::Message::Opened(v1::SessionOpened { session, tokens_max })
            }
            Self::Output(step) => server_message::Message::Output(step_to_wire(step, &mut payload)),
            Self::Error(error) => server_message::Message::Error(error.into()),
            Self::Closed { session } => {
                let session = wire::session_bytes(session);
                server_message::Message::Closed(v1::SessionClosed { session })
            }
        };
        let header = v1::ServerMessage { message: Some(message) }.encode_to_vec().into();
        Frame { header, payload }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        let Frame { header, payload } = frame;
        let message = wire::decode_header::<v1::ServerMessage>(header, "server's message")?.message;
        match message {
            Some(server_message::Message::Opened(v1::SessionOpened { session, tokens_max })) => {
                wire::no_payload(&payload, "Opened")?;
                Ok(Self::Opened { session: wire::session_id(&session)?, tokens_max })
            }
            Some(server_message::Message::Output(step)) => {
                Ok(Self::Output(step_from_wire(step, payload)?))
            }
            Some(server_message::Message::Error(error)) => {
                wire::no_payload(&payload, "Error")?;
                Ok(Self::Error(error.try_into()?))
            }
            Some(server_message::Message::Closed(v1::SessionClosed { session })) => {
                wire::no_payload(&payload, "Closed")?;
                Ok(Self::Closed { session: wire::session_id(&session)? })
            }
            None => Err(ProtocolViolation::UnknownKind { message: "server's message" }),
        }
    }
}

impl PushMessage {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Step(step) => push_message::Message::Step(step_to_wire(step, &mut payload)),
        };
        let header = v1::PushMessage { message: Some(message) }.encode_to_vec().into();
        Frame { header, payload }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        let Frame { header, payload } = frame;
        match wire::decode_header::<v1::PushMessage>(header, "push")?.message {
            Some(push_message::Message::Step(step)) => {
                Ok(Self::Step(step_from_wire(step, payload)?))
            }
            None => Err(ProtocolViolation::UnknownKind { message: "push" }),
        }
    }
}

impl From<OpenSession> for v1::OpenSession {
    fn from(open: OpenSession) -> Self {
        Self {
            session: wire::session_bytes(open.session),
            model: wire::model_bytes(open.model),
            blocks: Some(wire::span_to_wire(open.blocks)),
            tokens_max: open.tokens_max,
            previous: open.previous.map(wire::peer_bytes),
            next: open.next.map(|next| v1::NextHop {
                peer: wire::peer_bytes(next.peer),
                addresses: wire::addresses_to_wire(next.addresses),
            }),
        }
    }
}

impl TryFrom<v1::OpenSession> for OpenSession {
    type Error = ProtocolViolation;

    fn try_from(open: v1::OpenSession) -> Result<Self, ProtocolViolation> {
        let next = |next: v1::NextHop| {
            let peer = wire::peer_id(&next.peer)?;
            Ok::<_, ProtocolViolation>(NextHop {
                peer,
                addresses: wire::addresses(next.addresses)?,
            })
        };
        Ok(Self {
            session: wire::session_id(&open.session)?,
            model: wire::model_id(&open.model)?,
            blocks: wire::span(open.blocks)?,
            tokens_max: open.tokens_max,
            previous: open.previous.map(|peer| wire::peer_id(&peer)).transpose()?,
            next: open.next.map(next).transpose()?,
        })
    }
}

impl From<SessionError> for v1::SessionError {
    fn from(error: SessionError) -> Self {
        Self {
            session: wire::session_bytes(error.session),
            step: error.step.map(|step| step.0),
            code: error.code.to_wire(),
            detail: wire::cut(error.detail, DETAIL_BYTES_MAX),
        }
    }
}

impl TryFrom<v1::SessionError> for SessionError {
    type Error = ProtocolViolation;

    fn try_from(error: v1::SessionError) -> Result<Self, ProtocolViolation> {
        wire::not_longer("an error's detail", DETAIL_BYTES_MAX, &error.detail)?;
        Ok(Self {
            session: wire::session_id(&error.session)?,
            step: error.step.map(StepId),
            code: ErrorCode::from_wire(error.code),
            detail: error.detail,
        })
    }
}

/// The header of a step; its elements go to `payload`.
fn step_to_wire(step: Step, payload: &mut Bytes) -> v1::Step {
    payload.clone_from(step.hidden.payload());
    let timing = |hop: &HopTiming| v1::HopTiming {
        peer: wire::peer_bytes(hop.peer),
        span: Some(wire::span_to_wire(hop.span)),
        queue_ns: wire::nanoseconds(hop.queue),
        compute_ns: wire::nanoseconds(hop.compute),
        hop_ns: wire::nanoseconds(hop.hop),
        link_round_trip_ns: hop.link_round_trip.map(wire::nanoseconds),
    };
    v1::Step {
        session: wire::session_bytes(step.session),
        step: step.step.0,
        position: step.position,
        hidden: Some(wire::tensor_to_wire(&step.hidden)),
        trace: step.trace.iter().take(HOPS_MAX).map(timing).collect(),
    }
}

fn step_from_wire(step: v1::Step, payload: Bytes) -> Result<Step, ProtocolViolation> {
    wire::at_most("hops in a trace", HOPS_MAX, step.trace.len())?;
    let timing = |hop: v1::HopTiming| {
        Ok::<_, ProtocolViolation>(HopTiming {
            peer: wire::peer_id(&hop.peer)?,
            span: wire::span(hop.span)?,
            queue: Duration::from_nanos(hop.queue_ns),
            compute: Duration::from_nanos(hop.compute_ns),
            hop: Duration::from_nanos(hop.hop_ns),
            link_round_trip: hop.link_round_trip_ns.map(Duration::from_nanos),
        })
    };
    let hidden = wire::tensor(step.hidden, payload)?;
    if hidden.payload().is_empty() {
        return Err(ProtocolViolation::NoTokens);
    }
    let trace = step.trace.into_iter().map(timing).collect::<Result<_, _>>()?;
    let step = Step {
        session: wire::session_id(&step.session)?,
        step: StepId(step.step),
        position: step.position,
        hidden,
        trace,
    };
    match step.end_position() {
        Some(_) => Ok(step),
        None => {
            let (position, tokens) = (step.position, step.token_count());
            Err(ProtocolViolation::PositionOverflow { position, tokens })
        }
    }
}
