//! Adapters that a model is asked with, and those that are published.

pub mod fetch;
pub mod leave;
pub mod publish;
mod shelf;

use std::path::Path;
use std::sync::Arc;

use umbel_engine::HiddenStates;
use umbel_engine::train::{Adapter, AdapterError, PeftFiles};
use umbel_protocol::inference::{AdapterPart, SessionAdapter};
use umbel_protocol::training::STATE_VALUES_MAX;
use umbel_protocol::{AdapterId, SessionId, Span, Tensor};
use umbel_shard::ModelConfig;

/// An adapter for all blocks of a model, and the name of its content. A clone shares the values.
#[derive(Debug, Clone)]
pub struct NamedAdapter {
    id: AdapterId,
    adapter: Arc<Adapter>,
}

impl NamedAdapter {
    /// Takes an adapter out of its files.
    ///
    /// # Errors
    /// [`AdapterError`] where it is broken, of another model, or of a kind that is not known.
    pub fn new(files: &PeftFiles, model: &ModelConfig) -> Result<Self, AdapterError> {
        let all = Span::new(0, model.block_count).map_err(|_| AdapterError::Parts)?;
        let adapter = Arc::new(Adapter::from_peft(files, model, all)?);
        Ok(Self { id: files.id(), adapter })
    }

    /// Reads an adapter's folder, as PEFT and a training write it.
    ///
    /// # Errors
    /// As [`NamedAdapter::new`], and where a file cannot be read.
    pub fn read(folder: &Path, model: &ModelConfig) -> Result<Self, AdapterError> {
        Self::new(&PeftFiles::read(folder, model)?, model)
    }

    /// The name of its content.
    #[must_use]
    pub const fn id(&self) -> AdapterId {
        self.id
    }

    /// Bytes that its values take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let count = self.adapter.value_count(self.adapter.blocks()).unwrap_or(0);
        usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(size_of::<f32>())
    }

    /// Its values.
    #[must_use]
    pub const fn adapter(&self) -> &Arc<Adapter> {
        &self.adapter
    }

    /// Tokens of the session's context that its prompt takes.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.adapter.config().prompt_tokens
    }

    /// The learned vectors that stand before the text, if there are any.
    pub(crate) fn prompt(&self) -> Option<HiddenStates> {
        let (values, tokens) = (self.adapter.prompt(), self.prompt_tokens());
        let hidden_size = values.len().checked_div(tokens).filter(|size| *size > 0)?;
        HiddenStates::from_values(values.to_vec(), hidden_size).ok()
    }

    /// What servers are told of it when a session opens; nothing where it has nothing for blocks.
    pub(crate) fn described(&self) -> Option<SessionAdapter> {
        let settings = self.adapter.config();
        let adapts = settings.adapts_blocks();
        adapts.then(|| SessionAdapter { id: self.id, settings: settings.into() })
    }

    /// The part that begins at a value of those for some blocks; `None` where there is none.
    pub(crate) fn part(
        &self,
        session: SessionId,
        blocks: Span,
        offset: u64,
    ) -> Option<AdapterPart> {
        let left = self.adapter.value_count(blocks)?.checked_sub(offset)?;
        let end = offset + left.min(STATE_VALUES_MAX as u64);
        let values = self.adapter.values(blocks, offset..end)?;
        let count = u32::try_from(values.len()).ok()?;
        let values = Tensor::from_f32(vec![count], &values).ok()?;
        Some(AdapterPart { session, offset, values })
    }
}
