//! The values of an adapter as one row: block by block, in each block module by module, of each module
//! A, B and the magnitudes of DoRA; last what stands before the text. So the part of some blocks is a stretch of the
//! row of all, and travels in pieces.

use std::ops::Range;

use umbel_protocol::Span;
use umbel_shard::ModelConfig;

use super::{Adapter, AdapterConfig, AdapterError, LoraMatrices, Parameters, module_shape, places};
use crate::train::state::WriteError;

impl Adapter {
    /// An adapter whose values are all zero until they are written.
    ///
    /// # Errors
    /// As [`Adapter::begin`].
    pub fn blank(
        config: AdapterConfig,
        model: &ModelConfig,
        blocks: Span,
    ) -> Result<Self, AdapterError> {
        super::check_blocks(model, blocks)?;
        config.check()?;
        config.check_context(model)?;
        config.check_modules(model)?;
        let rank = config.rank;
        let matrices = places(&config, blocks).map(|(block, module)| {
            let [rows, columns] = module_shape(module, model).expect("the modules were checked");
            let matrices =
                LoraMatrices::new(vec![0.0; rank * columns], vec![0.0; rows * rank], rank);
            let matrices = if config.weight_decomposed {
                matrices.with_magnitudes(vec![0.0; rows])
            } else {
                matrices
            };
            ((block, module), matrices)
        });
        let prompt = |tokens: usize| vec![0.0; tokens * model.hidden_size];
        let tokens = config.block_prompt_tokens;
        let prompted = blocks.blocks().filter(|_| tokens > 0);
        let parameters = Parameters {
            matrices: matrices.collect(),
            block_prompts: prompted.map(|block| (block, prompt(tokens))).collect(),
            prompt: prompt(config.prompt_tokens),
        };
        Ok(Self { config, blocks, parameters })
    }

    /// How many magnitudes it has in `blocks`: none without DoRA.
    #[must_use]
    pub fn magnitude_count(&self, blocks: Span) -> u64 {
        let here = self.parameters.iter().filter(|((block, _), _)| blocks.contains(*block));
        here.map(|(_, matrices)| matrices.magnitudes.len() as u64).sum()
    }

    /// Whether its magnitudes are still to begin as the norms of the frozen matrices' rows, which it does
    /// not know by itself: see [`Adapter::set_magnitudes`].
    #[must_use]
    pub fn lacks_magnitudes(&self) -> bool {
        let all = || self.parameters.iter().flat_map(|(_, matrices)| &matrices.magnitudes);
        all().next().is_some() && all().all(|magnitude| *magnitude == 0.0)
    }

    /// Replaces the magnitudes: block by block, in each block module by module.
    ///
    /// # Errors
    /// [`WriteError`] where there are not as many, or one is no norm; then nothing has changed.
    pub fn set_magnitudes(&mut self, values: &[f32]) -> Result<(), WriteError> {
        if values.iter().any(|value| !(0.0..f32::INFINITY).contains(value)) {
            return Err(WriteError::NotFinite);
        }
        let count = self.magnitude_count(self.blocks);
        if values.len() as u64 != count {
            return Err(WriteError::TooMany { count });
        }
        let mut rest = values;
        for matrices in self.parameters.matrices.values_mut() {
            matrices.computed.forget();
            let next = rest.split_off(..matrices.magnitudes.len()).expect("they were counted");
            matrices.magnitudes.copy_from_slice(next);
        }
        Ok(())
    }

    /// How many values it has in `blocks`; `None` where it lacks one.
    #[must_use]
    pub fn value_count(&self, blocks: Span) -> Option<u64> {
        let of_block = self.parameters.block_value_count() / u64::from(self.blocks.block_count());
        self.blocks.covers(blocks).then(|| u64::from(blocks.block_count()) * of_block)
    }

    /// Some of the values that it has in `blocks`; `None` where it lacks a block, or there are not as
    /// many.
    #[must_use]
    pub fn values(&self, blocks: Span, range: Range<u64>) -> Option<Vec<f32>> {
        let count = self.value_count(blocks).filter(|count| range.end <= *count)?;
        let of_block = count / u64::from(blocks.block_count());
        let start = u64::from(blocks.start() - self.blocks.start()) * of_block;
        self.parameters.read(start + range.start..start + range.end)
    }

    /// Replaces the values from `offset` on.
    ///
    /// # Errors
    /// [`WriteError`] where there are not as many, or one is no finite number; then nothing has
    /// changed.
    pub fn write(&mut self, offset: u64, values: &[f32]) -> Result<(), WriteError> {
        if values.iter().any(|value| !value.is_finite()) {
            return Err(WriteError::NotFinite);
        }
        let count = self.parameters.value_count();
        self.parameters.write(offset, values).ok_or(WriteError::TooMany { count })
    }
}

#[cfg(test)]
mod tests {
    use umbel_shard::Family;

    use super::*;
    use crate::span::tests::model;
    use crate::train::TargetModule;

    #[test]
    fn a_part_that_is_copied_in_pieces_is_the_part() {
        let (config, span) = (model::config(Family::Llama), |a, b| Span::new(a, b).unwrap());
        let settings = AdapterConfig {
            rank: 3,
            alpha: 4.0,
            rank_stabilized: true,
            dropout: 0.0,
            target_modules: vec![TargetModule::Down, TargetModule::Query],
            ..AdapterConfig::default()
        };
        let whole = Adapter::begin(settings.clone(), &config, span(0, 3), 7).unwrap();
        let mut copy = Adapter::blank(settings, &config, span(1, 3)).unwrap();
        let (mut offset, count) = (0, copy.parameters().value_count());
        while offset < count {
            let end = count.min(offset + 100);
            let values = whole.values(span(1, 3), offset..end).unwrap();
            copy.write(offset, &values).unwrap();
            offset = end;
        }
        assert_eq!(copy, whole.part(span(1, 3)).unwrap());
        assert_eq!(whole.values(span(1, 3), 0..count + 1), None);
        assert_eq!(copy.values(span(0, 2), 0..1), None);
        assert_eq!(copy.write(count, &[1.0]), Err(WriteError::TooMany { count }));
        assert_eq!(copy.write(0, &[f32::NAN]), Err(WriteError::NotFinite));
    }
}
