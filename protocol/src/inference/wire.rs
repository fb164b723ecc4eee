//! Between the messages of a session and their frames.

mod adapter;
mod draw;
mod prefix;
mod repair;

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::{
    AnswerRows, ClientMessage, DETAIL_BYTES_MAX, HOPS_MAX, HopTiming, OpenSession, PushMessage,
    ServerMessage, SessionAdapter, SessionError, Step,
};
use crate::compression::Packing;
use crate::error::{ErrorCode, ProtocolViolation};
use crate::frame::Frame;
use crate::generated as v1;
use crate::generated::{client_message, push_message, server_message};
use crate::{DType, StepId, wire};

impl ClientMessage {
    /// The message as it travels, with its elements as they are.
    #[must_use]
    pub fn encode(self) -> Frame {
        self.encode_as(Packing::Plain)
    }

    /// The message as it travels.
    #[must_use]
    pub fn encode_as(self, packing: Packing) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Open(open) => client_message::Message::Open(open.into()),
            Self::Step(step) => {
                client_message::Message::Step(step_to_wire(step, packing, &mut payload))
            }
            Self::Close { session } => {
                let session = wire::session_bytes(session);
                client_message::Message::Close(v1::CloseSession { session })
            }
            Self::Redirect(redirect) => client_message::Message::Redirect(redirect.into()),
            Self::Adopt(adopt) => client_message::Message::Adopt(adopt.into()),
            Self::Ping { session } => {
                let session = wire::session_bytes(session);
                client_message::Message::Ping(v1::Ping { session })
            }
            Self::Keep(keep) => client_message::Message::Keep(keep.into()),
            Self::Draw(draw) => {
                client_message::Message::Draw(draw::draw_to_wire(draw, &mut payload))
            }
            Self::Adapter(part) => {
                client_message::Message::Adapter(adapter::part_to_wire(part, &mut payload))
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
        const MESSAGE: &str = "client's message";
        let message = wire::decode_header::<v1::ClientMessage>(header, MESSAGE)?.message;
        let message = message.ok_or(ProtocolViolation::UnknownKind { message: MESSAGE })?;
        let has_payload = matches!(
            message,
            client_message::Message::Step(_)
                | client_message::Message::Draw(_)
                | client_message::Message::Adapter(_)
        );
        if !has_payload {
            wire::no_payload(&payload, MESSAGE)?;
        }
        match message {
            client_message::Message::Step(step) => Ok(Self::Step(step_from_wire(step, payload)?)),
            client_message::Message::Draw(draw) => {
                Ok(Self::Draw(draw::draw_from_wire(draw, &payload)?))
            }
            client_message::Message::Adapter(part) => {
                Ok(Self::Adapter(adapter::part_from_wire(part, payload)?))
            }
            client_message::Message::Open(open) => Ok(Self::Open(open.try_into()?)),
            client_message::Message::Close(v1::CloseSession { session }) => {
                Ok(Self::Close { session: wire::session_id(&session)? })
            }
            client_message::Message::Redirect(redirect) => Ok(Self::Redirect(redirect.try_into()?)),
            client_message::Message::Adopt(adopt) => Ok(Self::Adopt(adopt.try_into()?)),
            client_message::Message::Ping(v1::Ping { session }) => {
                Ok(Self::Ping { session: wire::session_id(&session)? })
            }
            client_message::Message::Keep(keep) => Ok(Self::Keep(keep.try_into()?)),
        }
    }
}

impl ServerMessage {
    /// The message as it travels, with its elements as they are.
    #[must_use]
    pub fn encode(self) -> Frame {
        self.encode_as(Packing::Plain)
    }

    /// The message as it travels.
    #[must_use]
    pub fn encode_as(self, packing: Packing) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Opened { session, tokens_max, kept, adapter } => {
                let session = wire::session_bytes(session);
                let opened = v1::SessionOpened { session, tokens_max, kept, adapter };
                server_message::Message::Opened(opened)
            }
            Self::AdapterWanted { session, offset } => {
                let session = wire::session_bytes(session);
                server_message::Message::AdapterWanted(v1::AdapterWanted { session, offset })
            }
            Self::Output(step) => {
                server_message::Message::Output(step_to_wire(step, packing, &mut payload))
            }
            Self::Error(error) => server_message::Message::Error(error.into()),
            Self::Closed { session } => {
                let session = wire::session_bytes(session);
                server_message::Message::Closed(v1::SessionClosed { session })
            }
            Self::Redirected { session, mirror, complete } => {
                let session = wire::session_bytes(session);
                server_message::Message::Redirected(v1::Redirected { session, mirror, complete })
            }
            Self::Adopted { session, position } => {
                let session = wire::session_bytes(session);
                server_message::Message::Adopted(v1::Adopted { session, position })
            }
            Self::Pong { session, received, computed } => {
                let session = wire::session_bytes(session);
                server_message::Message::Pong(v1::Pong { session, received, computed })
            }
            Self::Draining { session } => {
                let session = wire::session_bytes(session);
                server_message::Message::Draining(v1::SessionDraining { session })
            }
            Self::Trouble(trouble) => server_message::Message::Trouble(trouble.into()),
            Self::DrawTaken { session } => {
                let session = wire::session_bytes(session);
                server_message::Message::DrawTaken(v1::DrawTaken { session })
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
        const MESSAGE: &str = "server's message";
        let message = wire::decode_header::<v1::ServerMessage>(header, MESSAGE)?.message;
        let message = message.ok_or(ProtocolViolation::UnknownKind { message: MESSAGE })?;
        if let server_message::Message::Output(step) = message {
            return Ok(Self::Output(step_from_wire(step, payload)?));
        }
        wire::no_payload(&payload, MESSAGE)?;
        Ok(match message {
            server_message::Message::Output(_) => unreachable!("it was read above"),
            server_message::Message::Opened(opened) => {
                let v1::SessionOpened { session, tokens_max, kept, adapter } = opened;
                Self::Opened { session: wire::session_id(&session)?, tokens_max, kept, adapter }
            }
            server_message::Message::AdapterWanted(v1::AdapterWanted { session, offset }) => {
                Self::AdapterWanted { session: wire::session_id(&session)?, offset }
            }
            server_message::Message::Error(error) => Self::Error(error.try_into()?),
            server_message::Message::Closed(v1::SessionClosed { session }) => {
                Self::Closed { session: wire::session_id(&session)? }
            }
            server_message::Message::Redirected(v1::Redirected { session, mirror, complete }) => {
                Self::Redirected { session: wire::session_id(&session)?, mirror, complete }
            }
            server_message::Message::Adopted(v1::Adopted { session, position }) => {
                Self::Adopted { session: wire::session_id(&session)?, position }
            }
            server_message::Message::Pong(v1::Pong { session, received, computed }) => {
                Self::Pong { session: wire::session_id(&session)?, received, computed }
            }
            server_message::Message::Draining(v1::SessionDraining { session }) => {
                Self::Draining { session: wire::session_id(&session)? }
            }
            server_message::Message::Trouble(trouble) => Self::Trouble(trouble.try_into()?),
            server_message::Message::DrawTaken(v1::DrawTaken { session }) => {
                Self::DrawTaken { session: wire::session_id(&session)? }
            }
        })
    }
}

