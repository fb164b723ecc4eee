//! Logs and errors, both on stderr.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::process::ExitCode;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use umbel_protocol::text::printable;

use crate::args::LogFormat;
use crate::config;

/// What is logged unless something else is asked for: the libraries' own chatter is left out, as is
/// Kademlia's complaint that a first server knows nobody yet.
const FILTER_DEFAULT: &str = "warn,libp2p_kad=error,libp2p_autonat=error,umbel=info";

/// How lines are written, once that is known: what went wrong may be said from anywhere.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Logs to stderr what `filter` lets through, a level or a list of directives.
///
/// A filter that cannot be read is reported, and the default one takes its place.
pub fn start(filter: Option<&str>, format: LogFormat) {
    let _started_before = FORMAT.set(format);
    let (filter, refused) = match filter.map(parse) {
        None => (EnvFilter::new(FILTER_DEFAULT), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(FILTER_DEFAULT), Some(error)),
    };
    // Of a line that cannot be written the subscriber would tell stderr, and panic there.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let no_color = config::no_color();
            let is_coloured = is_coloured(stderr().is_terminal(), no_color.as_deref());
            lines.with_ansi(is_coloured).with_target(false).init();
        }
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    if let Some(error) = refused {
        tracing::warn!(%error, "the log filter was not understood; logging at info");
    }
}

/// Whether a log for people has colours: `NO_COLOR` says that they want none, unless it is empty
/// (<https://no-color.org>).
fn is_coloured(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
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

/// A line for people on stderr. Where nobody reads, nobody need know: `eprintln!` panics there.
pub fn say(line: impl Display) {
    let _unread = writeln!(stderr(), "{line}");
}

/// One part more of a long work is done: a dot on stderr.
pub fn dot() {
    let _unread = write!(stderr(), ".");
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

/// One line that says what went wrong, and why: for a person, or an object as of the log, whatever it lets
/// through.
pub fn report(error: &anyhow::Error) {
    let line = one_line(error);
    match FORMAT.get() {
        Some(LogFormat::Json) => {
            let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(stderr);
            let lines = lines.log_internal_errors(false).finish();
            tracing::subscriber::with_default(lines, || tracing::error!("{line}"));
        }
        Some(LogFormat::Text) | None => say(format_args!("error: {line}")),
    }
}

/// An error with its causes. Some of the words may be a stranger's.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
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
    printable(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_colours_on_a_terminal_alone_and_where_nobody_wants_none() {
        let on_terminal = |no_color: Option<&str>| is_coloured(true, no_color.map(OsStr::new));
        assert!(on_terminal(None) && on_terminal(Some("")));
        assert!(!on_terminal(Some("1")) && !on_terminal(Some("0")));
        assert!(!is_coloured(false, None));
    }

    #[test]
    fn an_error_is_one_line_that_moves_no_cursor() {
        let error = anyhow::anyhow!("a\u{1b}[2Jb\nc").context("it failed").context("it failed");
        assert_eq!(one_line(&error), "it failed: a[2Jb c");
    }
}
