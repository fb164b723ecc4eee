//! What a host keeps of its machine for itself.

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Args;

use crate::serve::rest::Hours;

/// The least that links can be held to: 1 Mbit/s, the slowest that sessions take a server for alive at
/// while it sends or is sent something.
const RATE_MIN: u64 = 125_000;

/// Limits of a server.
#[derive(Debug, Clone, Args)]
pub struct RestArguments {
    /// Bytes a second that links to others take at most, in all; messages that hold sessions together
    /// go before results.
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub upload_limit: Option<NonZeroU64>,

    /// Bytes a second that links from others take at most, in all.
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub download_limit: Option<NonZeroU64>,

    /// The hours of the day, by this machine's own time, in which the server serves; it pauses outside
    /// of them: 22:00-07:00, or to the second: 22:00:30-07:00.
    #[arg(long, value_name = "FROM-TO")]
    pub hours: Option<Hours>,

    /// Pause while other programs keep more than so many processor cores busy: 0.5 is half of one.
    /// On Linux.
    #[arg(long, value_name = "CORES", value_parser = cores)]
    pub yield_to_load: Option<f64>,

    /// Keep adapters for those who publish them, and provide them to others, in so many bytes on the disk; one
    /// peer may have a quarter of them [default: none are kept].
    #[arg(long, value_name = "BYTES")]
    pub keep_adapters: Option<NonZeroU64>,

    /// Where the system says how busy it is.
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true)]
    pub proc: PathBuf,
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let rate: u64 = text.parse().map_err(|_| "a number of bytes a second".to_owned())?;
    let rate = NonZeroU64::new(rate).filter(|rate| rate.get() >= RATE_MIN);
    rate.ok_or_else(|| format!("{RATE_MIN} at least: sessions would fail with less"))
}

fn cores(text: &str) -> Result<f64, String> {
    let cores: f64 = text.parse().map_err(|_| "a number of cores, such as 0.5".to_owned())?;
    let is_one = cores.is_finite() && cores > 0.0;
    if is_one { Ok(cores) } else { Err("a number of cores above 0".to_owned()) }
}
