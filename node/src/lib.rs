//! A peer that serves, and everything that the binary `umbel` does.

use std::process::ExitCode;

use clap::Parser as _;

pub mod announce;
pub mod args;
pub mod commands;
pub mod compute;
pub mod config;
pub mod doctor;
pub mod driver;
pub mod gateway;
pub mod measure;
pub mod overview;
pub mod progress;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod training;

/// Does what was typed, reports what goes wrong, and says how the process is to end.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    telemetry::start(arguments.log.as_deref());
    commands::run(arguments).unwrap_or_else(|error| {
        telemetry::report(&error);
        ExitCode::FAILURE
    })
}
