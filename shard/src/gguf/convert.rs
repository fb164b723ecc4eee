//! A model as a GGUF file, with the keys and the order of rows that llama.cpp's converter writes.

use super::rows::permute_rows;
use super::write::{GgufWriter, WriteValue};
use crate::config::{Family, ModelConfig, Rope, RopeScaling};
use crate::layout::{self, LayoutTensor};
use crate::weight::{WeightType, Weights};

impl GgufWriter {
    /// A file of this model; `weights` are those of all of its parts, of any types.
    ///
    /// The tokenizer is left out, and so is `general.file_type`.
    ///
    /// # Errors
    /// [`ConvertError`] where a tensor is missing, or the format has no word for something.
    pub fn of_model(config: &ModelConfig, weights: &Weights) -> Result<Self, ConvertError> {
        let mut writer = Self::new();
        write_metadata(&mut writer, config)?;
        let blocks = (0..config.block_count).flat_map(|index| layout::block(config, index));
        let mut tensors: Vec<LayoutTensor> = layout::embedding(config);
        tensors
            .extend(layout::head(config).into_iter().filter(|one| one.name != layout::EMBEDDING));
        let permuted = architecture(config.family) == "llama";
        tensors.extend(blocks);
        // What is stacked follows each other.
        for stack in tensors.chunk_by(|one, next| one.gguf_name == next.gguf_name) {
            let (weight_type, mut bytes) = converted(&stack[0], weights, permuted)?;
            for wanted in &stack[1..] {
                let (other, more) = converted(wanted, weights, permuted)?;
                if other != weight_type {
                    let what = "experts of a block are of several types";
                    return Err(ConvertError::Unsayable { what });
                }
                bytes.extend(more);
            }
            writer.tensor(&stack[0].gguf_name, weight_type, &stack[0].gguf_shape(), bytes);
        }
        Ok(writer)
    }
}

/// The type of a tensor, and its bytes in the order of a file.
fn converted(
    wanted: &LayoutTensor,
    weights: &Weights,
    permuted: bool,
) -> Result<(WeightType, Vec<u8>), ConvertError> {
    let missing = || ConvertError::Missing { tensor: wanted.name.clone() };
    let weight = weights.get(&wanted.name).map_err(|_| missing())?;
    if weight.shape() != wanted.shape {
        return Err(missing());
    }
    let row_bytes = match weight.shape() {
        [_] => weight.weight_type().block_bytes(),
        _ => weight.row_bytes(),
    };
    let bytes = match wanted.rotated_heads.filter(|_| permuted) {
        Some(heads) => permute_rows(weight.bytes(), row_bytes, heads).ok_or_else(missing)?,
        None => weight.bytes().to_vec(),
    };
    Ok((weight.weight_type(), bytes))
}

/// A model for which there is no GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A tensor is missing, or has no whole rows for each head.
    #[error("the tensor {tensor} is not among the weights, or has another shape")]
    Missing {
        /// Its canonical name.
        tensor: String,
    },
    /// The format cannot say it.
    #[error("a GGUF file cannot say that {what}")]
    Unsayable {
        /// What it cannot say.
        what: &'static str,
    },
}

/// Mistral and Mixtral have no names of their own.
const fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama | Family::Mistral | Family::Mixtral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Qwen3Moe => "qwen3moe",
    }
}

/// A size as llama.cpp reads it: it takes no other width.
fn count(size: usize) -> Result<WriteValue, ConvertError> {
    let unsayable = ConvertError::Unsayable { what: "a size has more than 32 bits" };
    u32::try_from(size).map(WriteValue::U32).map_err(|_| unsayable)
}

