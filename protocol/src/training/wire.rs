//! Between the messages of a training and their frames.

use bytes::Bytes;
use prost::Message;

use super::{
    ForwardMicrobatch, OpenTraining, OptimizerStep, SEQUENCES_MAX, STATE_VALUES_MAX, StateKind,
    StateValues, TrainerMessage, TrainingAnswer, TrainingSequence,
};
use crate::compression::Packing;
use crate::error::{ErrorCode, ProtocolViolation};
use crate::frame::Frame;
use crate::generated as v1;
use crate::generated::{trainer_message, training_answer};
use crate::inference::DETAIL_BYTES_MAX;
use crate::wire::within;
use crate::{DType, Tensor, wire};

impl TrainerMessage {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        use trainer_message::Message as Wire;
        let mut payload = Bytes::new();
        let message = match self {
            Self::Open(open) => Wire::Open(open.into()),
            Self::Write(state) => {
                let StateValues { kind, offset, values } = state;
                let values = Some(plain(&values, &mut payload));
                Wire::Write(v1::WriteState { kind: kind.to_wire(), offset, values })
            }
            Self::Forward(forward) => Wire::Forward(forward_to_wire(forward, &mut payload)),
            Self::Backward { microbatch, gradient, apart } => {
                let gradient = Some(plain(&gradient, &mut payload));
                Wire::Backward(v1::TrainBackward { microbatch, gradient, apart })
            }
            Self::Read { kind, offset, count } => {
                Wire::Read(v1::ReadState { kind: kind.to_wire(), offset, count })
            }
            Self::RowNorms { offset, count } => Wire::RowNorms(v1::ReadRowNorms { offset, count }),
            Self::Step(OptimizerStep { number, learning_rate, factor }) => {
                Wire::Step(v1::OptimizerStep { number, learning_rate, factor })
            }
            Self::Close => Wire::Close(v1::CloseTraining {}),
        };
        let header = v1::TrainerMessage { message: Some(message) }.encode_to_vec().into();
        Frame { header, payload }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        use trainer_message::Message as Wire;
        const MESSAGE: &str = "trainer's message";
        let Frame { header, payload } = frame;
        let message = wire::decode_header::<v1::TrainerMessage>(header, MESSAGE)?.message;
        match message.ok_or(ProtocolViolation::UnknownKind { message: MESSAGE })? {
            Wire::Write(v1::WriteState { kind, offset, values }) => {
                Ok(Self::Write(state(kind, offset, values, payload)?))
            }
            Wire::Forward(forward) => Ok(Self::Forward(forward_from_wire(forward, payload)?)),
            Wire::Backward(v1::TrainBackward { microbatch, gradient, apart }) => {
                Ok(Self::Backward { microbatch, gradient: rows(gradient, payload)?, apart })
            }
            message @ (Wire::Open(_)
            | Wire::Read(_)
            | Wire::RowNorms(_)
            | Wire::Step(_)
            | Wire::Close(_)) => {
                wire::no_payload(&payload, MESSAGE)?;
                Self::without_payload(message)
            }
        }
    }

    fn without_payload(message: trainer_message::Message) -> Result<Self, ProtocolViolation> {
        use trainer_message::Message as Wire;
        match message {
            Wire::Open(open) => Ok(Self::Open(open.try_into()?)),
            Wire::Read(v1::ReadState { kind, offset, count }) => {
                within(is_part(count), "the number of values")?;
                Ok(Self::Read { kind: StateKind::from_wire(kind)?, offset, count })
            }
            Wire::RowNorms(v1::ReadRowNorms { offset, count }) => {
                within(is_part(count), "the number of norms")?;
                Ok(Self::RowNorms { offset, count })
            }
            Wire::Step(v1::OptimizerStep { number, learning_rate, factor }) => {
                let fits = |value: f64| value.is_finite() && value >= 0.0;
                within(fits(learning_rate), "the learning rate")?;
                within(fits(factor), "the factor of gradients")?;
                Ok(Self::Step(OptimizerStep { number, learning_rate, factor }))
            }
            Wire::Close(v1::CloseTraining {}) => Ok(Self::Close),
            Wire::Write(_) | Wire::Forward(_) | Wire::Backward(_) => {
                Err(ProtocolViolation::Missing { field: "the tensor" })
            }
        }
    }
}

