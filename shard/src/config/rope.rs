//! The rotary position embedding: <https://arxiv.org/abs/2104.09864>.

/// How positions turn queries and keys: pair `i` of a head of `n` values turns by
/// `position * theta^(-2i/n)`, the inverse frequency, which [`RopeScaling`] may change.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f32,
    /// What stretches them over a longer context.
    pub scaling: RopeScaling,
}

impl RopeScaling {
    /// The context that is reached where a file says that it is `tokens` long, and how long it was before it
    /// was stretched. Who adds YaRN to a file, as the cards of Qwen's models say how to, leaves the length
    /// from before in it; who releases a model that is stretched writes the whole one. The other kinds are
    /// released with the whole one, or not known to be.
    pub(super) fn stretched_context(&self, tokens: usize) -> usize {
        match self {
            Self::Yarn { factor, original_context_tokens, .. } => {
                let reached = f64::from(*factor) * *original_context_tokens as f64;
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "what no context has becomes the largest number, and is refused as that"
                )]
                let reached = reached.round() as usize;
                tokens.max(reached)
            }
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } | Self::Factors(_) => tokens,
        }
    }
}

/// What is done to the inverse frequencies; each as `modeling_rope_utils.py` of transformers does it.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All are divided by `factor`.
    Linear {
        /// How much longer the context becomes.
        factor: f32,
    },
    /// Long wavelengths are divided by `factor`, short ones stay, those between are blended.
    Llama3 {
        /// How much longer the context becomes.
        factor: f32,
        /// Wavelengths above `original_context_tokens / low_freq_factor` are long.
        low_freq_factor: f32,
        /// Wavelengths below `original_context_tokens / high_freq_factor` are short.
        high_freq_factor: f32,
        /// The context before it was stretched.
        original_context_tokens: usize,
    },
    /// Each is divided by its own factor, one for each pair of a head: `rope_freqs.weight` of GGUF.
    Factors(Vec<f32>),
    /// YaRN, <https://arxiv.org/abs/2309.00071>: blended by a ramp over the pairs; cosine and sine
    /// are multiplied by `attention_factor`.
    Yarn {
        /// How much longer the context becomes.
        factor: f32,
        /// The context before it was stretched.
        original_context_tokens: usize,
        /// Pairs that turn more often than this over the original context are not stretched.
        beta_fast: f32,
        /// Pairs that turn less often than this over the original context are stretched wholly.
        beta_slow: f32,
        /// What cosine and sine are multiplied by; already resolved, never to be derived again.
        attention_factor: f32,
        /// Whether the ends of the ramp are rounded outwards to whole pairs.
        truncate: bool,
    },
}
