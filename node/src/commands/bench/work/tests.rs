//! What a small model asks, counted by hand.

use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{Cache, Experts, Family, Model, ModelSource, PartsNeeded, Silent};

use super::*;

const MACHINE: Machine = Machine {
    threads: 2,
    read_by_one: 10e9,
    read: 20e9,
    binary32: 100e9,
    bfloat16: Some(200e9),
    integer8: Some(400e9),
};

fn shape() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 96,
        head_count: 4,
        kv_head_count: 2,
        head_size: 16,
        vocabulary_size: 100,
        context_tokens: 128,
        ..ModelConfig::llama(2)
    }
}

/// Weights of the matrices of a block: q, k, v, o, then gate, up and down.
const BLOCK: f64 = (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96) as f64;
const HEAD: f64 = (100 * 64) as f64;
/// Bytes of the norms: two in each block and a last one, of 64 values in binary32.
const NORMS: f64 = (5 * 64 * 4) as f64;

fn work(kind: WeightType) -> Work {
    work_of(&shape(), kind)
}

fn work_of(shape: &ModelConfig, kind: WeightType) -> Work {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let file = GgufWriter::random_model(shape, kind, 1).unwrap();
    std::fs::write(&path, file.to_bytes()).unwrap();
    let source = ModelSource::parse(path.to_str().unwrap()).unwrap();
    let cache = Cache::new(folder.path().join("cache"));
    let model = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    Work::of(model.config(), model.manifest())
}

fn assert_close(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} instead of {expected}");
}

#[test]
fn a_step_reads_every_weight_once_and_the_past_of_each_client() {
    let weights = (2.0 * BLOCK + HEAD) * 2.0 + NORMS;
    // Two blocks, keys and values in binary32, two heads of 16.
    let kv = (2 * 2 * 4 * 2 * 16) as f64;
    let work = work(WeightType::BF16);
    assert_close(work.step_bytes(1.0, 10.0), weights + 10.0 * kv);
    assert_close(work.step_bytes(8.0, 10.0), weights + 80.0 * kv);
    let share = work.of_reading(20e9, 1_000.0, 8.0, 10.0);
    assert_close(share, (weights + 80.0 * kv) * 125.0 / 20e9);
}

#[test]
fn a_prompt_multiplies_by_every_block_and_needs_the_head_once() {
    // Of two blocks, with 64 values of queries: 1 + 2 + 3 pairs of tokens, two products each.
    let attention = 2.0 * 6.0 * 4.0 * 64.0;
    let products = 2.0 * (3.0 * 2.0 * BLOCK + HEAD);
    for (kind, rate) in
        [(WeightType::F16, MACHINE.binary32), (WeightType::BF16, 200e9), (WeightType::Q8_0, 400e9)]
    {
        let work = work(kind);
        assert_close(work.prompt_operations(3.0), products + attention);
        let seconds = products / rate + attention / MACHINE.binary32;
        // Read in exactly the time that the units need, it is the whole of what they can do.
        assert_close(work.prompt_of_arithmetic(&MACHINE, 3.0 / seconds, 3.0), 1.0);
        assert_close(work.prompt_of_arithmetic(&MACHINE, 1.5 / seconds, 3.0), 0.5);
    }
}

#[test]
fn a_step_multiplies_by_the_head_too() {
    let work = work(WeightType::BF16);
    let seconds = 2.0 * (2.0 * BLOCK + HEAD) / 200e9 + 2.0 * 4.0 * 64.0 * 10.0 / 100e9;
    assert_close(work.of_arithmetic(&MACHINE, 1.0 / seconds, 10.0), 1.0);
}

#[test]
fn a_window_bounds_what_is_read_and_attended_to() {
    let mut windowed = work(WeightType::BF16);
    let all = windowed.clone();
    windowed.kv[1].window = 4.0;
    let kv = (2 * 4 * 2 * 16) as f64;
    let difference = all.step_bytes(1.0, 10.0) - windowed.step_bytes(1.0, 10.0);
    assert_close(difference, 6.0 * kv);
    // Tokens 5 to 10 leave out one to six others.
    let difference = all.prompt_operations(10.0) - windowed.prompt_operations(10.0);
    assert_close(difference, 21.0 * 4.0 * 64.0);
}

#[test]
fn of_experts_those_count_that_tokens_go_through() {
    let experts = Some(Experts { count: 8, per_token: 2, normalized: true });
    let sparse = ModelConfig { family: Family::Mixtral, experts, ..shape() };
    let (dense, sparse) = (work(WeightType::BF16), work_of(&sparse, WeightType::BF16));
    // Two experts are an MLP more, and the routers' logits are in binary32.
    let (mlp, routers) = (2.0 * (3 * 64 * 96) as f64, 2.0 * (8 * 64) as f64);
    let more = |clients: f64| sparse.step_bytes(clients, 1.0) - dense.step_bytes(clients, 1.0);
    assert_close(more(1.0), mlp * 2.0 + routers * 4.0);
    // Of eight experts two tokens meet 1 - (6 / 8)^2.
    assert_close(more(2.0), mlp * 2.0 * (8.0 * 7.0 / 16.0 - 1.0) + routers * 4.0);
    let more = sparse.prompt_operations(3.0) - dense.prompt_operations(3.0);
    assert_close(more, 2.0 * 3.0 * (mlp + routers));
}
