//! What this machine can do at best, so that figures can be read as shares of it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};
use umbel_engine::limits::{Reader, Unit, operations_per_second};

/// How often each limit is measured: where the system puts both threads on one core at first, as it
/// does beside other work, new ones may have more luck.
const TRIES: usize = 3;

/// How often 256 MiB are read in a look at what memory gives now: some 30 ms, as long as a few tokens
/// take.
const LOOK_PASSES: usize = 4;

/// What memory gives now, which is not what it gives at best: on a machine that is shared, others
/// use it as well.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Reader>);

impl Memory {
    pub(super) fn new(threads: usize) -> anyhow::Result<Self> {
        let threads = NonZeroUsize::new(threads).context("no thread computes")?;
        Ok(Self(Arc::new(Reader::new(threads)?)))
    }

    /// Bytes a second that all threads read now.
    pub(super) async fn look(&self) -> anyhow::Result<f64> {
        let reader = Arc::clone(&self.0);
        let look = move || {
            let started = Instant::now();
            reader.sustained(LOOK_PASSES, &|| started.elapsed())
        };
        Ok(tokio::task::spawn_blocking(look).await?)
    }
}

/// Measured limits. All threads of the device work together where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Machine {
    pub(super) threads: usize,
    /// Bytes a second that one thread reads from memory in order.
    pub(super) read_by_one: f64,
    /// Bytes a second that all threads read.
    pub(super) read: f64,
    /// Multiplications and additions a second, each counted.
    pub(super) binary32: f64,
    /// The same; `None` where this machine has no such unit.
    pub(super) bfloat16: Option<f64>,
    /// The same.
    pub(super) integer8: Option<f64>,
}

impl Machine {
    /// Measures for about half a second.
    pub(super) async fn measure(threads: usize) -> anyhow::Result<Self> {
        let measure = move || {
            let mut best = Self::measure_blocking(threads)?;
            for _ in 1..TRIES {
                best = best.or_better(Self::measure_blocking(threads)?);
            }
            anyhow::Ok(best)
        };
        tokio::task::spawn_blocking(measure).await?
    }

    fn measure_blocking(threads: usize) -> anyhow::Result<Self> {
        let started = Instant::now();
        let clock = || started.elapsed();
        let all = NonZeroUsize::new(threads).context("no thread computes")?;
        let unit = |unit| operations_per_second(unit, all, &clock);
        Ok(Self {
            threads,
            read_by_one: Reader::new(NonZeroUsize::MIN)?.best(&clock),
            read: Reader::new(all)?.best(&clock),
            binary32: unit(Unit::Binary32)?.context("every machine multiplies in binary32")?,
            bfloat16: unit(Unit::Bfloat16)?,
            integer8: unit(Unit::Integer8)?,
        })
    }

    /// The better of two measurements, limit by limit: other work on the machine only ever makes one
    /// smaller.
    pub(super) fn or_better(self, other: Self) -> Self {
        let better = |own: Option<f64>, other: Option<f64>| own.zip(other).map(|(a, b)| a.max(b));
        Self {
            threads: self.threads,
            read_by_one: self.read_by_one.max(other.read_by_one),
            read: self.read.max(other.read),
            binary32: self.binary32.max(other.binary32),
            bfloat16: better(self.bfloat16, other.bfloat16),
            integer8: better(self.integer8, other.integer8),
        }
    }

    /// Operations a second of `unit`, or of binary32 where there is no such unit: every product can
    /// be computed there.
    pub(super) fn operations(&self, unit: Unit) -> f64 {
        let special = match unit {
            Unit::Binary32 => None,
            Unit::Bfloat16 => self.bfloat16,
            Unit::Integer8 => self.integer8,
        };
        special.unwrap_or(self.binary32)
    }

    /// One line for a person.
    pub(super) fn as_text(&self) -> String {
        let giga = |name: &str, value: Option<f64>| match value {
            Some(value) => format!("{:.0} Gop/s in {name}", value / 1e9),
            None => format!("has no unit for {name}"),
        };
        format!(
            "this machine at best, for a moment, with {} threads: reads {:.1} GB/s from memory (one \
             thread {:.1}); computes {}, {}, {}",
            self.threads,
            self.read / 1e9,
            self.read_by_one / 1e9,
            giga("float32", Some(self.binary32)),
            giga("bfloat16", self.bfloat16),
            giga("8-bit integers", self.integer8),
        )
    }

    pub(super) fn as_json(&self) -> Value {
        json!({
            "threads": self.threads,
            "read_bytes_per_second": self.read,
            "read_bytes_per_second_of_one_thread": self.read_by_one,
            "operations_per_second": {
                "float32": self.binary32,
                "bfloat16": self.bfloat16,
                "integer8": self.integer8,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        threads: 2,
        read_by_one: 1.0,
        read: 2.0,
        binary32: 3.0,
        bfloat16: Some(4.0),
        integer8: None,
    };

    #[test]
    fn of_two_measurements_the_larger_counts_limit_by_limit() {
        let other = Machine { read: 1.5, binary32: 9.0, bfloat16: Some(1.0), ..MACHINE };
        assert_eq!(MACHINE.or_better(other), Machine { binary32: 9.0, ..MACHINE });
        assert_eq!(other.or_better(MACHINE), Machine { binary32: 9.0, ..MACHINE });
    }

    #[test]
    fn what_has_no_unit_of_its_own_is_computed_in_binary32() {
        let found = [Unit::Binary32, Unit::Bfloat16, Unit::Integer8].map(|u| MACHINE.operations(u));
        assert_eq!(found.map(f64::to_bits), [3.0, 4.0, 3.0].map(f64::to_bits));
    }

    #[tokio::test]
    async fn a_machine_has_limits() {
        let machine = Machine::measure(1).await.unwrap();
        assert!(machine.read > 0.0 && machine.read_by_one > 0.0 && machine.binary32 > 0.0);
        assert!(Machine::measure(0).await.is_err());
    }

    #[tokio::test]
    async fn memory_gives_something_now() {
        let memory = Memory::new(2).unwrap();
        assert!(memory.look().await.unwrap() > 0.0);
        assert!(Memory::new(0).is_err());
    }
}
