//! How fast quantized matrices are, beside what this machine can do: `cargo bench -p umbel-engine
//! --bench quantized`, with `Q4_0 Q8_0` after `--` for some types only.
//!
//! One row is bound by memory: the figure is bytes of weights a second, and its share of what a
//! streaming read reaches, by one thread and by all. Many rows are bound by arithmetic: the figure is
//! operations a second by one thread, two for each weight and row, and its share of what `vdpbf16ps`
//! reaches on registers. Activations of 16 bits take two products of bytes each, so `vpdpbusd` has
//! the same limit for them.
//!
//! One thread is timed by what it ran, all threads by the clock. Each figure is the best of many short
//! runs, in turns: other work on the machine only ever makes them slower.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use umbel_engine::kernel::{Arithmetic, InstructionSet, PackedMatrix};
use umbel_shard::{Weight, WeightType};

/// A projection of a model of a billion parameters, down from its MLP: for one row.
const LARGE: [usize; 2] = [2048, 5632];

/// A matrix that takes a few milliseconds with many rows, which is less than a thread may run at once
/// where others wait.
const SMALL: [usize; 2] = [512, 2048];

/// Four times the cache of the machines that we have.
const STREAM_BYTES: usize = 128 << 20;

/// Rows of activations.
const TOKENS: [usize; 3] = [8, 32, 512];

/// Rounds over everything, and runs of each figure in a round.
const ROUNDS: usize = 3;
const RUNS: usize = 8;

const TYPES: [WeightType; 8] = [
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q5_0,
    WeightType::Q5_1,
    WeightType::Q8_0,
    WeightType::Q4K,
    WeightType::Q5K,
    WeightType::Q6K,
];

/// The best times of one type.
#[derive(Clone, Copy)]
struct Best {
    /// One row, by one thread and by all.
    one: [Duration; 2],
    /// As many rows as [`TOKENS`] says.
    many: [Duration; 3],
    /// 512 rows with [`Arithmetic::Fast`].
    fast: Duration,
}

/// What the machine reaches.
struct Limits {
    /// Bytes of a streaming read, by one thread and by all.
    stream: [Duration; 2],
    /// `vpdpbusd` and `vdpbf16ps` by one thread, in billions of operations a second.
    registers: [f64; 2],
}

fn main() {
    // `cargo test --benches` runs this without the argument, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let named: Vec<String> = std::env::args().skip(1).filter(|name| name != "--bench").collect();
    let types: Vec<_> = TYPES
        .into_iter()
        .filter(|kind| named.is_empty() || named.iter().any(|name| name == kind.name()))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pools = [pool(1), pool(threads)];
    let memory = vec![1_u64; STREAM_BYTES / 8];
    let long = Duration::MAX;
    let mut limits = Limits { stream: [long; 2], registers: [0.0; 2] };
    let mut best = vec![Best { one: [long; 2], many: [long; 3], fast: long }; types.len()];
    for _ in 0..ROUNDS {
        for (&kind, best) in types.iter().zip(&mut best) {
            limits.measure(&pools, &memory);
            best.measure(&pools, kind);
        }
    }
    println!("{:?}, 1 and {threads} threads", InstructionSet::detected());
    report(&types, &best, &limits);
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start")
}

fn report(types: &[WeightType], best: &[Best], limits: &Limits) {
    let stream = limits.stream.map(|time| STREAM_BYTES as f64 / time.as_secs_f64() / 1e9);
    let [bytes, bfloat16] = limits.registers;
    println!("streaming read {:.1} and {:.1} GB/s", stream[0], stream[1]);
    println!("on registers, by one thread: vpdpbusd {bytes:.0}, vdpbf16ps {bfloat16:.0} Gop/s");
    println!("one row {LARGE:?} in GB/s; 8, 32, 512 rows and 512 fast {SMALL:?} in Gop/s");
    for (kind, best) in types.iter().zip(best) {
        print!("{:5}", kind.name());
        for (time, stream) in best.one.into_iter().zip(stream) {
            let bytes = copies(*kind) * bytes_of(*kind, LARGE);
            let rate = bytes as f64 / time.as_secs_f64() / 1e9;
            print!(" {rate:6.1} {:3.0}%", 100.0 * rate / stream);
        }
        let many = best.many.into_iter().zip(TOKENS).chain([(best.fast, 512)]);
        for (time, tokens) in many {
            let operations = 2 * SMALL[0] * SMALL[1] * tokens;
            let rate = operations as f64 / time.as_secs_f64() / 1e9;
            print!(" {rate:6.0} {:3.0}%", 100.0 * rate / bfloat16);
        }
        println!();
    }
}

fn bytes_of(kind: WeightType, [rows, columns]: [usize; 2]) -> usize {
    rows * columns / kind.block_values() * kind.block_bytes()
}

/// How many large matrices are more than any cache holds.
fn copies(kind: WeightType) -> usize {
    STREAM_BYTES.div_ceil(bytes_of(kind, LARGE))
}

