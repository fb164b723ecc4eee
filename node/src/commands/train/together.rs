//! A training whose adapter is shared with other trainers.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use umbel_client::ClientModel;
use umbel_client::train::Trainer;
use umbel_client::train::together::{NamedRun, Together, TogetherSettings};
use umbel_coordinator::training::round::{OuterStep, Rule, RunSettings};

use umbel_net::{Join, Multiaddr, Way, relayed_by};

use crate::args::train::{TogetherArguments, With};

/// How long members are waited for behind the time to learn, as a share of it and at least: a delta of a
/// million values takes a second at ten megabits a second.
const GATHER_SHARE: u32 = 10;
const GATHER_MIN: Duration = Duration::from_secs(1);

/// Begins a run, or joins one, if that is asked for, and says where others join.
pub(super) async fn start(
    arguments: &TogetherArguments,
    join: &[Join],
    model: &ClientModel,
    trainer: &mut Trainer,
) -> anyhow::Result<Option<Together>> {
    if arguments.together.is_none() && arguments.with.is_empty() {
        return Ok(None);
    }
    let members = arguments.with.iter().filter_map(|with| match with {
        With::Member(join) => Some(join.clone()),
        With::Run(_) => None,
    });
    let Way { addresses, swarm_key } = Way::new(&members.collect::<Vec<_>>(), None)?;
    // Those who meet in a private swarm are of it, whether their run has a name or not.
    let meet = if arguments.meet.is_empty() { join } else { &arguments.meet };
    let Way { addresses: meet, swarm_key } = Way::new(meet, swarm_key)?;
    let named = named(arguments, &meet)?;
    let anywhere = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
    // The peers of a private swarm speak TCP alone.
    let anywhere = if swarm_key.is_some() { &anywhere[..1] } else { &anywhere[..] };
    let listen = if arguments.relayed {
        [relays(&meet)?, arguments.listen.clone()].concat()
    } else if arguments.listen.is_empty() {
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
    let settings = TogetherSettings { listen, with: addresses, named, swarm_key, run };
    let together = Together::start(settings, model.id(), trainer).await?;
    if let Err(error) = writeln!(std::io::stdout(), "ready {}", together.address()) {
        tracing::warn!(%error, "nobody reads stdout");
    }
    Ok(Some(together))
}

/// The run that is named, which is found by peers of `meet`.
fn named(arguments: &TogetherArguments, meet: &[Multiaddr]) -> anyhow::Result<Option<NamedRun>> {
    let names = arguments.with.iter().filter_map(|with| match with {
        With::Run(name) => Some(name),
        With::Member(_) => None,
    });
    let (begun, joined) = (arguments.together.iter().flatten(), names.collect::<Vec<_>>());
    let joins = !joined.is_empty();
    let names: Vec<_> = begun.chain(joined).collect();
    let name = match names.as_slice() {
        [] if arguments.meet.is_empty() || arguments.relayed => return Ok(None),
        [] => bail!("--meet is for --relayed, and runs with a name: --together NAME, --with NAME"),
        [name] => (*name).clone(),
        [_, _, ..] => bail!("a trainer is in one run: name one"),
    };
    if meet.is_empty() {
        bail!("where is a run called {name} found? --meet ADDR, or --join ADDR, of a swarm");
    }
    Ok(Some(NamedRun { name, joins, meet: meet.to_vec() }))
}

/// Where this trainer listens by those who relay.
fn relays(meet: &[Multiaddr]) -> anyhow::Result<Vec<Multiaddr>> {
    if meet.is_empty() {
        bail!("--relayed by whom? --meet ADDR, or --join ADDR, of a server that runs with --relay");
    }
    let relayed = meet.iter().map(|address| {
        relayed_by(address).with_context(|| {
            format!("--relayed needs a server's whole address, with /p2p/ and its name: {address}")
        })
    });
    relayed.collect()
}
