//! How fast the kernels are, beside how fast memory can be read: `cargo bench -p umbel-engine`.
//!
//! One row is bound by memory, so the weights are many copies of one matrix, more than any cache
//! holds, and the figure is bytes of weights a second. Many rows are bound by arithmetic, and the
//! figure is multiplications and additions a second. Each is the best of several runs.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use umbel_engine::kernel::{
    Attending, AttentionShape, InstructionSet, KvPages, PAGE_TOKENS, WeightView, attention, matmul,
};
use umbel_shard::WeightType;

/// A projection of a model of a billion parameters, down from its MLP.
const ROWS: usize = 2048;
const COLUMNS: usize = 5632;

/// Four times the cache of the machines that we have.
const STREAM_BYTES: usize = 128 << 20;

/// Runs of which the best counts; other work on the machine only ever makes one slower.
const RUNS: usize = 5;

const TYPES: [WeightType; 11] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::BF16,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q5_0,
    WeightType::Q5_1,
    WeightType::Q8_0,
    WeightType::Q4K,
    WeightType::Q5K,
    WeightType::Q6K,
];

fn main() {
    // `cargo test --benches` runs this without the argument, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pools = [pool(1), pool(threads)];
    println!(
        "{:?}, weights {ROWS} x {COLUMNS}; 1 and {threads} threads",
        InstructionSet::detected()
    );
    let memory = vec![1_u64; STREAM_BYTES / 8];
    let [one, all] = pools.each_ref().map(|pool| gigabytes(STREAM_BYTES, read(pool, &memory)));
    println!("streaming read: {one:.1} and {all:.1} GB/s");
    drop(memory);
    println!("{:6} {:>14} {:>16} {:>16}", "", "1 row", "32 rows", "512 rows");
    println!("{:6} {:>14} {:>16} {:>16}", "", "GB/s", "GFLOP/s", "GFLOP/s");
    for kind in TYPES {
        let bytes = ROWS * COLUMNS / kind.block_values() * kind.block_bytes();
        let copies = STREAM_BYTES.div_ceil(bytes);
        let weights = weights(kind, bytes * copies);
        let [one, all] = pools
            .each_ref()
            .map(|pool| gigabytes(bytes * copies, multiply(pool, kind, &weights, 1)));
        let [few, many] = [32, 512].map(|tokens| {
            pools.each_ref().map(|pool| {
                let elapsed = multiply(pool, kind, &weights[..bytes], tokens);
                2.0 * (ROWS * COLUMNS * tokens) as f64 / elapsed.as_secs_f64() / 1e9
            })
        });
        println!(
            "{:6} {one:6.1} {all:7.1} {:8.1} {:7.1} {:8.1} {:7.1}",
            kind.name(),
            few[0],
            few[1],
            many[0],
            many[1],
        );
    }
    attend(&pools);
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start")
}

fn gigabytes(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64() / 1e9
}

/// The best of several runs inside `pool`.
fn best(pool: &ThreadPool, mut work: impl FnMut() + Send) -> Duration {
    pool.install(|| {
        work();
        let mut run = || {
            let start = Instant::now();
            work();
            start.elapsed()
        };
        (0..RUNS).map(|_| run()).min().expect("there are runs")
    })
}

/// A sum over all of `memory`, with enough lanes to wait for nothing but the loads.
fn read(pool: &ThreadPool, memory: &[u64]) -> Duration {
    best(pool, || {
        let sum = memory.par_chunks(1 << 17).map(|part| {
            let mut sums = [0_u64; 16];
            for words in part.as_chunks::<16>().0 {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum ^= word;
                }
            }
            sums.iter().fold(0, |sum, word| sum ^ word)
        });
        black_box(sum.reduce(|| 0, |sum, word| sum ^ word));
    })
}

/// Weights of any bits, but with small scales: for speed their values do not matter, as long as
/// none is denormal or no number.
fn weights(kind: WeightType, bytes: usize) -> Vec<u8> {
    // Bytes of which any two are a binary16 of about 0.01, and any four a small binary32.
    let mut bytes: Vec<u8> = [0u8, 7, 14, 5, 12, 3, 10, 1, 8, 15, 6, 13, 4, 11, 2, 9]
        .iter()
        .map(|low| 0x20 | low)
        .cycle()
        .take(bytes)
        .collect();
    if kind.is_float() {
        bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = 0x3c);
    }
    bytes
}

/// `tokens` rows times each of the matrices in `weights`.
fn multiply(pool: &ThreadPool, kind: WeightType, weights: &[u8], tokens: usize) -> Duration {
    let input: Vec<f32> =
        (0..tokens * COLUMNS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let mut output = vec![0.0; tokens * ROWS];
    let bytes = ROWS * COLUMNS / kind.block_values() * kind.block_bytes();
    best(pool, || {
        for bytes in weights.chunks_exact(bytes) {
            matmul(WeightView { kind, bytes, rows: ROWS, columns: COLUMNS }, &input, &mut output);
        }
        black_box(&output);
    })
}

/// A cache of one page of zeros, seen again and again.
struct OnePage(Vec<f32>);

impl KvPages for OnePage {
    fn keys(&self, _index: usize) -> &[f32] {
        &self.0
    }

    fn values(&self, _index: usize) -> &[f32] {
        &self.0
    }
}

/// Attention of 512 tokens to themselves and 512 before them.
fn attend(pools: &[ThreadPool; 2]) {
    let shape = AttentionShape { heads: 32, kv_heads: 8, head_size: 64, window: None };
    let tokens = 512;
    let pages = OnePage(vec![0.5; shape.kv_heads * PAGE_TOKENS * shape.head_size]);
    let queries = vec![0.25; tokens * shape.heads * shape.head_size];
    let mut output = vec![0.0; queries.len()];
    // Each query meets 512 positions before the prompt and on average half of the prompt, with two
    // operations for the score and two for the value.
    let seen = 512 + tokens / 2;
    let operations = 4.0 * (queries.len() * seen) as f64;
    let [one, all] = pools.each_ref().map(|pool| {
        let elapsed = best(pool, || {
            let session = Attending { pages: &pages, position: 512, tokens: 512 };
            attention(shape, &queries, &[session], &mut output);
        });
        operations / elapsed.as_secs_f64() / 1e9
    });
    println!(
        "attention, 512 tokens from position 512, 32 heads of 64: {one:.1} and {all:.1} GFLOP/s"
    );
}
