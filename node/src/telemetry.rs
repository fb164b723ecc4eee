//! Logs and errors, both on stderr.

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// What is logged unless something else is asked for: the libraries' own chatter is left out, as is
/// Kademlia's complaint that a first server knows nobody yet.
const FILTER_DEFAULT: &str = "warn,libp2p_kad=error,libp2p_autonat=error,umbel=info";

/// Logs to stderr what `filter` lets through, a level or a list of directives.
///
/// A filter that cannot be read is reported, and the default one takes its place.
pub fn start(filter: Option<&str>, format: LogFormat) {
    let (filter, refused) = match filter.map(parse) {
        None => (EnvFilter::new(FILTER_DEFAULT), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(FILTER_DEFAULT), Some(error)),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => {
            lines.with_ansi(stderr().is_terminal()).with_target(false).init();
        }
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    if let Some(error) = refused {
        tracing::warn!(%error, "the log filter was not understood; logging at info");
    }
}

/// A bare level speaks of Umbel's own crates (a directive matches targets by prefix) and lets
/// warnings of the libraries through.
fn parse(filter: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let filter = match filter {
        "error" | "warn" | "info" | "debug" | "trace" => {
            format!("warn,libp2p_kad=error,libp2p_autonat=error,umbel={filter}")
        }
        other => other.to_owned(),
    };
    EnvFilter::try_new(filter)
}

/// What is wrong with what was typed, or the answer to a question such as `--help`.
pub fn answer(error: &clap::Error) -> ExitCode {
    // Where nobody reads, nobody need know.
    let _unread = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(u8::MAX))
}

/// What was asked for, on stdout.
pub fn print(text: &str) -> ExitCode {
    match writeln!(stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&anyhow::Error::new(error).context("stdout is closed"));
            ExitCode::FAILURE
        }
    }
}

/// One line for a person: what went wrong, and why.
pub fn report(error: &anyhow::Error) {
    let mut line = String::from("error: ");
    let mut last = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // A transparent error shows its source's text already.
        if text == last || last.contains(&text) {
            continue;
        }
        if !last.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
        last = text;
    }
    eprintln!("{}", line.replace('\n', " "));
}
