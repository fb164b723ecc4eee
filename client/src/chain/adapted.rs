//! All blocks with an adapter, in this process or over a swarm.
//!
//! There is no cache: whatever is asked goes through the blocks from its first token on, the way that a
//! training evaluates. So an answer takes the longer the longer it is, and needs nothing of servers but
//! that they train.

use std::sync::Arc;
use std::time::Instant;

use umbel_engine::train::{AdamW, Adapter, TrainingState};
use umbel_engine::{HiddenStates, NoSuchRows};
use umbel_protocol::{PeerId, Span};

use super::StepTime;
use crate::model::ClientModel;
use crate::swarm::Swarm;
use crate::train::{Blocks, LocalBlocks, RemoteBlocks, RemoteSettings, TrainError};

/// A text that goes through the blocks again and again.
pub struct AdaptedChain {
    blocks: Blocks,
    state: Arc<TrainingState>,
    tokens_max: u32,
    /// What enters the first block, of all tokens so far.
    entering: Option<HiddenStates>,
    passes: u64,
}

impl AdaptedChain {
    /// A chain in this process.
    #[must_use]
    pub fn local(blocks: LocalBlocks, adapter: Adapter, tokens_max: u32) -> Self {
        Self::new(Blocks::Local(blocks), adapter, tokens_max)
    }

    /// A chain over the servers of a swarm, each of which is given its part of the adapter.
    ///
    /// # Errors
    /// [`TrainError`] where no route of servers that train covers the model.
    pub async fn remote(
        swarm: Arc<Swarm>,
        model: &ClientModel,
        adapter: Adapter,
        tokens_max: u32,
    ) -> Result<Self, TrainError> {
        let state = TrainingState::new(adapter.clone(), AdamW::default());
        // There is one text, which goes forward and is done.
        let settings = RemoteSettings { tokens_max, under_way: 1, ..RemoteSettings::default() };
        let blocks = RemoteBlocks::open(swarm, model, &state, settings).await?;
        Ok(Self::new(Blocks::Remote(Box::new(blocks)), adapter, tokens_max))
    }

    fn new(blocks: Blocks, adapter: Adapter, tokens_max: u32) -> Self {
        let state = Arc::new(TrainingState::new(adapter, AdamW::default()));
        Self { blocks, state, tokens_max, entering: None, passes: 0 }
    }

    pub(super) async fn step(
        &mut self,
        position: u32,
        hidden: HiddenStates,
    ) -> Result<(HiddenStates, StepTime), AdaptedStepError> {
        let started = Instant::now();
        let (position, tokens) = (position as usize, hidden.token_count());
        let entering = match &self.entering {
            Some(before) if position > 0 => {
                let kept = before.rows(0..position)?;
                HiddenStates::concat(&[kept, hidden]).expect("both are of one model")
            }
            Some(_) | None if position == 0 => hidden,
            Some(_) | None => {
                return Err(NoSuchRows { rows: 0..position, tokens: 0 }.into());
            }
        };
        self.entering = Some(entering.clone());
        self.passes += 1;
        let left = self.blocks.answer(&self.state, entering, self.passes).await?;
        let rows = left.rows(position..position + tokens)?;
        // Servers do not say what they took of it.
        Ok((rows, StepTime { total: started.elapsed(), hops: Vec::new() }))
    }

    pub(super) const fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    pub(super) fn route(&self) -> Vec<(Option<PeerId>, Span)> {
        self.blocks.routes().into_iter().flatten().map(|hop| (hop.peer, hop.blocks)).collect()
    }

    pub(super) fn forget(&mut self) {
        self.entering = None;
    }

    pub(super) async fn close(self) {
        self.blocks.close().await;
    }
}

/// A step with an adapter that was not computed.
#[derive(Debug, thiserror::Error)]
pub enum AdaptedStepError {
    /// The step begins beyond the end of the text.
    #[error(transparent)]
    Position(#[from] NoSuchRows),
    /// The blocks could not be computed.
    #[error(transparent)]
    Blocks(#[from] TrainError),
}