impl TrainingAnswer {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        use training_answer::Message as Wire;
        let mut payload = Bytes::new();
        let message = match self {
            Self::Opened { steps, resumed, value_count } => {
                Wire::Opened(v1::TrainingOpened { steps, resumed, value_count })
            }
            Self::Written => Wire::Written(v1::StateWritten {}),
            Self::Forwarded { microbatch, hidden } => {
                let hidden = Some(plain(&hidden, &mut payload));
                Wire::Forwarded(v1::TrainForwarded { microbatch, hidden })
            }
            Self::Backwarded { microbatch, gradient } => {
                let gradient = Some(plain(&gradient, &mut payload));
                Wire::Backwarded(v1::TrainBackwarded { microbatch, gradient })
            }
            Self::State(StateValues { kind, offset, values }) => {
                let values = Some(plain(&values, &mut payload));
                Wire::Read(v1::StateRead { kind: kind.to_wire(), offset, values })
            }
            Self::RowNorms { offset, norms } => {
                let norms = Some(plain(&norms, &mut payload));
                Wire::RowNorms(v1::RowNormsRead { offset, norms })
            }
            Self::Stepped { number, digest } => {
                let digest = Bytes::copy_from_slice(&digest);
                Wire::Stepped(v1::OptimizerStepped { number, digest })
            }
            Self::Closed => Wire::Closed(v1::TrainingClosed {}),
            Self::Error { code, detail } => {
                let detail = wire::cut(detail, DETAIL_BYTES_MAX);
                Wire::Error(v1::TrainingError { code: code.to_wire(), detail })
            }
        };
        let header = v1::TrainingAnswer { message: Some(message) }.encode_to_vec().into();
        Frame { header, payload }
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        use training_answer::Message as Wire;
        const MESSAGE: &str = "answer to a trainer";
        let Frame { header, payload } = frame;
        let message = wire::decode_header::<v1::TrainingAnswer>(header, MESSAGE)?.message;
        match message.ok_or(ProtocolViolation::UnknownKind { message: MESSAGE })? {
            Wire::Forwarded(v1::TrainForwarded { microbatch, hidden }) => {
                Ok(Self::Forwarded { microbatch, hidden: rows(hidden, payload)? })
            }
            Wire::Backwarded(v1::TrainBackwarded { microbatch, gradient }) => {
                Ok(Self::Backwarded { microbatch, gradient: rows(gradient, payload)? })
            }
            Wire::Read(v1::StateRead { kind, offset, values }) => {
                Ok(Self::State(state(kind, offset, values, payload)?))
            }
            Wire::RowNorms(v1::RowNormsRead { offset, norms }) => {
                let norms = row_norms(offset, norms, payload)?;
                Ok(Self::RowNorms { offset, norms })
            }
            message @ (Wire::Opened(_)
            | Wire::Written(_)
            | Wire::Stepped(_)
            | Wire::Closed(_)
            | Wire::Error(_)) => {
                wire::no_payload(&payload, MESSAGE)?;
                Self::without_payload(message)
            }
        }
    }

    fn without_payload(message: training_answer::Message) -> Result<Self, ProtocolViolation> {
        use training_answer::Message as Wire;
        match message {
            Wire::Opened(v1::TrainingOpened { steps, resumed, value_count }) => {
                Ok(Self::Opened { steps, resumed, value_count })
            }
            Wire::Written(v1::StateWritten {}) => Ok(Self::Written),
            Wire::Stepped(v1::OptimizerStepped { number, digest }) => {
                Ok(Self::Stepped { number, digest: wire::array(&digest, "the digest")? })
            }
            Wire::Closed(v1::TrainingClosed {}) => Ok(Self::Closed),
            Wire::Error(v1::TrainingError { code, detail }) => {
                let detail = wire::own_words("an error's detail", DETAIL_BYTES_MAX, &detail)?;
                Ok(Self::Error { code: ErrorCode::from_wire(code), detail })
            }
            Wire::Forwarded(_) | Wire::Backwarded(_) | Wire::Read(_) | Wire::RowNorms(_) => {
                Err(ProtocolViolation::Missing { field: "the tensor" })
            }
        }
    }
}

impl From<OpenTraining> for v1::OpenTraining {
    fn from(open: OpenTraining) -> Self {
        Self {
            session: wire::session_bytes(open.session),
            model: wire::model_bytes(open.model),
            blocks: Some(wire::span_to_wire(open.blocks)),
            adapter: Some(open.adapter.into()),
            optimizer: Some(open.optimizer.into()),
            seed: open.seed,
            steps: open.steps,
            tokens_max: open.tokens_max,
        }
    }
}

