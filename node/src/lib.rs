//! A peer that serves, and everything that the binary `umbel` does.

// Where nobody reads stderr, these panic; `telemetry::say` does not.
#![warn(clippy::print_stderr)]

use std::process::ExitCode;

pub mod announce;
pub mod args;
pub mod commands;
pub mod compute;
pub mod config;
pub mod device;
pub mod doctor;
pub mod driver;
mod folder;
pub mod gateway;
mod links;
pub mod measure;
mod memory;
pub mod metrics;
pub mod overview;
pub mod progress;
pub mod serve;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod training;

/// Does what was typed, reports what goes wrong, and says how the process is to end.
#[must_use]
pub fn main() -> ExitCode {
    let settings = match settings::read(std::env::args_os().collect()) {
        Ok(settings) => settings,
        Err(settings::SettingsError::Arguments(error)) => return telemetry::answer(&error),
        Err(error @ settings::SettingsError::File { .. }) => {
            telemetry::report(&error.into());
            return ExitCode::FAILURE;
        }
    };
    if let Some(text) = settings.printed {
        return telemetry::print(&text);
    }
    let arguments = settings.arguments;
    telemetry::start(arguments.log.as_deref(), arguments.log_format);
    commands::run(arguments).unwrap_or_else(|error| {
        telemetry::report(&error);
        ExitCode::FAILURE
    })
}
