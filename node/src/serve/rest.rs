//! When a server leaves its machine to others: outside of its hours, and while the machine is in use.

mod hours;
mod load;
mod pauses;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;

use crate::args::RestArguments;
pub use hours::Hours;
use load::{Sample, Yielding};
pub(super) use pauses::Pauses;

/// How long to wait at most before the time of the day is looked at again: somebody may set the clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

/// How often it is looked how busy the machine is.
const LOAD_INTERVAL: Duration = Duration::from_secs(2);

/// Lets the server pause when `arguments` say so, for as long as it runs.
///
/// # Errors
/// Where this system does not say how busy it is.
pub(super) fn keep(
    arguments: &RestArguments,
    pauses: &watch::Sender<Pauses>,
) -> anyhow::Result<()> {
    if let Some(hours) = arguments.hours {
        // At once, so that no session opens first.
        look_at_clock(hours, pauses);
        tokio::spawn(keep_hours(hours, pauses.clone()));
    }
    if let Some(limit) = arguments.yield_to_load {
        let before = sample(&arguments.proc)?;
        tokio::spawn(yield_to_load(limit, before, arguments.proc.clone(), pauses.clone()));
    }
    Ok(())
}

async fn keep_hours(hours: Hours, pauses: watch::Sender<Pauses>) {
    loop {
        let wait = look_at_clock(hours, &pauses);
        tokio::time::sleep(wait.min(CLOCK_INTERVAL)).await;
    }
}

/// How long it stays as it is.
fn look_at_clock(hours: Hours, pauses: &watch::Sender<Pauses>) -> Duration {
    let now = jiff::ZonedDateTime::now().time();
    let second = Duration::from_secs(
        u64::try_from(now.hour()).unwrap_or(0) * 3_600
            + u64::try_from(now.minute()).unwrap_or(0) * 60
            + u64::try_from(now.second()).unwrap_or(0),
    );
    Pauses::set(pauses, |pauses| pauses.hours = !hours.contains(second));
    hours.until_change(second)
}

async fn yield_to_load(
    limit: f64,
    mut before: Sample,
    proc: PathBuf,
    pauses: watch::Sender<Pauses>,
) {
    let mut yielding = Yielding::new(limit);
    loop {
        tokio::time::sleep(LOAD_INTERVAL).await;
        let now = match sample(&proc) {
            Ok(now) => now,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(error, "nobody knows how busy the machine is");
                continue;
            }
        };
        if let Some(cores) = now.others_since(&before) {
            let pause = yielding.seen(cores);
            if Pauses::set(&pauses, |pauses| pauses.load = pause) {
                tracing::info!(cores, limit, pause, "looked at what other programs do");
            }
            before = now;
        }
    }
}

fn sample(proc: &Path) -> anyhow::Result<Sample> {
    let read = |name: &str| {
        let file = proc.join(name);
        let why = || {
            let file = file.display();
            format!("--yield-to-load works on Linux alone, where {file} says how busy a machine is")
        };
        std::fs::read_to_string(&file).with_context(why)
    };
    let (all, own) = (read("stat")?, read("self/stat")?);
    Sample::parse(&all, &own).context("the system says how busy it is in another way than Linux")
}
