//! Gradients against the reference's, against differences, and their bits among each other.

mod bits;
mod differences;
mod dora;
mod oracle;
mod refusal;

use umbel_shard::{Family, ModelConfig, WeightType, Weights};

use super::*;
use crate::kernel::Arithmetic;
use crate::noise::Stream;
use crate::span::tests::model;

const TOKENS: usize = 26;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

/// A small model with an adapter on all its matrices, some sequences and a gradient to bring back.
struct World {
    config: ModelConfig,
    weights: Weights,
    adapter: Adapter,
    sequences: Vec<Sequence>,
    input: HiddenStates,
    gradient: HiddenStates,
}

impl World {
    fn new(family: Family, weight_type: WeightType) -> Self {
        // No two of the sizes are one, so that none can stand for another.
        let mut config = model::config(family);
        (config.intermediate_size, config.head_count, config.head_size) = (512, 6, 128);
        let weights = model::weights(&config, weight_type);
        let adapter = adapter(&config, 0.0);
        let sequences = [(7, 1), (TOKENS - 7, 2)]
            .map(|(tokens, dropout_seed)| Sequence { tokens, dropout_seed })
            .to_vec();
        let (input, gradient) = (model::hidden(TOKENS, 11), model::hidden(TOKENS, 12));
        Self { config, weights, adapter, sequences, input, gradient }
    }

    /// With activations in binary32, so that differences show the gradients.
    fn host(&self, blocks: Span) -> HostedSpan {
        HostedSpan::load_with(Arithmetic::Exact, &self.config, &self.weights, blocks).unwrap()
    }

    fn pass<'a>(
        &'a self,
        hosted: &'a HostedSpan,
        adapter: Option<&'a Adapter>,
    ) -> TrainingPass<'a> {
        TrainingPass::new(hosted, hosted.span(), adapter, &self.sequences).unwrap()
    }

    /// Forward and back through all of `hosted`.
    fn train(&self, hosted: &HostedSpan, adapter: Option<&Adapter>) -> (HiddenStates, Backward) {
        let pass = self.pass(hosted, adapter);
        let Forward { inputs, output } = pass.forward(&self.input).unwrap();
        (output, pass.backward(&inputs, &self.gradient).unwrap())
    }

    /// The function whose gradient is brought back: what leaves the last block, times `gradient`.
    fn value(&self, hosted: &HostedSpan, adapter: &Adapter, input: &HiddenStates) -> f64 {
        let output = self.pass(hosted, Some(adapter)).forward(input).unwrap().output;
        product(&output.to_values(), &self.gradient.to_values())
    }
}

/// An adapter whose matrices are all at work.
fn adapter(config: &ModelConfig, dropout: f32) -> Adapter {
    let settings = AdapterConfig {
        rank: 3,
        alpha: 6.0,
        rank_stabilized: false,
        dropout,
        target_modules: model::targets(config),
        ..AdapterConfig::default()
    };
    let mut adapter = Adapter::begin(settings, config, span(0, config.block_count), 5).unwrap();
    for (place, matrices) in &mut adapter.parameters.matrices {
        let noise = Stream::of(dropout::stream_of(place.0, place.1), 77);
        let places = (0..).zip(&mut matrices.b);
        places.for_each(|(index, place)| *place = noise.signed(index) * 0.1);
    }
    adapter
}

/// Prompts of `tokens` tokens before the text and in each block, whose values are of the size of hidden
/// states.
fn prompts(config: &ModelConfig, tokens: usize) -> Adapter {
    let settings = AdapterConfig {
        prompt_tokens: tokens,
        block_prompt_tokens: tokens,
        ..AdapterConfig::default()
    };
    let mut adapter = Adapter::blank(settings, config, span(0, config.block_count)).unwrap();
    let count = adapter.parameters().value_count();
    let noise = Stream::of(3, 8);
    let values: Vec<_> = (0..count).map(|index| noise.signed(index) * 0.5).collect();
    adapter.write(0, &values).unwrap();
    adapter
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The length of what `found` is beside `expected`, by the length of that.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    (product(&difference, &difference) / product(expected, expected)).sqrt()
}

fn states(values: Vec<f32>, like: &HiddenStates) -> HiddenStates {
    HiddenStates::from_values(values, like.hidden_size()).unwrap()
}