impl Limits {
    fn measure(&mut self, pools: &[ThreadPool; 2], memory: &[u64]) {
        for (pool, best) in pools.iter().zip(&mut self.stream) {
            *best = fastest(pool, || read(memory)).min(*best);
        }
        let rates = pools[0].install(|| registers(&pools[0]));
        for (best, rate) in self.registers.iter_mut().zip(rates) {
            *best = best.max(rate);
        }
    }
}

impl Best {
    fn measure(&mut self, pools: &[ThreadPool; 2], kind: WeightType) {
        let pack = |sizes: [usize; 2]| {
            let weight = Weight::new(kind, sizes.to_vec(), weights(bytes_of(kind, sizes)));
            PackedMatrix::pack(&weight.expect("the sizes fit"))
        };
        let large: Vec<_> = (0..copies(kind)).map(|_| pack(LARGE)).collect();
        for (pool, best) in pools.iter().zip(&mut self.one) {
            *best = multiply(pool, &large, Arithmetic::Usual, 1).min(*best);
        }
        let small = [pack(SMALL)];
        for (best, tokens) in self.many.iter_mut().zip(TOKENS) {
            *best = multiply(&pools[0], &small, Arithmetic::Usual, tokens).min(*best);
        }
        self.fast = multiply(&pools[0], &small, Arithmetic::Fast, 512).min(self.fast);
    }
}

fn multiply(
    pool: &ThreadPool,
    matrices: &[PackedMatrix],
    arithmetic: Arithmetic,
    tokens: usize,
) -> Duration {
    let (rows, columns) = (matrices[0].rows(), matrices[0].columns());
    let input: Vec<f32> =
        (0..tokens * columns).map(|index| ((index * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let mut output = vec![0.0; tokens * rows];
    fastest(pool, || {
        for matrix in matrices {
            matrix.multiply(arithmetic, &input, &mut output);
        }
        black_box(&output);
    })
}

/// The best of several runs.
fn fastest(pool: &ThreadPool, mut work: impl FnMut() + Send) -> Duration {
    let alone = pool.current_num_threads() == 1;
    pool.install(|| {
        let mut run = || {
            let start = (Instant::now(), thread_time());
            work();
            if alone { thread_time() - start.1 } else { start.0.elapsed() }
        };
        (0..RUNS).map(|_| run()).min().expect("there are runs")
    })
}

/// How long this thread has run.
#[allow(unsafe_code, reason = "the system writes where it is told")]
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the system writes one time to the place of one.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "there is such a clock");
    let nanoseconds = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    Duration::from_nanos(nanoseconds.try_into().expect("time goes forward"))
}

/// Weights of any bits, but with small scales: for speed their values do not matter, as long as
/// none is denormal or no number.
fn weights(count: usize) -> Vec<u8> {
    // Any two of these bytes are a binary16 of about 0.01.
    let bytes = [0u8, 7, 14, 5, 12, 3, 10, 1, 8, 15, 6, 13, 4, 11, 2, 9];
    bytes.iter().map(|low| 0x20 | low).cycle().take(count).collect()
}

/// A sum over all of `memory`, with enough lanes to wait for nothing but the loads.
fn read(memory: &[u64]) {
    let sum = memory.par_chunks(1 << 17).map(|part| {
        let mut sums = [0_u64; 64];
        for words in part.as_chunks::<64>().0 {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum ^= word;
            }
        }
        sums.iter().fold(0, |sum, word| sum ^ word)
    });
    black_box(sum.reduce(|| 0, |sum, word| sum ^ word));
}

/// Operations a second of `vpdpbusd` and of `vdpbf16ps` on registers, in billions; none elsewhere.
fn registers(pool: &ThreadPool) -> [f64; 2] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16") {
        return loops::measure(pool);
    }
    fastest(pool, || {});
    [0.0; 2]
}

#[cfg(target_arch = "x86_64")]
mod loops {
    //! The two loops over registers.

    #[allow(
        clippy::wildcard_imports,
        reason = "intrinsics are named as the manual names them"
    )]
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::Duration;

    use rayon::ThreadPool;

    use super::fastest;

    /// More sums than an instruction's latency times how many start at once.
    const SUMS: usize = 16;
    const STEPS: usize = 20_000;

    #[allow(unsafe_code, reason = "calls into functions that need AVX-512")]
    pub(super) fn measure(pool: &ThreadPool) -> [f64; 2] {
        // SAFETY: the caller has asked for both instruction sets.
        let times = unsafe { [fastest(pool, || bytes()), fastest(pool, || bfloat16())] };
        let rate = |time: Duration, products: usize| {
            (2 * products * SUMS * STEPS) as f64 / time.as_secs_f64() / 1e9
        };
        [rate(times[0], 64), rate(times[1], 32)]
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn bytes() {
        let mut sums = [_mm512_setzero_si512(); SUMS];
        let (left, right) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(1)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, left, right);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bfloat16() {
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let one = black_box(_mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, one, one);
            }
        }
        black_box(sums);
    }
}
