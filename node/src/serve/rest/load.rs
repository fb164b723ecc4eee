//! How busy other programs keep the machine, and when to leave it to them. Without clock and files.

/// Looks at a busy machine in a row before the server leaves: a program that starts is no use of the
/// machine yet.
const LOOKS_BUSY: u32 = 2;

/// Looks at an idle one in a row before it comes back: whoever reads a page will turn it.
const LOOKS_IDLE: u32 = 5;

/// The share of the limit below which a machine is idle: at the limit a server would come and go.
const IDLE_SHARE: f64 = 0.8;

/// What the processors have done since the machine was started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    cores: u32,
    /// Of all cores, idle or not.
    total: u64,
    busy: u64,
    /// What of that was this process.
    own: u64,
}

impl Sample {
    /// Of `stat` and `self/stat` of proc(5).
    pub(super) fn parse(all: &str, own: &str) -> Option<Self> {
        let is_core = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
        let cores = u32::try_from(all.lines().filter(is_core).count()).ok()?;
        let numbers = all.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let numbers: Result<Vec<u64>, _> = numbers.split_whitespace().map(str::parse).collect();
        // What a machine does for guests is in `user` and `nice` already.
        let [user, nice, system, idle, waiting, irq, soft_irq, stolen] =
            *numbers.ok()?.first_chunk::<8>()?;
        let busy = user + nice + system + irq + soft_irq;
        // The name of the program, in parentheses, may hold anything.
        let (_, own) = own.rsplit_once(')')?;
        let mut times = own.split_whitespace().skip(11).map(str::parse::<u64>);
        let own = times.next()?.ok()? + times.next()?.ok()?;
        let total = busy + idle + waiting + stolen;
        (cores > 0).then_some(Self { cores, total, busy, own })
    }

    /// How many cores other programs kept busy since `before`; `None` where no time has passed.
    pub(super) fn others_since(&self, before: &Self) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|total| *total > 0)?;
        let busy = self.busy.saturating_sub(before.busy);
        let others = busy.saturating_sub(self.own.saturating_sub(before.own));
        Some(others as f64 / total as f64 * f64::from(self.cores))
    }
}

/// Whether to leave the machine to others.
#[derive(Debug)]
pub(super) struct Yielding {
    limit: f64,
    yields: bool,
    /// Looks in a row that speak against that.
    against: u32,
}

impl Yielding {
    pub(super) const fn new(limit: f64) -> Self {
        Self { limit, yields: false, against: 0 }
    }

    /// Takes note of what others do, and decides.
    pub(super) fn seen(&mut self, cores: f64) -> bool {
        let (is_against, enough) = if self.yields {
            (cores < self.limit * IDLE_SHARE, LOOKS_IDLE)
        } else {
            (cores > self.limit, LOOKS_BUSY)
        };
        self.against = if is_against { self.against + 1 } else { 0 };
        if self.against >= enough {
            self.yields = !self.yields;
            self.against = 0;
        }
        self.yields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "cpu  100 10 50 800 20 5 5 10 40 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n";
    const OWN: &str = "42 (a (b) c) S 1 1 1 0 -1 4194560 1 2 3 4 30 12 0 0 20 0 9";

    #[test]
    fn what_linux_says_is_understood() {
        let sample = Sample::parse(ALL, OWN).unwrap();
        assert_eq!(sample, Sample { cores: 2, total: 1_000, busy: 170, own: 42 });
        for (all, own) in [("", OWN), (ALL, ""), ("cpu 1 2\ncpu0 1", OWN), (ALL, "1 (a) S 1")] {
            assert_eq!(Sample::parse(all, own), None, "{all:?} {own:?}");
        }
        let no_number = ALL.replace("800", "many");
        assert_eq!(Sample::parse(&no_number, OWN), None);
    }

    #[test]
    fn what_the_server_does_itself_is_no_load() {
        let before = Sample { cores: 4, total: 1_000, busy: 500, own: 100 };
        let since = |total, busy, own| Sample { cores: 4, total, busy, own }.others_since(&before);
        assert_eq!(since(1_400, 800, 400), Some(0.0));
        assert_eq!(since(1_400, 800, 300), Some(1.0));
        assert_eq!(since(1_400, 900, 100), Some(4.0));
        // Two files that were not read at the same time.
        assert_eq!(since(1_400, 800, 450), Some(0.0));
        assert_eq!(since(1_000, 500, 100), None);
        assert_eq!(since(900, 500, 100), None);
    }

    #[test]
    fn it_leaves_soon_and_comes_back_late() {
        let mut yielding = Yielding::new(1.0);
        let mut see = |cores: &[f64]| -> Vec<bool> {
            cores.iter().map(|&cores| yielding.seen(cores)).collect()
        };
        assert_eq!(see(&[0.5, 1.5, 0.5, 1.5]), [false; 4]);
        assert_eq!(see(&[1.5]), [true]);
        // Neither idle nor above the limit, and never five looks in a row.
        assert_eq!(see(&[0.9; 8]), [true; 8]);
        assert_eq!(see(&[0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1]), [true; 9]);
        assert_eq!(see(&[0.1, 0.9]), [false; 2]);
    }
}
