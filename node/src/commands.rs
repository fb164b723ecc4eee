//! The subcommands, one file each.

mod about;
mod adapter;
mod bench;
mod chat;
mod demo;
mod doctor;
mod gateway;
mod generate;
mod inspect;
mod local_swarm;
mod pause;
mod serve;
pub(crate) mod session;
mod speculate;
mod status;
mod swarm;
pub(crate) mod train;

use std::panic::resume_unwind;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};
use umbel_engine::heap;

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
    config.choose_processor()?;
    heap::share();
    let runtime = runtime(&arguments.command).context("the runtime cannot be started")?;
    // Beside the other tasks: from the thread that waits here, each word to them would wake another.
    let work = runtime.spawn(async move {
        match arguments.command {
            Command::Demo(arguments) => demo::run(arguments, &config).await,
            Command::Serve(arguments) => serve::run(*arguments, &config).await,
            Command::Chat(arguments) => chat::run(arguments, &config).await,
            Command::Generate(arguments) => generate::run(arguments, &config).await,
            Command::Train(arguments) => return train::run(*arguments, &config).await,
            Command::Adapter(arguments) => adapter::run(arguments, &config).await,
            Command::Gateway(arguments) => gateway::run(arguments, &config).await,
            Command::Inspect(arguments) => inspect::run(arguments, &config).await,
            Command::Status(arguments) => status::run(arguments, &config).await,
            Command::Bench(arguments) => bench::run(arguments, &config).await,
            Command::Completions(arguments) => about::completions(&arguments),
            Command::Man(arguments) => about::man(&arguments),
            Command::Pause(arguments) => pause::run(arguments, true, &config).await,
            Command::Resume(arguments) => pause::run(arguments, false, &config).await,
            Command::Swarm(arguments) => swarm::run(arguments),
            Command::Doctor(arguments) => return doctor::run(arguments, &config).await,
        }
        .map(|()| ExitCode::SUCCESS)
    });
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))
}

/// A server's links are served by one thread: between several, each step is handed on once more and
/// wakes a thread that takes a core from those that compute. `hop_overhead` measured 130 µs of
/// processor time for a step instead of 155. Arithmetic and packing have threads of their own.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let mut builder = match command {
        // A gateway in the same process has work of its own.
        Command::Serve(arguments) if arguments.gateway.is_none() => Builder::new_current_thread(),
        Command::Serve(_) => Builder::new_multi_thread(),
        Command::Demo(_)
        | Command::Chat(_)
        | Command::Generate(_)
        | Command::Train(_)
        | Command::Adapter(_)
        | Command::Gateway(_)
        | Command::Inspect(_)
        | Command::Status(_)
        | Command::Doctor(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Swarm(_)
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Bench(_) => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}
