//! What a run of a scenario came to.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::world::{Answer, World};

/// The columns of [`Report::csv`].
pub const CSV_HEADER: &str = "seed,sessions_done,sessions_failed,tokens,rate_p50,rate_p99,\
gap_p50_ms,gap_p99_ms,gap_max_ms,replays,tokens_replayed,hops_given_up,crashes,leaves,\
bytes_sent,events,checks,broken\n";

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Sessions that came to their end.
    pub sessions_done: u32,
    /// How those ended that failed; the first of them.
    pub failures: Vec<String>,
    /// How many those are.
    pub sessions_failed: usize,
    /// Tokens of answers.
    pub tokens: usize,
    /// Tokens a second that half of the clients had at least.
    pub rate_p50: f64,
    /// Tokens a second that 99 of 100 clients had at least.
    pub rate_p99: f64,
    /// Seconds from one token of an answer to the next, sorted.
    pub gaps: Vec<f32>,
    /// By second of the run: tokens of all answers.
    pub timeline: Vec<u32>,
    /// What the world counted.
    pub totals: crate::world::Totals,
    /// What did not hold at the end.
    pub unsettled: Vec<String>,
    /// The hash of the trace.
    pub trace: [u8; 32],
    /// How long it took those in the world.
    pub lasted: Duration,
}

impl Report {
    /// Of a world that has come to rest.
    #[must_use]
    pub fn of(seed: u64, world: &World) -> Self {
        let clients = &world.clients;
        let single = |answer: &&Answer| answer.tokens == 1;
        let mut gaps: Vec<f32> = Vec::new();
        let (mut rates, mut timeline) = (Vec::new(), Vec::new());
        for client in clients {
            let took = client.answers.iter().filter(single).map(|answer| answer.took.as_secs_f32());
            let before = gaps.len();
            gaps.extend(took);
            let seconds: f64 = gaps[before..].iter().map(|gap| f64::from(*gap)).sum();
            let tokens = u32::try_from(gaps.len() - before).unwrap_or(u32::MAX);
            if tokens > 0 {
                rates.push(f64::from(tokens) / seconds);
            }
            for answer in &client.answers {
                let second = usize::try_from(answer.at.elapsed().as_secs()).unwrap_or(usize::MAX);
                if timeline.len() <= second {
                    timeline.resize(second + 1, 0);
                }
                timeline[second] += answer.tokens;
            }
        }
        gaps.sort_by(f32::total_cmp);
        rates.sort_by(f64::total_cmp);
        let failed = || clients.iter().flat_map(|client| &client.failures);
        Self {
            seed,
            sessions_done: clients.iter().map(|client| client.sessions_done).sum(),
            failures: failed().take(8).map(ToString::to_string).collect(),
            sessions_failed: failed().count(),
            tokens: gaps.len(),
            rate_p50: quantile(&rates, 50),
            rate_p99: quantile(&rates, 1),
            gaps,
            timeline,
            totals: world.totals.clone(),
            unsettled: world.unsettled(),
            trace: world.trace(),
            lasted: world.now.elapsed(),
        }
    }

    /// Whether everything held.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.totals.broken_count == 0 && self.unsettled.is_empty()
    }

    /// The gap, in milliseconds, that so many of a hundred do not exceed.
    #[must_use]
    pub fn gap_ms(&self, percent: usize) -> f64 {
        1e3 * f64::from(quantile(&self.gaps, percent))
    }

    /// One line of CSV.
    #[must_use]
    pub fn csv(&self) -> String {
        let totals = &self.totals;
        format!(
            "{},{},{},{},{:.4},{:.4},{:.2},{:.2},{:.2},{},{},{},{},{},{},{},{},{}\n",
            self.seed,
            self.sessions_done,
            self.sessions_failed,
            self.tokens,
            self.rate_p50,
            self.rate_p99,
            self.gap_ms(50),
            self.gap_ms(99),
            self.gap_ms(100),
            totals.replays,
            totals.tokens_replayed,
            totals.blames,
            totals.crashes,
            totals.leaves,
            totals.bytes_sent,
            totals.events,
            totals.checks,
            totals.broken_count
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        writeln!(f, "seed {}, {:.0} s in the world", self.seed, self.lasted.as_secs_f64())?;
        writeln!(f, "  sessions    {} done, {} failed", self.sessions_done, self.sessions_failed)?;
        writeln!(f, "  tokens      {}", self.tokens)?;
        writeln!(f, "  tokens/s    p50 {:.2}, p99 {:.2}", self.rate_p50, self.rate_p99)?;
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.gap_ms(percent));
        writeln!(f, "  gap         p50 {p50:.0} ms, p99 {p99:.0} ms, longest {max:.0} ms")?;
        let (crashes, leaves, lies) = (totals.crashes, totals.leaves, totals.lies);
        writeln!(f, "  servers     {crashes} went down, {leaves} asked to leave, {lies} lied")?;
        writeln!(f, "  hops        {} given up", totals.blames)?;
        writeln!(f, "  replays     {} of {} tokens", totals.replays, totals.tokens_replayed)?;
        writeln!(f, "  bytes sent  {}", totals.bytes_sent)?;
        writeln!(f, "  events      {}", totals.events)?;
        let broken = totals.broken_count;
        writeln!(f, "  invariants  {} checks, {broken} broken", totals.checks)?;
        let mut trace = String::new();
        for byte in &self.trace[..8] {
            write!(trace, "{byte:02x}")?;
        }
        writeln!(f, "  trace       {trace}")?;
        for line in self.failures.iter().chain(&totals.broken).chain(&self.unsettled) {
            writeln!(f, "  ! {line}")?;
        }
        Ok(())
    }
}

fn quantile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}
