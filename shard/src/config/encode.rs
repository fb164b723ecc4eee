//! The bytes that stand for a configuration in a model's id.
//!
//! A list of fields in a fixed order, so that neither the version of transformers that wrote
//! `config.json` nor a new field of [`ModelConfig`] changes the id of a model that computes the same:
//! - a number is 8 bytes little-endian; a truth value is 0 or 1; `None` is 0 where 0 is no value;
//! - a binary32 is its 4 bytes little-endian;
//! - a text or a list begins with its length as a number.
//!
//! The tokens that begin and end a text are left out: they steer the client and change no number, and
//! some writers fill them in where others leave them to the default.

use super::{Experts, ModelConfig, Rope, RopeScaling};

/// Begins the encoding; another encoding will have another tag.
const TAG: &str = "umbel configuration 1";

impl ModelConfig {
    /// The canonical bytes of everything here that decides the arithmetic.
    #[must_use]
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + 8 * self.attention_windows.len());
        text(&mut out, TAG);
        text(&mut out, self.family.name());
        for value in [
            self.hidden_size,
            self.intermediate_size,
            self.block_count as usize,
            self.head_count,
            self.kv_head_count,
            self.head_size,
            self.vocabulary_size,
            self.context_tokens,
        ] {
            number(&mut out, value);
        }
        float(&mut out, self.rms_norm_eps);
        rope(&mut out, &self.rope);
        number(&mut out, self.attention_windows.len());
        for window in &self.attention_windows {
            number(&mut out, window.unwrap_or(0));
        }
        for value in [self.attention_bias, self.output_bias, self.mlp_bias, self.tied_embeddings] {
            number(&mut out, usize::from(value));
        }
        // Behind all the rest, so that the ids of models without experts are what they were before there were
        // any.
        if let Some(Experts { count, per_token, normalized }) = self.experts {
            text(&mut out, "experts");
            for value in [count, per_token, usize::from(normalized)] {
                number(&mut out, value);
            }
        }
        out
    }
}

fn rope(out: &mut Vec<u8>, rope: &Rope) {
    float(out, rope.theta);
    match &rope.scaling {
        RopeScaling::None => text(out, "none"),
        RopeScaling::Linear { factor } => {
            text(out, "linear");
            float(out, *factor);
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context_tokens,
        } => {
            text(out, "llama3");
            float(out, *factor);
            float(out, *low_freq_factor);
            float(out, *high_freq_factor);
            number(out, *original_context_tokens);
        }
        RopeScaling::Factors(factors) => {
            text(out, "factors");
            number(out, factors.len());
            factors.iter().for_each(|factor| float(out, *factor));
        }
        RopeScaling::Yarn {
            factor,
            original_context_tokens,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => {
            text(out, "yarn");
            float(out, *factor);
            number(out, *original_context_tokens);
            float(out, *beta_fast);
            float(out, *beta_slow);
            float(out, *attention_factor);
            number(out, usize::from(*truncate));
        }
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    number(out, value.len());
    out.extend_from_slice(value.as_bytes());
}

fn number(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&(value as u64).to_le_bytes());
}

fn float(out: &mut Vec<u8>, value: f32) {
    out.extend_from_slice(&value.to_le_bytes());
}
