//! The subcommands, one file each.

mod bench;
mod chat;
mod demo;
mod generate;
mod inspect;
mod local_swarm;
mod serve;
mod session;
mod speculate;
mod status;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::args::{Arguments, Command};
use crate::config::Config;

/// How long work that cannot be interrupted, such as a file being hashed, may hold up the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(200);

/// Does what was typed.
///
/// # Errors
/// With a chain of causes that tells a person what to do.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = Config::resolve(&arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let result = runtime.block_on(async {
        match arguments.command {
            Command::Demo(arguments) => demo::run(arguments, &config).await,
            Command::Serve(arguments) => serve::run(arguments, &config).await,
            Command::Chat(arguments) => chat::run(arguments, &config).await,
            Command::Generate(arguments) => generate::run(arguments, &config).await,
            Command::Inspect(arguments) => inspect::run(arguments, &config).await,
            Command::Status(arguments) => status::run(arguments, &config).await,
            Command::Bench(arguments) => bench::run(arguments, &config).await,
        }
    });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result.map(|()| ExitCode::SUCCESS)
}
