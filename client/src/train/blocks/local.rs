//! All blocks in this process.

use std::sync::Arc;

use umbel_engine::train::{
    Backward, Sequence, TrainError as PassError, TrainingPass, TrainingState,
};
use umbel_engine::{Device, HiddenStates, HostedSpan};
use umbel_protocol::Span;
use umbel_shard::{Model, Part};

use super::Microbatch;
use crate::apart;
use crate::chain::local::{LoadLocalError, LocalModel};
use crate::model::ClientModel;
use crate::train::TrainError;

/// Every block of a model, for a training in this process.
pub struct LocalBlocks(Arc<HostedSpan>);

impl LocalBlocks {
    /// Loads every block.
    ///
    /// # Errors
    /// [`LoadLocalError`] where the model's files are not what they should be.
    pub fn load(model: &Model, device: Device) -> Result<Self, LoadLocalError> {
        let config = model.config();
        let span = Span::new(0, config.block_count).map_err(|_| LoadLocalError::NoBlocks)?;
        let weights = model.weights(Part::Blocks(span))?;
        let blocks = device.run(|| HostedSpan::load(config, &weights, span))?;
        Ok(Self(Arc::new(blocks.on(device))))
    }

    /// Those of a model that answers already.
    #[must_use]
    pub fn of(model: &LocalModel) -> Self {
        Self(Arc::new(model.blocks()))
    }

    pub(super) fn span(&self) -> Span {
        self.0.span()
    }

    pub(super) async fn begin_magnitudes(
        &self,
        state: &mut Arc<TrainingState>,
    ) -> Result<(), TrainError> {
        let (blocks, of) = (Arc::clone(&self.0), Arc::clone(state));
        let compute = move || {
            let adapter = of.adapter();
            blocks.first_magnitudes(adapter, 0..adapter.magnitude_count(blocks.span()), &|| ())
        };
        let norms = apart::compute(compute).await?;
        let set = Arc::make_mut(state).set_magnitudes(&norms.unwrap_or_default());
        set.map_err(|_| TrainError::Magnitudes)
    }

    pub(super) async fn learn(
        &self,
        model: &Arc<ClientModel>,
        state: &mut Arc<TrainingState>,
        microbatches: &mut [Microbatch],
        weight: f32,
    ) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for microbatch in microbatches {
            let last = self.span().end();
            let (inputs, output) = self.forward(state, microbatch, true).await?;
            microbatch.entering.insert(last, output);
            sum += microbatch.foretell(model, Some(weight)).await?;
            let gradient = microbatch.gradients[&last].clone();
            let back = self.backward(state, microbatch, inputs, gradient).await?;
            // The passes have let go of the state, so that nothing is copied.
            Arc::make_mut(state).add(&back.parameters);
            microbatch.gradients.insert(self.span().start(), back.input);
        }
        Ok(sum)
    }

    pub(super) async fn evaluate(
        &self,
        model: &Arc<ClientModel>,
        state: &Arc<TrainingState>,
        microbatches: &mut [Microbatch],
    ) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for microbatch in microbatches {
            self.answer(state, microbatch).await?;
            sum += microbatch.foretell(model, None).await?;
        }
        Ok(sum)
    }

    /// Takes a microbatch through, without dropout.
    async fn answer(
        &self,
        state: &Arc<TrainingState>,
        microbatch: &mut Microbatch,
    ) -> Result<(), TrainError> {
        let (_, output) = self.forward(state, microbatch, false).await?;
        microbatch.entering.insert(self.span().end(), output);
        Ok(())
    }

    async fn forward(
        &self,
        state: &Arc<TrainingState>,
        microbatch: &Microbatch,
        drops: bool,
    ) -> Result<(Vec<HiddenStates>, HiddenStates), TrainError> {
        let input = microbatch.entering[&0].clone();
        let sequences = microbatch.engine_sequences();
        let forward = self.compute(state, sequences, move |pass| {
            let pass = if drops { pass } else { pass.without_dropout() };
            pass.forward(&input)
        });
        let forward = forward.await?;
        Ok((forward.inputs, forward.output))
    }

    async fn backward(
        &self,
        state: &Arc<TrainingState>,
        microbatch: &Microbatch,
        inputs: Vec<HiddenStates>,
        gradient: HiddenStates,
    ) -> Result<Backward, TrainError> {
        let sequences = microbatch.engine_sequences();
        self.compute(state, sequences, move |pass| pass.backward(&inputs, &gradient)).await
    }

    /// Does the work apart from the network.
    async fn compute<R: Send + 'static>(
        &self,
        state: &Arc<TrainingState>,
        sequences: Vec<Sequence>,
        work: impl FnOnce(TrainingPass<'_>) -> Result<R, PassError> + Send + 'static,
    ) -> Result<R, TrainError> {
        let (blocks, state) = (Arc::clone(&self.0), Arc::clone(state));
        let compute = move || {
            let adapter = Some(state.adapter());
            work(TrainingPass::new(&blocks, blocks.span(), adapter, &sequences)?)
        };
        Ok(apart::compute(compute).await?)
    }
}
