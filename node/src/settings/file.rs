//! The file: what it says, and of which command.

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

/// Arguments that mean nothing in a file: where the file is, and questions.
const NOT_IN_A_FILE: [&str; 4] = ["config", "print_config", "help", "version"];

/// A file that has been read.
#[derive(Debug)]
pub(super) struct File<'a>(Vec<(Option<String>, Setting<'a>)>);

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
        let mut settings = Vec::new();
        for (name, value) in table {
            let Value::Table(table) = value else {
                settings.push((None, Setting::new(command, &name, value)?));
                continue;
            };
            let asked = command
                .find_subcommand(&name)
                .with_context(|| format!("[{name}] is no command; see `umbel --help`"))?;
            for (flag, value) in table {
                let setting =
                    Setting::new(asked, &flag, value).with_context(|| format!("in [{name}]"))?;
                settings.push((Some(name.clone()), setting));
            }
        }
        Ok(Self(settings))
    }

    /// What it says of a command, that of all commands included.
    pub(super) fn of_command(&self, name: &str) -> impl Iterator<Item = Setting<'a>> {
        let of = move |of: &Option<String>| of.as_deref().is_none_or(|of| of == name);
        self.0.iter().filter(move |(command, _)| of(command)).map(|(_, setting)| setting.clone())
    }
}

impl<'a> Setting<'a> {
    fn new(command: &'a Command, flag: &str, value: Value) -> anyhow::Result<Self> {
        let named = |argument: &&Arg| argument.get_long() == Some(flag);
        let argument = command.get_arguments().find(named);
        let allowed = |argument: &&Arg| !NOT_IN_A_FILE.contains(&argument.get_id().as_str());
        let Some(argument) = argument.filter(allowed) else {
            bail!("{flag} is no setting; see `umbel {} --help`", command.get_name());
        };
        let takes_value = argument.get_action().takes_values();
        let values = if takes_value {
            let several = matches!(argument.get_action(), ArgAction::Append);
            let values = match value.as_array() {
                Some(values) if several => values.clone(),
                Some(_) => bail!("{flag} has one value, not a list"),
                None => vec![value],
            };
            values.into_iter().map(|value| text(flag, value).map(Some)).collect::<Result<_, _>>()?
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
