//! All settings of a command as a file, with where each comes from.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::Value;

/// Arguments that a file does not hold.
const NOT_PRINTED: [&str; 4] = ["config", "print_config", "help", "version"];

/// What `matches` of a command that has been built say, `of_file` being those from the file.
pub(super) fn text(command: &Command, matches: &ArgMatches, of_file: &BTreeSet<String>) -> String {
    let (asked, matches, path) = super::innermost(command, matches);
    if path.is_empty() {
        return String::new();
    }
    let global: BTreeSet<_> = command
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .map(Arg::get_id)
        .collect();
    let (mut top, mut own) = (Vec::new(), Vec::new());
    for argument in asked.get_arguments() {
        if let Some(line) = line(argument, matches, of_file) {
            let place = if global.contains(argument.get_id()) { &mut top } else { &mut own };
            place.push(line);
        }
    }
    top.push(format!("\n[{}]", path.join(".")));
    top.extend(own);
    top.join("\n").trim_start().to_owned()
}

/// One setting; nothing where it has no value.
fn line(argument: &Arg, matches: &ArgMatches, of_file: &BTreeSet<String>) -> Option<String> {
    let id = argument.get_id().as_str();
    // The model by its place is the same as the model by its flag, which a file can have.
    let flag = argument.get_long().or((id == "model").then_some("model"))?;
    if NOT_PRINTED.contains(&id) {
        return None;
    }
    let from = matches.value_source(id)?;
    let source = if from == ValueSource::CommandLine {
        if of_file.contains(id) { "the file" } else { "a flag" }
    } else if from == ValueSource::EnvVariable {
        "the environment"
    } else {
        "by default"
    };
    let value = if argument.get_action().takes_values() {
        let values = matches.get_raw(id)?.map(|value| scalar(&value.to_string_lossy()));
        let mut values: Vec<_> = values.collect();
        let several = matches!(argument.get_action(), clap::ArgAction::Append);
        match values.pop() {
            // A flag whose value was left out.
            None => Value::Boolean(true),
            Some(value) if !several => value,
            Some(last) => {
                values.push(last);
                Value::Array(values)
            }
        }
    } else {
        Value::Boolean(matches.get_flag(id))
    };
    Some(format!("{flag} = {value} # {source}"))
}

/// Numbers as numbers, where nothing is lost by it.
fn scalar(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Value::Integer(number),
        _ => Value::String(text.to_owned()),
    }
}
