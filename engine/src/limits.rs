//! What this machine can do at best: the measure of the kernels.
//!
//! A decode step reads every weight once, so nothing is faster than memory is read; a long prompt
//! multiplies more than it reads, so nothing is faster than the units multiply. Both are measured by
//! the plainest loops that there are. The engine reads no clock: whoever asks brings one.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::device::{Device, StartThreadsError};
use crate::kernel::InstructionSet;
use crate::kernel::limits::{self, Region};
use crate::kernel::parallel::for_each_share;

/// Memory that is read again and again: several times the caches of the machines that we have.
const REGION_BYTES: usize = 256 << 20;

/// Bytes of one run, so that it takes about a millisecond: few long runs have the machine to
/// themselves.
const READ_BYTES: usize = 16 << 20;

/// Rounds of multiplications in a run of one thread: some tenths of a millisecond.
const ROUNDS: usize = 1 << 16;

/// Runs of which the best counts; other work on the machine only ever makes one slower. They read the
/// region four times.
const RUNS: usize = 64;

/// The least that anything takes: a clock that stands still would make everything infinitely fast.
const TICK: Duration = Duration::from_nanos(1);

/// Something that multiplies and adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Products and sums in binary32 (FMA): weights in float32, float16 and exact bfloat16.
    Binary32,
    /// Products of pairs of bfloat16 (VDPBF16PS, or TDPBF16PS with AMX): weights in bfloat16.
    Bfloat16,
    /// Products of groups of four 8-bit integers (VPDPBUSD, VPMADDUBSW with AVX2, TDPBSUD with AMX,
    /// SDOT with NEON, or products of 16 bits where NEON has no SDOT): quantized weights.
    Integer8,
}

/// Time since some moment that stays the same.
pub type Clock<'a> = &'a (dyn Fn() -> Duration + Sync);

/// Memory that is read in order, and the threads that read it together.
#[derive(Debug)]
pub struct Reader {
    region: Region,
    device: Device,
}

impl Reader {
    /// Takes 256 MiB of memory, and starts `threads` threads.
    ///
    /// # Errors
    /// [`StartThreadsError`] where the operating system refuses that many.
    pub fn new(threads: NonZeroUsize) -> Result<Self, StartThreadsError> {
        Ok(Self { region: Region::new(REGION_BYTES), device: Device::with_threads(threads)? })
    }

    /// The most bytes a second that were read, of many runs of about a millisecond.
    #[must_use]
    pub fn best(&self, clock: Clock<'_>) -> f64 {
        let set = InstructionSet::detected();
        let seconds = best(&self.device, clock, &|run, thread| {
            let part = self.region.part(run % (REGION_BYTES / READ_BYTES), READ_BYTES);
            black_box(limits::read(set, share(part, thread, self.device.thread_count())));
        });
        READ_BYTES as f64 / seconds
    }

    /// Bytes a second at which `passes` times 256 MiB are read without a pause.
    ///
    /// A machine whose memory others use as well reads as fast as at best only for moments; this is
    /// what it gives for as long as a few tokens take.
    #[must_use]
    pub fn sustained(&self, passes: usize, clock: Clock<'_>) -> f64 {
        let set = InstructionSet::detected();
        let threads = self.device.thread_count();
        let region = self.region.part(0, REGION_BYTES);
        let took = self.device.run(|| {
            let start = clock();
            for_each_share(threads, |thread| {
                for _ in 0..passes {
                    black_box(limits::read(set, share(region, thread, threads)));
                }
            });
            clock().saturating_sub(start)
        });
        (passes * REGION_BYTES) as f64 / took.max(TICK).as_secs_f64()
    }
}

/// The most multiplications and additions a second, each counted, of `unit` in `threads` cores
/// together; `None` where this machine has no such unit that our kernels use.
///
/// # Errors
/// [`StartThreadsError`] where the operating system refuses that many.
pub fn operations_per_second(
    unit: Unit,
    threads: NonZeroUsize,
    clock: Clock<'_>,
) -> Result<Option<f64>, StartThreadsError> {
    let set = InstructionSet::detected();
    let Some(operations) = limits::round_operations(set, unit) else {
        return Ok(None);
    };
    let device = Device::with_threads(threads)?;
    let seconds = best(&device, clock, &|_, _| limits::multiply(set, unit, ROUNDS));
    Ok(Some((operations * ROUNDS * threads.get()) as f64 / seconds))
}

/// What the thread `index` of `threads` takes of `bytes`.
fn share(bytes: &[u8], index: usize, threads: usize) -> &[u8] {
    let size = (bytes.len() / threads).next_multiple_of(limits::STRIDE);
    bytes.chunks(size).nth(index).unwrap_or_default()
}

/// The shortest time in seconds of a run, in which every thread of `device` does `work`; it is told
/// which run it is, and which thread.
fn best(device: &Device, clock: Clock<'_>, work: &(dyn Fn(usize, usize) + Sync)) -> f64 {
    let time = |run| {
        let start = clock();
        for_each_share(device.thread_count(), |thread| work(run, thread));
        clock().saturating_sub(start)
    };
    device.run(|| {
        let times = (0..RUNS).map(time);
        times.min().unwrap_or_default().max(TICK).as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const UNITS: [Unit; 3] = [Unit::Binary32, Unit::Bfloat16, Unit::Integer8];

    #[test]
    fn a_limit_is_work_by_the_time_of_the_fastest_run() {
        // Each look at the clock is 2 ms later than the one before, so each run takes 2 ms.
        let looks = AtomicU64::new(0);
        let clock = || Duration::from_millis(2 * looks.fetch_add(1, Ordering::Relaxed));
        let one = NonZeroUsize::MIN;
        let reader = Reader::new(one).unwrap();
        let read = reader.best(&clock);
        assert!((read / (READ_BYTES as f64 / 2e-3) - 1.0).abs() < 1e-9, "{read}");
        let sustained = reader.sustained(2, &clock);
        assert!((sustained / (REGION_BYTES as f64 / 1e-3) - 1.0).abs() < 1e-9, "{sustained}");
        for unit in UNITS {
            let found = operations_per_second(unit, one, &clock).unwrap();
            let round = limits::round_operations(InstructionSet::detected(), unit);
            let expected = round.map(|round| (round * ROUNDS) as f64 / 2e-3);
            assert_eq!(found.map(f64::round), expected.map(f64::round), "{unit:?}");
        }
    }

    #[test]
    fn the_shares_of_all_threads_are_the_whole() {
        let bytes = vec![0; 7 * limits::STRIDE];
        for threads in 1..=9 {
            let shares = (0..threads).map(|index| share(&bytes, index, threads).len());
            assert_eq!(shares.sum::<usize>(), bytes.len(), "{threads}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_gives_a_number() {
        let clock = || Duration::ZERO;
        let reader = Reader::new(NonZeroUsize::MIN).unwrap();
        assert!(reader.best(&clock).is_finite() && reader.sustained(1, &clock).is_finite());
    }
}