pub(super) fn write_metadata(
    writer: &mut GgufWriter,
    config: &ModelConfig,
) -> Result<(), ConvertError> {
    let architecture = architecture(config.family);
    let key = |name: &str| format!("{architecture}.{name}");
    writer.value("general.architecture", architecture);
    for (name, size) in [
        ("block_count", config.block_count as usize),
        ("context_length", config.context_tokens),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.head_count),
        ("attention.head_count_kv", config.kv_head_count),
        ("attention.key_length", config.head_size),
        ("attention.value_length", config.head_size),
        ("rope.dimension_count", config.head_size),
        ("vocab_size", config.vocabulary_size),
    ] {
        writer.value(&key(name), count(size)?);
    }
    if let Some(experts) = config.experts {
        if !experts.normalized {
            let what = "the weights of a token's experts do not add up to 1";
            return Err(ConvertError::Unsayable { what });
        }
        for (name, size) in [
            ("expert_count", experts.count),
            ("expert_used_count", experts.per_token),
            ("expert_feed_forward_length", config.intermediate_size),
        ] {
            writer.value(&key(name), count(size)?);
        }
    }
    writer.value(&key("attention.layer_norm_rms_epsilon"), WriteValue::F32(config.rms_norm_eps));
    let mut windows = config.attention_windows.iter();
    let window = windows.next().copied().flatten();
    if windows.any(|&other| other != window) || (window.is_some() && architecture != "llama") {
        return Err(ConvertError::Unsayable { what: "only some blocks have a window" });
    }
    if let Some(tokens) = window {
        writer.value(&key("attention.sliding_window"), count(tokens)?);
    }
    if let Some(id) = config.bos_token_id {
        writer.value("tokenizer.ggml.bos_token_id", WriteValue::U32(id));
    }
    if let Some(&id) = config.eos_token_ids.first() {
        writer.value("tokenizer.ggml.eos_token_id", WriteValue::U32(id));
    }
    write_rope(writer, &config.rope, config.head_size, key)
}

fn write_rope(
    writer: &mut GgufWriter,
    rope: &Rope,
    head_size: usize,
    key: impl Fn(&str) -> String,
) -> Result<(), ConvertError> {
    writer.value(&key("rope.freq_base"), WriteValue::F32(rope.theta));
    let factors = match &rope.scaling {
        RopeScaling::None => return Ok(()),
        RopeScaling::Linear { factor } => {
            writer.value(&key("rope.scaling.type"), "linear");
            writer.value(&key("rope.scaling.factor"), WriteValue::F32(*factor));
            return Ok(());
        }
        RopeScaling::Yarn { factor, original_context_tokens, beta_fast, beta_slow, .. } => {
            writer.value(&key("rope.scaling.type"), "yarn");
            writer.value(&key("rope.scaling.factor"), WriteValue::F32(*factor));
            let original = count(*original_context_tokens)?;
            writer.value(&key("rope.scaling.original_context_length"), original);
            writer.value(&key("rope.scaling.yarn_beta_fast"), WriteValue::F32(*beta_fast));
            writer.value(&key("rope.scaling.yarn_beta_slow"), WriteValue::F32(*beta_slow));
            return Ok(());
        }
        RopeScaling::Factors(factors) => factors.clone(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context_tokens,
        } => {
            let stretch = [*factor, *low_freq_factor, *high_freq_factor].map(f64::from);
            llama3_factors(rope.theta.into(), head_size, stretch, *original_context_tokens)
        }
    };
    let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    writer.tensor("rope_freqs.weight", crate::WeightType::F32, &[factors.len()], bytes);
    Ok(())
}

/// What each inverse frequency is divided by, `generate_extra_tensors` in `convert_hf_to_gguf.py`.
fn llama3_factors(
    theta: f64,
    head_size: usize,
    [factor, low, high]: [f64; 3],
    original: usize,
) -> Vec<f32> {
    #[allow(clippy::cast_precision_loss, reason = "contexts and heads are far below 2^52")]
    let (size, original) = (head_size as f64, original as f64);
    let one = |pair: u32| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * f64::from(pair) / size);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let pairs = u32::try_from(head_size / 2).unwrap_or(u32::MAX);
    #[allow(clippy::cast_possible_truncation, reason = "the format has binary32")]
    (0..pairs).map(|pair| one(pair) as f32).collect()
}
