//! Progress of downloads: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use umbel_shard::Progress;

use crate::telemetry::say;

/// Work on fewer bytes than this is over before anybody has read of it.
const BYTES_SHOWN_MIN: u64 = 10_000_000;

/// How often a spinner turns by itself: often enough to be seen to turn.
const TICK: Duration = Duration::from_millis(120);

/// Shows downloads on stderr.
#[derive(Default)]
pub struct Shown(Mutex<Option<Showing>>);

enum Showing {
    Bar(ProgressBar),
    Lines { label: String, total: u64, done: u64, tenths: u64 },
}

impl Progress for Shown {
    fn start(&self, total_bytes: Option<u64>, label: &str) {
        if total_bytes.is_some_and(|bytes| bytes < BYTES_SHOWN_MIN) {
            return;
        }
        let showing = if stderr().is_terminal() {
            Showing::Bar(bar(total_bytes, label))
        } else {
            let size = total_bytes.map(|bytes| format!(" ({} MB)", bytes / 1_000_000));
            say(format_args!("{label}{}", size.unwrap_or_default()));
            Showing::Lines {
                label: label.to_owned(),
                total: total_bytes.unwrap_or(0),
                done: 0,
                tenths: 0,
            }
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(showing);
    }

    fn advance(&self, bytes: u64) {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(Showing::Bar(bar)) => bar.inc(bytes),
            Some(Showing::Lines { label, total, done, tenths }) => {
                *done += bytes;
                if *total > 0 && *done * 10 / *total > *tenths {
                    *tenths = *done * 10 / *total;
                    say(format_args!("{label}: {}%", *tenths * 10));
                }
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(Showing::Bar(bar)) =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            bar.finish_and_clear();
        }
    }
}

fn bar(total_bytes: Option<u64>, label: &str) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes} {bytes_per_sec}"),
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
    bar.set_message(label.to_owned());
    if total_bytes.is_none() {
        // Nobody may count the bytes either, as where pip fetches them: that it goes on is to be seen.
        bar.enable_steady_tick(TICK);
    }
    bar
}
