//! How fast the kernels are, beside the limits of memory and of the units that multiply:
//! `cargo bench -p umbel-engine`, or with names of types after `--` for those alone, and with
//! `--instructions=NAME` for another set than the best.
//!
//! One row is bound by memory, so the weights are many copies of one matrix, more than any cache
//! holds, and the figure is bytes of weights a second. Many rows are bound by arithmetic, and the
//! figure is multiplications and additions a second. Behind each is its share of the limit, in per
//! cent. All are the best of many runs. One thread is timed by the processor's time that it took, as
//! far as the system tells it, so that other work on the machine hardly counts; several by the clock.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use umbel_engine::Device;
use umbel_engine::kernel::{
    Arithmetic, Attending, AttentionShape, InstructionSet, KvPage, KvPages, PAGE_TOKENS,
    PackedMatrix, Side, attention,
};
use umbel_engine::limits::{Reader, Unit, operations_per_second};
use umbel_shard::{Weight, WeightType};

/// A projection of a model of a billion parameters, down from its MLP.
const ROWS: usize = 2048;
const COLUMNS: usize = 5632;

/// Four times the cache of the machines that we have.
const STREAM_BYTES: usize = 128 << 20;

/// Runs over all copies of which the best product counts; other work on the machine only ever makes
/// one slower.
const STREAM_RUNS: usize = 8;

/// As [`STREAM_RUNS`], for products of many rows.
const RUNS: usize = 10;

/// Numbers of rows that are bound by arithmetic, or nearly.
const BATCHES: [usize; 3] = [8, 32, 512];

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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this without the argument, to see that it starts.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let mut sets = arguments.iter().filter_map(|argument| argument.strip_prefix("--instructions="));
    if let Some(name) = sets.next() {
        InstructionSet::choose(name).expect("the machine has the instructions");
    }
    let is_asked = |kind: &WeightType| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|name| name.eq_ignore_ascii_case(kind.name()))
    };
    let machine = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut counts = vec![NonZeroUsize::MIN, machine];
    counts.dedup();
    println!("{:?}, weights {ROWS} x {COLUMNS}", InstructionSet::detected());
    let boards: Vec<_> = counts.into_iter().map(Board::measure).collect();
    for kind in TYPES.into_iter().filter(is_asked) {
        measure(&boards, kind);
    }
    boards.iter().for_each(attend);
}

/// Some threads, and the limits that they have.
struct Board {
    threads: NonZeroUsize,
    device: Device,
    read: f64,
    units: [Option<f64>; 3],
}

impl Board {
    fn measure(threads: NonZeroUsize) -> Self {
        let clock = move || clock(threads);
        let device = Device::with_threads(threads).expect("threads start");
        let read = Reader::new(threads).expect("threads start").best(&clock);
        let units = [Unit::Binary32, Unit::Bfloat16, Unit::Integer8]
            .map(|unit| operations_per_second(unit, threads, &clock).expect("threads start"));
        println!("{threads} threads: streaming read {:.1} GB/s", read / 1e9);
        let [binary32, bfloat16, integer8] = units.map(|unit| unit.unwrap_or(f64::NAN) / 1e9);
        println!("  GFLOP/s: binary32 {binary32:.0}, bfloat16 {bfloat16:.0}; GOP/s: {integer8:.0}");
        Self { threads, device, read, units }
    }

    /// What the unit can do that multiplies weights of `kind`.
    fn peak(&self, kind: WeightType) -> f64 {
        let [binary32, bfloat16, integer8] = self.units;
        let unit = match kind {
            WeightType::F32 | WeightType::F16 => binary32,
            WeightType::BF16 => bfloat16.or(binary32),
            WeightType::Q4_0
            | WeightType::Q4_1
            | WeightType::Q5_0
            | WeightType::Q5_1
            | WeightType::Q8_0
            | WeightType::Q4K
            | WeightType::Q5K
            | WeightType::Q6K => integer8.or(binary32),
        };
        unit.unwrap_or(f64::NAN)
    }

    /// The time of the fastest of `runs` times all of `works`, on the device.
    fn best<T: Sync>(&self, runs: usize, works: &[T], mut work: impl FnMut(&T) + Send) -> f64 {
        self.device.run(|| {
            let mut best = Duration::MAX;
            for run in 0..=runs {
                for item in works {
                    let start = clock(self.threads);
                    work(item);
                    let elapsed = clock(self.threads).saturating_sub(start);
                    // The first time warms up.
                    best = best.min(if run == 0 { Duration::MAX } else { elapsed });
                }
            }
            best.as_secs_f64()
        })
    }
}

