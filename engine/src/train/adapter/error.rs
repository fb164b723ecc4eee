//! Adapters that are not taken, and why.

use umbel_protocol::Span;
use umbel_protocol::training::TargetModule;
use umbel_shard::safetensors::SafetensorsError;

/// An adapter that is broken, of another model, or of a kind that is not trained here.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A rank out of bounds.
    #[error("the adapter's rank is {found}; ranks from 1 to {max} are taken")]
    Rank {
        /// The rank.
        found: usize,
        /// The largest one.
        max: usize,
    },
    /// A prompt that is too long.
    #[error("the adapter's prompt has {found} tokens; this model takes {max} at most")]
    PromptTokens {
        /// Its tokens.
        found: usize,
        /// The most.
        max: usize,
    },
    /// Other values than those of a prompt of this length, for this model.
    #[error("a prompt of {found} values, where the model and its tokens make them {expected}")]
    PromptValues {
        /// How many there have to be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Matrices and prompts in one.
    #[error("an adapter has matrices or a prompt, and not both")]
    TwoKinds,
    /// Magnitudes without matrices.
    #[error("magnitudes (DoRA) go with matrices, and a prompt has none")]
    NoRows,
    /// A factor that is no positive number.
    #[error("the adapter's alpha is {found}; it has to be positive")]
    Alpha {
        /// The factor.
        found: f32,
    },
    /// A probability out of bounds.
    #[error("the adapter's dropout is {found}; it has to be at least 0 and below 1")]
    Dropout {
        /// The probability.
        found: f32,
    },
    /// No module at all, or one twice.
    #[error("an adapter names one or more target modules, each once")]
    TargetModules,
    /// A module of the MLP, in whose place the model has experts.
    #[error(
        "the model has experts in the place of {}, which adapters do not reach; of the target modules it \
         has q_proj, k_proj, v_proj and o_proj",
        module.name()
    )]
    Experts {
        /// The module.
        module: TargetModule,
    },
    /// A module that no block has.
    #[error(
        "{found} is not among the target modules q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj \
         and down_proj"
    )]
    UnknownModule {
        /// The name.
        found: String,
    },
    /// Blocks that the model or the adapter lacks.
    #[error("blocks {blocks} are not among {known}")]
    NoSuchBlocks {
        /// The blocks asked for.
        blocks: Span,
        /// Those that there are.
        known: Span,
    },
    /// Parts that do not follow each other.
    #[error("the parts are not consecutive parts of one adapter")]
    Parts,
    /// A configuration that is not the JSON it should be.
    #[error("adapter_config.json is not what PEFT writes")]
    Json(#[source] serde_json::Error),
    /// A setting that changes what is computed, and that is not known here.
    #[error("adapter_config.json has {key} = {value}, which is not supported")]
    Unsupported {
        /// The setting.
        key: String,
        /// Its value, cut off where it is long.
        value: String,
    },
    /// A setting that is missing or of another kind.
    #[error("adapter_config.json has no {key} of the right kind")]
    Setting {
        /// The setting.
        key: &'static str,
    },
    /// More bytes than an adapter of this kind has.
    #[error(
        "{file} has {found} bytes; an adapter for this model has at most {max}: is it for another model?"
    )]
    TooLong {
        /// The file's name.
        file: &'static str,
        /// How long it is.
        found: u64,
        /// The most that is read.
        max: u64,
    },
    /// A broken file of tensors.
    #[error("adapter_model.safetensors is broken")]
    Safetensors(#[from] SafetensorsError),
    /// A tensor that the adapter should have.
    #[error("the adapter lacks the tensor {name}: is it for another model?")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that the adapter should not have.
    #[error(
        "the adapter has the tensor {name}, which this model has no place for: is it for another model, \
         or for other target modules than its configuration says?"
    )]
    UnknownTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape or type.
    #[error(
        "the adapter's tensor {name} is {found}; this model and the adapter's rank make it {expected:?} \
         in floats: is it for another model, or of another rank than its configuration says?"
    )]
    Tensor {
        /// The tensor.
        name: String,
        /// The shape that follows from model and rank.
        expected: Vec<usize>,
        /// What it is.
        found: String,
    },
    /// A value that is infinite or no number.
    #[error("the adapter's tensor {name} has a value that is not finite")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A file that could not be read or written.
    #[error("{file} of the adapter cannot be read or written")]
    File {
        /// The file's name.
        file: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}