impl PushMessage {
    /// The message as it travels, with its elements as they are.
    #[must_use]
    pub fn encode(self) -> Frame {
        self.encode_as(Packing::Plain)
    }

    /// The message as it travels.
    #[must_use]
    pub fn encode_as(self, packing: Packing) -> Frame {
        let mut payload = Bytes::new();
        let message = match self {
            Self::Step(step) => {
                push_message::Message::Step(step_to_wire(step, packing, &mut payload))
            }
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

/// The type, or what means binary32 where nothing is said.
const fn unless_f32(dtype: DType) -> v1::DType {
    match dtype {
        DType::F32 => v1::DType::Unspecified,
        other @ (DType::F16 | DType::BF16 | DType::Q8 | DType::Id) => wire::dtype_to_wire(other),
    }
}

impl From<OpenSession> for v1::OpenSession {
    fn from(open: OpenSession) -> Self {
        let (next, held) = repair::destination_to_wire(open.next, open.session);
        Self {
            session: wire::session_bytes(open.session),
            model: wire::model_bytes(open.model),
            blocks: Some(wire::span_to_wire(open.blocks)),
            tokens_max: open.tokens_max,
            previous: open.previous.map(wire::peer_bytes),
            next,
            held,
            next_position: open.next_position,
            next_step: open.next_step.0,
            results: unless_f32(open.results).into(),
            compress: open.compress,
            cache: unless_f32(open.cache).into(),
            prefix: prefix::to_wire(&open.prefix),
            thin: open.thin,
            drawer: open.drawer.map(wire::peer_bytes),
            adapter: open.adapter.map(Into::into),
        }
    }
}

impl TryFrom<v1::OpenSession> for OpenSession {
    type Error = ProtocolViolation;

    fn try_from(open: v1::OpenSession) -> Result<Self, ProtocolViolation> {
        let session = wire::session_id(&open.session)?;
        Ok(Self {
            session,
            model: wire::model_id(&open.model)?,
            blocks: wire::span(open.blocks)?,
            tokens_max: open.tokens_max,
            previous: open.previous.map(|peer| wire::peer_id(&peer)).transpose()?,
            next: repair::destination(open.next, open.held, session)?,
            next_position: open.next_position,
            next_step: StepId(open.next_step),
            results: wire::number_dtype(open.results)?,
            compress: open.compress,
            cache: wire::number_dtype(open.cache)?,
            prefix: prefix::from_wire(&open.prefix)?,
            thin: open.thin,
            drawer: open.drawer.map(|peer| wire::peer_id(&peer)).transpose()?,
            adapter: open.adapter.map(SessionAdapter::try_from).transpose()?,
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
        Ok(Self {
            session: wire::session_id(&error.session)?,
            step: error.step.map(StepId),
            code: ErrorCode::from_wire(error.code),
            detail: wire::own_words("an error's detail", DETAIL_BYTES_MAX, &error.detail)?,
        })
    }
}

/// The header of a step; its elements go to `payload`.
fn step_to_wire(step: Step, packing: Packing, payload: &mut Bytes) -> v1::Step {
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
        hidden: Some(wire::tensor_to_wire(&step.hidden, packing, payload)),
        trace: step.trace.iter().take(HOPS_MAX).map(timing).collect(),
        replay: step.replay,
        answer_rows: match step.answer_rows {
            AnswerRows::All => v1::AnswerRows::Unspecified.into(),
            AnswerRows::Last => v1::AnswerRows::Last.into(),
        },
        goes_on: step.goes_on,
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
        replay: step.replay,
        answer_rows: match v1::AnswerRows::try_from(step.answer_rows) {
            Ok(v1::AnswerRows::Unspecified) => AnswerRows::All,
            Ok(v1::AnswerRows::Last) => AnswerRows::Last,
            Err(_) => {
                let code = step.answer_rows;
                return Err(ProtocolViolation::UnknownAnswerRows { code });
            }
        },
        goes_on: step.goes_on,
    };
    match step.end_position() {
        Some(_) => Ok(step),
        None => {
            let (position, tokens) = (step.position, step.token_count());
            Err(ProtocolViolation::PositionOverflow { position, tokens })
        }
    }
}