/// The time that this thread has computed where it is alone, else the time of day.
fn clock(threads: NonZeroUsize) -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    #[cfg(unix)]
    if threads.get() == 1 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        #[allow(unsafe_code, reason = "std has no clock for the time of a thread")]
        // SAFETY: the pointer is to a value that lives through the call.
        unsafe {
            libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time)
        };
        return Duration::from_nanos((time.tv_sec * 1_000_000_000 + time.tv_nsec).cast_unsigned());
    }
    START.elapsed()
}

/// Prints a line for each number of threads, and for quantized weights another with activations that are
/// rounded carefully.
fn measure(boards: &[Board], kind: WeightType) {
    let bytes = ROWS * COLUMNS / kind.block_values() * kind.block_bytes();
    let copies = STREAM_BYTES.div_ceil(bytes);
    let stored = weights(kind, bytes * copies);
    let packed: Vec<_> = stored.chunks_exact(bytes).map(|bytes| packed(kind, bytes)).collect();
    for board in boards {
        let name = format!("{} x{}", kind.name(), board.threads);
        for (way, arithmetic) in [("packed", Arithmetic::Usual), ("careful", Arithmetic::Careful)] {
            if arithmetic == Arithmetic::Usual || !kind.is_float() {
                line(board, &name, (way, arithmetic), kind, &packed);
            }
        }
    }
}

fn packed(kind: WeightType, bytes: &[u8]) -> PackedMatrix {
    let weight = Weight::new(kind, vec![ROWS, COLUMNS], bytes);
    PackedMatrix::pack(&weight.expect("type, shape and length fit each other"))
}

fn line(
    board: &Board,
    name: &str,
    (way, arithmetic): (&str, Arithmetic),
    kind: WeightType,
    matrices: &[PackedMatrix],
) {
    let seconds = |runs, matrices: &[PackedMatrix], tokens| {
        let input: Vec<f32> =
            (0..tokens * COLUMNS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut output = vec![0.0; tokens * ROWS];
        board.best(runs, matrices, |matrix| {
            matrix.multiply(arithmetic, &input, &mut output);
            black_box(&output);
        })
    };
    let bytes = (ROWS * COLUMNS / kind.block_values() * kind.block_bytes()) as f64;
    let read = bytes / seconds(STREAM_RUNS, matrices, 1);
    print!("{name:8} {way:7} 1 row {:5.1} GB/s {:3.0}%", read / 1e9, 100.0 * read / board.read);
    for tokens in BATCHES {
        let few = &matrices[..matrices.len().min(if tokens > 32 { 1 } else { 4 })];
        let operations = 2.0 * (ROWS * COLUMNS * tokens) as f64;
        let rate = operations / seconds(RUNS, few, tokens);
        let share = 100.0 * rate / board.peak(kind);
        print!("  {tokens} rows {:6.1} G/s {share:3.0}%", rate / 1e9);
    }
    println!();
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

/// A cache of one page of zeros, seen again and again.
struct OnePage(Vec<f32>);

impl KvPages for OnePage {
    fn page(&self, _index: usize) -> KvPage<'_> {
        KvPage { keys: Side::Binary32(&self.0), values: Side::Binary32(&self.0) }
    }
}

/// Attention of 512 tokens to themselves and 512 before them.
fn attend(board: &Board) {
    let shape = AttentionShape { heads: 32, kv_heads: 8, head_size: 64, window: None };
    let tokens = 512;
    let pages = OnePage(vec![0.5; shape.kv_heads * PAGE_TOKENS * shape.head_size]);
    let queries = vec![0.25; tokens * shape.heads * shape.head_size];
    let mut output = vec![0.0; queries.len()];
    // Each query meets 512 positions before the prompt and on average half of the prompt, with two
    // operations for the score and two for the value.
    let seen = 512 + tokens / 2;
    let operations = 4.0 * (queries.len() * seen) as f64;
    let seconds = board.best(RUNS, &[()], |()| {
        let session = Attending { pages: &pages, position: 512, tokens };
        attention(shape, &queries, &[session], &mut output);
    });
    println!(
        "attention x{}, 512 tokens from position 512, 32 heads of 64: {:.1} GFLOP/s",
        board.threads,
        operations / seconds / 1e9
    );
}
