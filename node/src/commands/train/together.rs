//! A training whose adapter is shared with other trainers.

use std::io::Write as _;
use std::time::Duration;

use umbel_client::ClientModel;
use umbel_client::train::Trainer;
use umbel_client::train::together::{Together, TogetherSettings};
use umbel_coordinator::training::round::{OuterStep, Rule, RunSettings};

use crate::args::train::TogetherArguments;
use umbel_net::Way;

/// How long members are waited for behind the time to learn, as a share of it and at least: a delta of a
/// million values takes a second at ten megabits a second.
const GATHER_SHARE: u32 = 10;
const GATHER_MIN: Duration = Duration::from_secs(1);

/// Begins a run, or joins one, if that is asked for, and says where others join.
pub(super) async fn start(
    arguments: &TogetherArguments,
    model: &ClientModel,
    trainer: &mut Trainer,
) -> anyhow::Result<Option<Together>> {
    if !arguments.together && arguments.with.is_empty() {
        return Ok(None);
    }
    let Way { addresses, swarm_key } = Way::new(&arguments.with, None)?;
    let anywhere = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
    // The peers of a private swarm speak TCP alone.
    let anywhere = if swarm_key.is_some() { &anywhere[..1] } else { &anywhere[..] };
    let listen = if arguments.listen.is_empty() {
        anywhere.iter().map(|text| text.parse().expect("a multiaddress")).collect()
    } else {
        arguments.listen.clone()
    };
    let learn = Duration::from_secs(arguments.round_seconds.into());
    let run = RunSettings {
        rule: Rule::TrimmedMean,
        outer: OuterStep::default(),
        learn,
        gather: (learn / GATHER_SHARE).max(GATHER_MIN),
    };
    let settings = TogetherSettings { listen, with: addresses, swarm_key, run };
    let together = Together::start(settings, model.id(), trainer).await?;
    if let Err(error) = writeln!(std::io::stdout(), "ready {}", together.address()) {
        tracing::warn!(%error, "nobody reads stdout");
    }
    Ok(Some(together))
}
