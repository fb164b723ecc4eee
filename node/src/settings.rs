//! What is to be done: flags over the environment over a file.
//!
//! The file is TOML and says what flags say, in their words: those of all commands at its top, those
//! of each command in a table of the command's name (`[adapter.publish]` for a command of a command).
//!
//! ```toml
//! log = "debug"
//!
//! [serve]
//! block-count = 10
//! join = ["/ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo..."]
//! no-mdns = true
//! ```
//!
//! What it says is put behind what was typed, as flags, unless the flag or one that excludes it was
//! typed or stands in the environment. So a value in the file is checked as one that was typed.

mod file;
mod print;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory as _, FromArgMatches as _};

use crate::args::Arguments;
use file::{File, Setting};

/// What was asked for.
#[derive(Debug)]
pub struct Settings {
    /// What to do.
    pub arguments: Arguments,
    /// The same as a file that could be read again, where that was asked for instead.
    pub printed: Option<String>,
}

/// Why nothing can be done.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// What was typed, or what the file says in its place. Also a question that has been answered:
    /// `--help`, `--version`.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file cannot be used.
    #[error("{error:#}")]
    File {
        /// Why.
        error: anyhow::Error,
    },
}

/// Reads what was typed, and the file that it names.
///
/// # Errors
/// [`SettingsError`]
pub fn read(typed: Vec<OsString>) -> Result<Settings, SettingsError> {
    let command = Arguments::command();
    // Without its rules, to learn which file is meant and what need not be taken from it.
    let Ok(seen) = lenient(command.clone()).try_get_matches_from(&typed) else {
        return Err(strict(command, typed).expect_err("a question, or a mistake").into());
    };
    let Some(path) = seen.get_one::<PathBuf>("config") else {
        let matches = strict(command, typed)?;
        return settings(&matches, &BTreeSet::new());
    };
    let (more, names) = from_file(path, &command, &seen).map_err(|error| SettingsError::File {
        error: error.context(format!("the configuration in {}", path.display())),
    })?;
    // Behind two hyphens a flag would be taken for something else.
    let end = typed.iter().position(|word| word == "--").unwrap_or(typed.len());
    let mut words = typed;
    words.splice(end..end, more);
    let matches = strict(command, words)?;
    settings(&matches, &names)
}

fn settings(matches: &ArgMatches, of_file: &BTreeSet<String>) -> Result<Settings, SettingsError> {
    let printed = matches.get_flag("print_config").then(|| {
        let mut command = Arguments::command();
        command.build();
        print::text(&command, matches, of_file)
    });
    let arguments = Arguments::from_arg_matches(matches)?;
    Ok(Settings { arguments, printed })
}

fn strict(command: Command, typed: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    command.try_get_matches_from(typed)
}

/// A command that takes what may be incomplete or contradict itself.
fn lenient(command: Command) -> Command {
    command.ignore_errors(true).mut_subcommands(lenient)
}

/// The flags that the file adds to what was typed, and the names of those arguments.
fn from_file(
    path: &Path,
    command: &Command,
    seen: &ArgMatches,
) -> anyhow::Result<(Vec<OsString>, BTreeSet<String>)> {
    let text = std::fs::read_to_string(path).context("it cannot be read")?;
    let mut command = command.clone();
    command.build();
    let file = File::parse(&text, &command)?;
    let (asked, seen, path) = innermost(&command, seen);
    let (mut flags, mut names) = (Vec::new(), BTreeSet::new());
    if path.is_empty() {
        return Ok((flags, names));
    }
    for setting in file.of_command(&path) {
        if is_said(asked, seen, &setting) {
            continue;
        }
        names.insert(setting.argument.get_id().to_string());
        flags.extend(setting.flags().map(OsString::from));
    }
    Ok((flags, names))
}

/// The command that is asked for, what is known of it, and the names that lead to it.
fn innermost<'a>(
    command: &'a Command,
    matches: &'a ArgMatches,
) -> (&'a Command, &'a ArgMatches, Vec<&'a str>) {
    let (mut command, mut matches, mut path) = (command, matches, Vec::new());
    while let Some((name, below)) = matches.subcommand()
        && let Some(asked) = command.find_subcommand(name)
    {
        (command, matches) = (asked, below);
        path.push(name);
    }
    (command, matches, path)
}

/// Whether what a setting of the file says, or something that excludes it, was typed or stands in
/// the environment.
fn is_said(command: &Command, seen: &ArgMatches, setting: &Setting<'_>) -> bool {
    let said = |argument: &Arg| {
        let source = seen.value_source(argument.get_id().as_str());
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let excludes = |other: &Arg| {
        let either = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).contains(&b);
        other == setting.argument
            || either(setting.argument, other)
            || either(other, setting.argument)
    };
    command.get_arguments().any(|argument| said(argument) && excludes(argument))
}

#[cfg(test)]
mod tests;
