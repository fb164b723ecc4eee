//! Training takes the memory of one block's activations, however many blocks a span has.
//!
//! A program of its own, since it measures the whole process.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use umbel_engine::train::{Adapter, AdapterConfig, Forward, Sequence, TargetModule, TrainingPass};
use umbel_engine::{HiddenStates, HostedSpan};
use umbel_protocol::Span;
use umbel_shard::{Family, ModelConfig, Rope, RopeScaling, Weight, WeightType, Weights, layout};

const HIDDEN_SIZE: usize = 256;
const TOKENS: usize = 2_048;

/// What one token's row of hidden states takes in all of them.
const INPUT_BYTES: u64 = (TOKENS * HIDDEN_SIZE * 4) as u64;

/// The activations of one block that are there at once on the way back, at the least: queries, keys,
/// values, what was attended and the residual path of the first half; gate, up, their product, and the
/// gradients of these three in the second half.
const BLOCK_BYTES: u64 = (TOKENS * (5 * HIDDEN_SIZE + 6 * 4 * HIDDEN_SIZE) * 4) as u64;

/// What an allocator may keep, and threads put on their stacks.
const SLACK_BYTES: u64 = 24 << 20;

fn config(block_count: u32) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden_size: HIDDEN_SIZE,
        intermediate_size: 4 * HIDDEN_SIZE,
        block_count,
        head_count: 8,
        kv_head_count: 8,
        head_size: 32,
        vocabulary_size: 64,
        context_tokens: 128,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        attention_windows: vec![None; block_count as usize],
        attention_bias: false,
        output_bias: false,
        mlp_bias: false,
        experts: None,
        tied_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn weights(config: &ModelConfig) -> Weights {
    let tensors = (0..config.block_count).flat_map(|index| layout::block(config, index));
    let weight = |tensor: layout::LayoutTensor| {
        let count: usize = tensor.shape.iter().product();
        // Small and uneven: what the values are does not matter here.
        let values = (0..count).map(|index| ((index * 37 % 101) as f32 - 50.0) / 2_000.0);
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        (tensor.name, Weight::new(WeightType::F32, tensor.shape, bytes).unwrap())
    };
    tensors.map(weight).collect()
}

fn status_bytes(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// By how much the process grew at most while it learned from all tokens.
fn growth(block_count: u32) -> u64 {
    let config = config(block_count);
    let span = Span::new(0, block_count).unwrap();
    let hosted = HostedSpan::load(&config, &weights(&config), span).unwrap();
    let settings = AdapterConfig {
        rank: 4,
        alpha: 8.0,
        rank_stabilized: false,
        dropout: 0.1,
        target_modules: TargetModule::ALL.to_vec(),
        ..AdapterConfig::default()
    };
    let adapter = Adapter::begin(settings, &config, span, 1).unwrap();
    let sequences = [Sequence { tokens: 64, dropout_seed: 1 }; TOKENS / 64];
    let values = (0..TOKENS * HIDDEN_SIZE).map(|index| (index * 31 % 97) as f32 / 97.0 - 0.5);
    let input = HiddenStates::from_values(values.collect(), HIDDEN_SIZE).unwrap();
    umbel_engine::heap::give_back();
    let before = status_bytes("VmRSS:");
    // From here on the peak counts anew (proc(5)).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let pass = TrainingPass::new(&hosted, span, Some(&adapter), &sequences).unwrap();
    let Forward { inputs, output } = pass.forward(&input).unwrap();
    let back = pass.backward(&inputs, &output).unwrap();
    let peak = status_bytes("VmHWM:");
    assert!(back.parameters.sum_of_squares() > 0.0);
    peak.saturating_sub(before)
}

#[test]
fn a_long_span_takes_the_activations_of_one_block_as_a_short_one_does() {
    let (short, long) = (growth(2), growth(10));
    // What entered each of the other eight blocks is kept, and nothing else of theirs.
    let kept = 8 * INPUT_BYTES;
    assert!(long < short + kept + SLACK_BYTES, "{short} and {long} bytes");
    assert!(short > BLOCK_BYTES, "the peak was seen: {short} bytes");
    assert!(8 * BLOCK_BYTES > 4 * (kept + SLACK_BYTES), "all activations would be far more");
}