impl TryFrom<v1::OpenTraining> for OpenTraining {
    type Error = ProtocolViolation;

    fn try_from(open: v1::OpenTraining) -> Result<Self, ProtocolViolation> {
        Ok(Self {
            session: wire::session_id(&open.session)?,
            model: wire::model_id(&open.model)?,
            blocks: wire::span(open.blocks)?,
            adapter: wire::required(open.adapter, "the adapter")?.try_into()?,
            optimizer: wire::required(open.optimizer, "the optimizer")?.try_into()?,
            seed: open.seed,
            steps: open.steps,
            tokens_max: open.tokens_max,
        })
    }
}

fn forward_to_wire(forward: ForwardMicrobatch, payload: &mut Bytes) -> v1::TrainForward {
    let ForwardMicrobatch { microbatch, sequences, evaluate, hidden } = forward;
    let sequence = |sequence: &TrainingSequence| v1::TrainingSequence {
        tokens: sequence.tokens,
        dropout_seed: sequence.dropout_seed,
    };
    let sequences = sequences.iter().map(sequence).collect();
    v1::TrainForward { microbatch, sequences, evaluate, hidden: Some(plain(&hidden, payload)) }
}

fn forward_from_wire(
    forward: v1::TrainForward,
    payload: Bytes,
) -> Result<ForwardMicrobatch, ProtocolViolation> {
    let v1::TrainForward { microbatch, sequences, evaluate, hidden } = forward;
    wire::at_most("sequences", SEQUENCES_MAX, sequences.len())?;
    let hidden = rows(hidden, payload)?;
    let each_has_some = sequences.iter().all(|sequence| sequence.tokens > 0);
    let tokens: u64 = sequences.iter().map(|sequence| u64::from(sequence.tokens)).sum();
    let fit = each_has_some && tokens == u64::from(hidden.shape()[0]);
    within(fit, "the tokens of the sequences")?;
    let sequence = |sequence: v1::TrainingSequence| TrainingSequence {
        tokens: sequence.tokens,
        dropout_seed: sequence.dropout_seed,
    };
    let sequences = sequences.into_iter().map(sequence).collect();
    Ok(ForwardMicrobatch { microbatch, sequences, evaluate, hidden })
}

/// The header of a tensor; its elements are the payload as they are.
fn plain(tensor: &Tensor, payload: &mut Bytes) -> v1::Tensor {
    wire::tensor_to_wire(tensor, Packing::Plain, payload)
}

/// A tensor of at least one row.
fn rows(tensor: Option<v1::Tensor>, payload: Bytes) -> Result<Tensor, ProtocolViolation> {
    let tensor = wire::tensor(tensor, payload)?;
    if tensor.payload().is_empty() {
        return Err(ProtocolViolation::NoTokens);
    }
    within(tensor.shape().len() == 2, "the shape of a microbatch")?;
    Ok(tensor)
}

fn state(
    kind: i32,
    offset: u64,
    values: Option<v1::Tensor>,
    payload: Bytes,
) -> Result<StateValues, ProtocolViolation> {
    let kind = StateKind::from_wire(kind)?;
    let values = part(offset, values, payload, "the values of a state")?;
    Ok(StateValues { kind, offset, values })
}

fn row_norms(
    offset: u64,
    norms: Option<v1::Tensor>,
    payload: Bytes,
) -> Result<Tensor, ProtocolViolation> {
    const FIELD: &str = "the norms of rows";
    let norms = part(offset, norms, payload, FIELD)?;
    let are_norms = norms.to_f32().iter().all(|norm| (0.0..f32::INFINITY).contains(norm));
    within(are_norms, FIELD)?;
    Ok(norms)
}

/// A part of a row, `[values]` in binary32, from `offset` on.
fn part(
    offset: u64,
    values: Option<v1::Tensor>,
    payload: Bytes,
    field: &'static str,
) -> Result<Tensor, ProtocolViolation> {
    let values = wire::tensor(values, payload)?;
    let fits = matches!(*values.shape(), [count] if is_part(count));
    within(fits && values.dtype() == DType::F32, field)?;
    within(offset.checked_add(u64::from(values.shape()[0])).is_some(), field)?;
    Ok(values)
}

/// Whether so many values go in a message.
fn is_part(count: u32) -> bool {
    (1..=STATE_VALUES_MAX).contains(&(count as usize))
}
