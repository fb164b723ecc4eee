//! From logits to the next token.
//!
//! The order is that of transformers (`GenerationMixin._get_logits_processor`): repetition penalty,
//! temperature, top-k, top-p, min-p, then the draw.
//!
//! The draw is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014,
//! <https://arxiv.org/abs/1411.0030>): the token with the largest `logit + noise`, where noise is
//! `-ln(-ln(u))`, follows the softmax of the logits. The noise is a pure function of seed, position
//! and token, with no generator whose state a draw moves on. So a token depends on its position
//! alone and not on how many draws came before: a generation that fails over, is resumed, or
//! verifies guessed tokens draws what it would have drawn.

mod filter;
mod noise;

use std::cmp::Ordering;

use noise::Noise;

/// How the next token is chosen. Fields that filter have a value at which they do nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits: 0 always takes the likeliest token, 1 follows the model, more is bolder.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Makes tokens that already occurred less likely: divides their logits where these are
    /// positive, multiplies them where negative (Keskar et al. 2019,
    /// <https://arxiv.org/abs/1909.05858>, section 4.1); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Equal seeds give equal tokens.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// Draws from the model's own distribution, sharpened or flattened by `temperature`.
    #[must_use]
    pub const fn with_temperature(temperature: f32, seed: u64) -> Self {
        Self { temperature, seed, ..Self::greedy() }
    }

    fn check(&self) -> Result<(), InvalidSampling> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(InvalidSampling::Temperature { temperature: self.temperature });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(InvalidSampling::TopP { top_p: self.top_p });
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(InvalidSampling::MinP { min_p: self.min_p });
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let penalty = self.repetition_penalty;
            return Err(InvalidSampling::RepetitionPenalty { penalty });
        }
        Ok(())
    }
}

/// Chooses tokens; it has no state that a choice would change.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
}

impl Sampler {
    /// A sampler that chooses as `sampling` says.
    ///
    /// # Errors
    /// [`InvalidSampling`] where a parameter is out of its range.
    pub fn new(sampling: Sampling) -> Result<Self, InvalidSampling> {
        sampling.check()?;
        Ok(Self { sampling })
    }

    /// The token that follows `history`: all tokens so far, of the prompt too.
    ///
    /// `logits` has one value for each token of the vocabulary and is worked on in place. A logit
    /// that is not a number counts as impossible.
    ///
    /// # Errors
    /// [`NotNumbers`] where all are such.
    ///
    /// # Panics
    /// Where `logits` is empty: a model without a vocabulary is a bug of ours.
    pub fn sample(&self, logits: &mut [f32], history: &[u32]) -> Result<u32, NotNumbers> {
        self.sample_at(history.len() as u64, logits, history)
    }

    /// The token at `position`, as [`Sampler::sample`] gives it after so many tokens. What these
    /// were matters only where repetition is penalized; else `history` may lack them.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    ///
    /// # Panics
    /// As [`Sampler::sample`].
    pub fn sample_at(
        &self,
        position: u64,
        logits: &mut [f32],
        history: &[u32],
    ) -> Result<u32, NotNumbers> {
        assert!(!logits.is_empty(), "a model has a vocabulary");
        check_numbers(logits)?;
        filter::replace_nan(logits);
        filter::penalize_repetition(logits, history, self.sampling.repetition_penalty);
        let first = likeliest(logits.iter().copied());
        if self.sampling.temperature == 0.0 || logits[first] == f32::NEG_INFINITY {
            return Ok(id(first));
        }
        filter::divide_by_temperature(logits, self.sampling.temperature);
        let kept = filter::keep(logits, &self.sampling);
        let noise = Noise::at(self.sampling.seed, position);
        let best = likeliest(kept.iter().map(|&(token, logit)| logit + noise.gumbel(token)));
        Ok(kept[best].0)
    }
}

/// Whether a model says anything with these logits: before some are made impossible, which are numbers
/// then.
///
/// # Errors
/// [`NotNumbers`] where none is a number.
pub fn check_numbers(logits: &[f32]) -> Result<(), NotNumbers> {
    if logits.iter().all(|logit| logit.is_nan()) { Err(NotNumbers) } else { Ok(()) }
}

/// The `count` largest logits as (token, logit), largest first, equal ones by smaller token.
///
/// A logit that is not a number counts as the smallest.
#[must_use]
pub fn top_logits(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut ranked: Vec<(u32, f32)> = filter::numbered(logits);
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count - 1, larger_first);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(larger_first);
    ranked
}

/// Larger logits first, then smaller tokens: a total order, in which NaN is the smallest logit.
fn larger_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    let key = |logit: f32| {
        if logit.is_nan() { f32::NEG_INFINITY } else { logit + 0.0 }
    };
    key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0))
}

/// The index of the largest value, of the first one where several are.
fn likeliest(values: impl Iterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

fn id(index: usize) -> u32 {
    u32::try_from(index).expect("token ids have 32 bits")
}

/// Logits of which none is a number: what they were computed from was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "what the model says of the next token is no number: whoever computed its blocks did so wrongly, \
     or its files are broken"
)]
pub struct NotNumbers;

/// A sampling parameter out of its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum InvalidSampling {
    /// Negative or not finite.
    #[error("temperature is {temperature}; it must be 0 or more, and finite")]
    Temperature {
        /// What was asked for.
        temperature: f32,
    },
    /// Not above 0, or above 1.
    #[error("top-p is {top_p}; it must be above 0 and at most 1")]
    TopP {
        /// What was asked for.
        top_p: f32,
    },
    /// Not from 0 to 1.
    #[error("min-p is {min_p}; it must be from 0 to 1")]
    MinP {
        /// What was asked for.
        min_p: f32,
    },
    /// Not above 0, or not finite.
    #[error("repetition penalty is {penalty}; it must be above 0, and 1 changes nothing")]
    RepetitionPenalty {
        /// What was asked for.
        penalty: f32,
    },
}

#[cfg(test)]
mod tests;
