//! Drafts from a small model that runs whole in this process.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbel_coordinator::session::speculation::{DraftKind, Offer};
use umbel_engine::{HiddenStates, OpenTableError, Sampler};

use crate::chain::Chain;
use crate::chain::local::LocalModel;
use crate::generate::{GenerateError, PREFILL_CHUNK_TOKENS, embed};
use crate::model::ClientModel;

/// How much the newest measurement of the time for a token says.
const SMOOTHING: f64 = 0.2;

/// A model that guesses what a larger one will say.
#[derive(Clone)]
pub struct DraftModel {
    model: Arc<ClientModel>,
    blocks: Arc<LocalModel>,
}

impl DraftModel {
    /// Lets `model`, with its blocks in this process, draft for `target`.
    ///
    /// # Errors
    /// [`DraftModelError`] where the two do not mean the same by a token.
    pub fn new(
        model: Arc<ClientModel>,
        blocks: Arc<LocalModel>,
        target: &ClientModel,
    ) -> Result<Self, DraftModelError> {
        check_agreement(&model, target)?;
        Ok(Self { model, blocks })
    }

    /// A session for texts of up to `tokens_max` tokens, or the model's context if that is shorter.
    pub(super) fn open(
        &self,
        tokens_max: usize,
        sampler: Sampler,
    ) -> Result<DraftSession, OpenTableError> {
        let tokens_max = tokens_max.min(self.model.config().context_tokens);
        let room = u32::try_from(tokens_max).unwrap_or(u32::MAX);
        Ok(DraftSession {
            model: Arc::clone(&self.model),
            chain: Chain::Local(self.blocks.open(room)?),
            cached: Vec::new(),
            sampler,
            tokens_max,
            token_seconds: 0.0,
        })
    }
}

impl fmt::Debug for DraftModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DraftModel").field("id", &self.model.id()).finish_non_exhaustive()
    }
}

/// A text that the model drafts for.
pub(super) struct DraftSession {
    model: Arc<ClientModel>,
    chain: Chain,
    /// The tokens in the chain's cache.
    cached: Vec<u32>,
    /// The target's own: with the noise of the target's draw, a model that is nearly as sure draws
    /// nearly always the same token.
    sampler: Sampler,
    tokens_max: usize,
    /// Seconds to read a token of the text, smoothed.
    token_seconds: f64,
}

impl DraftSession {
    /// What it can give behind `tokens`, and the time that it takes to catch up with them.
    pub(super) fn offer(&self, tokens: &[u32], room: u32) -> Option<Offer> {
        let vocabulary = self.model.ends().vocabulary_size();
        // The target may know tokens, beyond those of the tokenizer, that this model lacks.
        if tokens[self.shared(tokens)..].iter().any(|&token| token as usize >= vocabulary) {
            return None;
        }
        let free = u32::try_from(self.tokens_max.saturating_sub(tokens.len())).unwrap_or(u32::MAX);
        let behind = tokens.len().saturating_sub(self.shared(tokens) + 1);
        Some(Offer {
            kind: DraftKind::Model,
            tokens_max: room.min(free),
            overhead: Duration::from_secs_f64(behind as f64 * self.token_seconds),
        })
    }

    /// Reads all of `tokens` but the last.
    pub(super) async fn read(&mut self, tokens: &[u32]) -> Result<(), GenerateError> {
        let vocabulary = self.model.ends().vocabulary_size();
        let known = tokens.iter().take_while(|&&token| (token as usize) < vocabulary).count();
        let end = known.min(tokens.len().saturating_sub(1)).min(self.tokens_max);
        let begun = Instant::now();
        let first = self.shared(tokens);
        let mut at = first;
        while at < end {
            let next = end.min(at + PREFILL_CHUNK_TOKENS as usize);
            self.step(at, &tokens[at..next]).await?;
            at = next;
        }
        if at > first {
            let each = begun.elapsed().as_secs_f64() / (at - first) as f64;
            let known = if self.token_seconds > 0.0 { self.token_seconds } else { each };
            self.token_seconds = SMOOTHING.mul_add(each - known, known);
        }
        Ok(())
    }

    /// `count` tokens behind `tokens`, and the time that it took to catch up with them.
    pub(super) async fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
    ) -> Result<(Vec<u32>, Duration), GenerateError> {
        let begun = Instant::now();
        self.read(tokens).await?;
        let overhead = begun.elapsed();
        let mut text = tokens.to_vec();
        while text.len() < tokens.len() + count {
            let at = text.len() - 1;
            let leaving = self.step(at, &text[at..]).await?;
            let mut rows = self.model.logits(leaving.last_row()).await?;
            let mut logits = rows.pop().expect("hidden states have a token");
            text.push(self.sampler.sample(&mut logits, &text)?);
        }
        Ok((text.split_off(tokens.len()), overhead))
    }

    /// Cuts the cache to `position`, and takes `tokens` through the model.
    async fn step(
        &mut self,
        position: usize,
        tokens: &[u32],
    ) -> Result<HiddenStates, GenerateError> {
        let entering = embed(&self.model, tokens.to_vec()).await?;
        let at = u32::try_from(position).expect("a context is counted in 32 bits");
        self.cached.truncate(position);
        let (leaving, _time) = self.chain.step(at, entering).await?;
        self.cached.extend_from_slice(tokens);
        Ok(leaving)
    }

    /// How many tokens at the beginning of `tokens` are in the cache.
    fn shared(&self, tokens: &[u32]) -> usize {
        self.cached.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }
}

/// A model that cannot draft for another.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DraftModelError {
    /// One has a tokenizer and the other has none.
    #[error("one of the two models has no tokenizer: nothing says that their tokens are the same")]
    OneTokenizer,
    /// Without tokenizers, vocabularies of different sizes.
    #[error("the draft model knows {draft} tokens and the model {target}: they must be the same")]
    VocabularySize {
        /// Tokens of the draft model.
        draft: usize,
        /// Tokens of the model that it drafts for.
        target: usize,
    },
    /// The tokenizers differ.
    #[error(
        "the draft model has another vocabulary: token {id} is {draft:?} there and {target:?} here; \
         take a small model of the same family"
    )]
    Vocabulary {
        /// The first token that differs.
        id: u32,
        /// How the draft model spells it.
        draft: Option<String>,
        /// How the model that it drafts for does.
        target: Option<String>,
    },
}

/// Whether each token is the same text to both. Rows of the embedding beyond the tokenizer's tokens
/// are padding, and may be of different number.
fn check_agreement(draft: &ClientModel, target: &ClientModel) -> Result<(), DraftModelError> {
    match (draft.tokenizer(), target.tokenizer()) {
        (None, None) => {
            let sizes = [draft, target].map(|model| model.ends().vocabulary_size());
            let [draft, target] = sizes;
            if draft == target {
                Ok(())
            } else {
                Err(DraftModelError::VocabularySize { draft, target })
            }
        }
        (Some(draft), Some(target)) => match draft.first_difference(target) {
            None => Ok(()),
            Some((id, draft, target)) => Err(DraftModelError::Vocabulary { id, draft, target }),
        },
        (None, Some(_)) | (Some(_), None) => Err(DraftModelError::OneTokenizer),
    }
}

#[cfg(test)]
mod tests;
