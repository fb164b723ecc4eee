//! The file: what it says, and of which command.

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, Command, ValueHint};
use toml::{Table, Value};

use crate::config;

/// Arguments that mean nothing in a file: where the file is, and questions.
const NOT_IN_A_FILE: [&str; 4] = ["config", "print_config", "help", "version"];

/// A file that has been read: the tables that settings stand in, by their names, and the settings.
#[derive(Debug)]
pub(super) struct File<'a>(Vec<(Vec<String>, Setting<'a>)>);

/// What a file says of one argument.
#[derive(Debug, Clone)]
pub(super) struct Setting<'a> {
    pub(super) argument: &'a Arg,
    flag: String,
    /// `None` for a flag without a value.
    values: Vec<Option<String>>,
}

impl<'a> File<'a> {
    /// Reads a file that speaks of this command and its subcommands.
    ///
    /// # Errors
    /// Where it is no TOML, or says something that no flag says.
    pub(super) fn parse(text: &str, command: &'a Command) -> anyhow::Result<Self> {
        let table: Table = toml::from_str(text)?;
        let mut file = Self(Vec::new());
        file.add(table, command, &[])?;
        Ok(file)
    }

    /// Adds what the table with these names says of a command and those below it.
    fn add(&mut self, table: Table, command: &'a Command, path: &[String]) -> anyhow::Result<()> {
        for (name, value) in table {
            if let Value::Table(table) = value {
                let below = [path, std::slice::from_ref(&name)].concat();
                let asked = command.find_subcommand(&name).with_context(|| {
                    let table = below.join(".");
                    format!("[{table}] is no command; see `{} --help`", typed_as(command))
                })?;
                self.add(table, asked, &below)?;
                continue;
            }
            let mut setting = Setting::new(command, &name, value);
            if !path.is_empty() {
                setting = setting.with_context(|| format!("in [{}]", path.join(".")));
            }
            self.0.push((path.to_vec(), setting?));
        }
        Ok(())
    }

    /// What it says of the command to which these names lead, that of all commands included.
    pub(super) fn of_command(&self, names: &[&str]) -> impl Iterator<Item = Setting<'a>> {
        let of = move |path: &[String]| path.iter().eq(names.iter().take(path.len()));
        self.0.iter().filter(move |(path, _)| of(path)).map(|(_, setting)| setting.clone())
    }
}

impl<'a> Setting<'a> {
    fn new(command: &'a Command, flag: &str, value: Value) -> anyhow::Result<Self> {
        let named = |argument: &&Arg| argument.get_long() == Some(flag);
        let argument = command.get_arguments().find(named);
        let allowed = |argument: &&Arg| !NOT_IN_A_FILE.contains(&argument.get_id().as_str());
        let Some(argument) = argument.filter(allowed) else {
            bail!("{flag} is no setting; see `{} --help`", typed_as(command));
        };
        let takes_value = argument.get_action().takes_values();
        let needs_value = argument.get_num_args().is_none_or(|range| range.min_values() > 0);
        let is_path = argument.get_value_hint() == ValueHint::AnyPath;
        let values = if takes_value && (needs_value || !value.is_bool()) {
            let several = matches!(argument.get_action(), ArgAction::Append);
            let values = match value.as_array() {
                Some(values) if several => values.clone(),
                Some(_) => bail!("{flag} has one value, not a list"),
                None => vec![value],
            };
            let text = |value| {
                let text = text(flag, value)?;
                anyhow::Ok(Some(if is_path { at_home(text)? } else { text }))
            };
            values.into_iter().map(text).collect::<Result<_, _>>()?
        } else {
            match value.as_bool() {
                Some(true) => vec![None],
                Some(false) => Vec::new(),
                None => bail!("{flag} is true or false"),
            }
        };
        Ok(Self { argument, flag: flag.to_owned(), values })
    }

    /// The same as somebody would type it.
    pub(super) fn flags(&self) -> impl Iterator<Item = String> {
        self.values.iter().map(|value| match value {
            None => format!("--{}", self.flag),
            Some(value) => format!("--{}={value}", self.flag),
        })
    }
}

/// A command as somebody would type it.
fn typed_as(command: &Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

/// What a shell would make of a path: in a file, nobody else puts the user's home in the place of `~`.
fn at_home(path: String) -> anyhow::Result<String> {
    match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with(std::path::is_separator) => {
            let home = config::home().with_context(|| format!("{path}: the user has no home"))?;
            let home = home.to_str().with_context(|| format!("{path}: the home is no text"))?;
            Ok(format!("{home}{rest}"))
        }
        _ => Ok(path),
    }
}

fn text(flag: &str, value: Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::String(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
            bail!("{flag} is a text or a number")
        }
    })
}
