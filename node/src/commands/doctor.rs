//! `umbel doctor`

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use umbel_net::Way;
use umbel_shard::ModelSource;

use crate::args::DoctorArguments;
use crate::config::Config;
use crate::doctor::{Grade, Wanted, examine};

/// Says what is wrong; the exit status is a failure where something does not work.
pub(super) async fn run(arguments: DoctorArguments, config: &Config) -> anyhow::Result<ExitCode> {
    let model = ModelSource::parse(arguments.model.name())?;
    let way = Way::new(&arguments.join, None)?;
    let wanted = Wanted { model, way, listen: arguments.listen };
    let findings = examine(wanted, config).await;
    let text = if arguments.json { findings.to_json().to_string() } else { findings.to_string() };
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")?;
    Ok(match findings.worst() {
        Grade::Good | Grade::Note => ExitCode::SUCCESS,
        Grade::Bad => ExitCode::FAILURE,
    })
}
