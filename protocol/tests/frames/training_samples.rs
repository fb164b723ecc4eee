//! One value of each message of a training.

use umbel_protocol::error::ErrorCode;
use umbel_protocol::training::{
    AdamWSettings, AdapterSettings, ForwardMicrobatch, OpenTraining, OptimizerStep, StateKind,
    StateValues, TargetModule, TrainerMessage, TrainingAnswer, TrainingSequence,
};
use umbel_protocol::{ModelId, SessionId, Span, Tensor};

use super::{Message, Sample};

/// The messages whose frames are kept.
pub(crate) fn samples() -> Vec<Sample> {
    let trainer = |name, message| Sample { name, message: Message::Trainer(message) };
    let answer = |name, message| Sample { name, message: Message::Training(message) };
    let code = ErrorCode::KvFull;
    vec![
        trainer("trainer_open", TrainerMessage::Open(open())),
        trainer("trainer_open_decomposed", TrainerMessage::Open(decomposed())),
        trainer("trainer_open_prompts", TrainerMessage::Open(with_prompts())),
        trainer("trainer_write", TrainerMessage::Write(state(StateKind::MeanSquares))),
        trainer("trainer_forward", TrainerMessage::Forward(forward(false))),
        trainer("trainer_evaluate", TrainerMessage::Forward(forward(true))),
        trainer(
            "trainer_backward",
            TrainerMessage::Backward { microbatch: 9, gradient: rows(), apart: false },
        ),
        trainer(
            "trainer_backward_apart",
            TrainerMessage::Backward { microbatch: 9, gradient: rows(), apart: true },
        ),
        trainer(
            "trainer_read",
            TrainerMessage::Read { kind: StateKind::Gradients, offset: 4_096, count: 512 },
        ),
        trainer("trainer_row_norms", TrainerMessage::RowNorms { offset: 4_096, count: 512 }),
        trainer(
            "trainer_step",
            TrainerMessage::Step(OptimizerStep { number: 8, learning_rate: 2e-4, factor: 0.5 }),
        ),
        trainer("trainer_close", TrainerMessage::Close),
        answer(
            "training_opened",
            TrainingAnswer::Opened { steps: 7, resumed: true, value_count: 46_080 },
        ),
        answer("training_written", TrainingAnswer::Written),
        answer("training_forwarded", TrainingAnswer::Forwarded { microbatch: 9, hidden: rows() }),
        answer(
            "training_backwarded",
            TrainingAnswer::Backwarded { microbatch: 9, gradient: rows() },
        ),
        answer("training_state", TrainingAnswer::State(state(StateKind::Values))),
        answer("training_row_norms", TrainingAnswer::RowNorms { offset: 4_096, norms: norms() }),
        answer("training_stepped", TrainingAnswer::Stepped { number: 8, digest: [0xcd; 32] }),
        answer("training_closed", TrainingAnswer::Closed),
        answer(
            "training_error",
            TrainingAnswer::Error { code, detail: "12 adapters are held".to_owned() },
        ),
    ]
}

pub(crate) fn open() -> OpenTraining {
    OpenTraining {
        session: SessionId::new(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        model: ModelId::from_bytes([0xab; 32]),
        blocks: Span::new(10, 20).expect("not empty"),
        adapter: AdapterSettings {
            rank: 16,
            alpha: 32.0,
            rank_stabilized: true,
            dropout: 0.125,
            target_modules: vec![TargetModule::Query, TargetModule::Down],
            block_prompt_tokens: 0,
            weight_decomposed: false,
        },
        optimizer: AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
        seed: 42,
        steps: 7,
        tokens_max: 4_096,
    }
}

/// The same, whose rows have magnitudes.
pub(crate) fn decomposed() -> OpenTraining {
    let open = open();
    let adapter = AdapterSettings { weight_decomposed: true, ..open.adapter };
    OpenTraining { adapter, ..open }
}

/// The same, whose blocks have prompts and no matrices.
fn with_prompts() -> OpenTraining {
    let adapter = AdapterSettings {
        rank: 0,
        alpha: 0.0,
        rank_stabilized: false,
        dropout: 0.0,
        target_modules: Vec::new(),
        block_prompt_tokens: 16,
        weight_decomposed: false,
    };
    OpenTraining { adapter, ..open() }
}

pub(crate) fn rows() -> Tensor {
    Tensor::from_f32(vec![3, 2], &[1.0, -2.0, 0.5, 0.25, 0.0, 8.0]).expect("the shape fits")
}

pub(crate) fn forward(evaluate: bool) -> ForwardMicrobatch {
    let sequence = |tokens, dropout_seed| TrainingSequence { tokens, dropout_seed };
    let sequences = vec![sequence(1, u64::MAX), sequence(2, 3)];
    ForwardMicrobatch { microbatch: 9, sequences, evaluate, hidden: rows() }
}

pub(crate) fn norms() -> Tensor {
    Tensor::from_f32(vec![3], &[0.5, 0.0, 1.5]).expect("the shape fits")
}

fn state(kind: StateKind) -> StateValues {
    let values = Tensor::from_f32(vec![3], &[0.5, -0.5, 1.5]).expect("the shape fits");
    StateValues { kind, offset: 8_192, values }
}
