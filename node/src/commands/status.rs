//! `umbel status`

mod watch;

use std::io::Write as _;

use anyhow::Context as _;
use serde_json::json;
use umbel_client::{Swarm, SwarmConfig};
use umbel_net::Way;
use umbel_protocol::PeerId;
use umbel_protocol::announcement::Announcement;

use crate::args::StatusArguments;
use crate::config::Config;
use crate::overview::{self, Overview};

pub(super) async fn run(arguments: StatusArguments, _config: &Config) -> anyhow::Result<()> {
    let Way { addresses, swarm_key } = Way::new(&arguments.join, None)?;
    let join = SwarmConfig { join: addresses, swarm_key, ..SwarmConfig::default() };
    let swarm = Swarm::join(join).await?;
    let result = if arguments.watch {
        watch::run(&swarm, arguments.interval.into()).await
    } else {
        once(&swarm, arguments.json).await
    };
    swarm.leave().await;
    result
}

async fn once(swarm: &Swarm, as_json: bool) -> anyhow::Result<()> {
    let (servers, overview) = look(swarm).await;
    let text = if as_json { json(&servers, &overview) } else { overview::text(&overview) };
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")
}

/// Asks the swarm who is in it.
async fn look(swarm: &Swarm) -> (Vec<Announcement>, Overview) {
    let mut servers = swarm.announcements(None).await;
    servers.sort_by_key(|server| (server.model, server.span, server.peer));
    let overview = Overview::new(&servers, |peer| swarm.round_trip(peer));
    (servers, overview)
}

fn json(servers: &[Announcement], overview: &Overview) -> String {
    let away = |peer: PeerId| {
        let mut servers = overview.models.iter().flat_map(|model| &model.servers);
        let round_trip = servers.find(|server| server.peer == peer)?.round_trip?;
        Some(overview::milliseconds(round_trip))
    };
    let servers: Vec<_> = servers
        .iter()
        .map(|server| {
            json!({
                "peer": server.peer.to_string(),
                "model": server.model.to_string(),
                "model_name": server.model_name,
                "start": server.span.start(),
                "end": server.span.end(),
                "block_count": server.block_count,
                "addresses": server.addresses,
                "version": server.version,
                "decode_tokens_per_second": server.throughput.decode_tokens_per_second,
                "prefill_tokens_per_second": server.throughput.prefill_tokens_per_second,
                "kv_tokens_free": server.kv_tokens_free,
                "queue_depth": server.queue_depth,
                "draining": server.draining,
                "relayed": overview::is_relayed(&server.addresses),
                "round_trip_ms": away(server.peer),
            })
        })
        .collect();
    json!({ "servers": servers }).to_string()
}
