//! `umbel status`

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Context as _;
use serde_json::json;
use umbel_client::{Swarm, SwarmConfig};
use umbel_protocol::ModelId;
use umbel_protocol::announcement::Announcement;

use crate::args::StatusArguments;
use crate::config::Config;

pub(super) async fn run(arguments: StatusArguments, _config: &Config) -> anyhow::Result<()> {
    let swarm =
        Swarm::join(SwarmConfig { join: arguments.join.clone(), ..SwarmConfig::default() }).await?;
    let mut servers = swarm.announcements(None).await;
    swarm.leave().await;
    servers.sort_by_key(|server| (server.model, server.span, server.peer));
    let text = if arguments.json { as_json(&servers) } else { as_text(&servers) };
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")
}

fn as_json(servers: &[Announcement]) -> String {
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
            })
        })
        .collect();
    json!({ "servers": servers }).to_string()
}

fn as_text(servers: &[Announcement]) -> String {
    if servers.is_empty() {
        return "nobody serves a model here".to_owned();
    }
    let mut models: BTreeMap<ModelId, Vec<&Announcement>> = BTreeMap::new();
    for server in servers {
        models.entry(server.model).or_default().push(server);
    }
    let tables: Vec<_> = models.iter().map(|(model, servers)| table(*model, servers)).collect();
    tables.join("\n\n")
}

fn table(model: ModelId, servers: &[&Announcement]) -> String {
    let block_count = servers.iter().map(|server| server.block_count).max().unwrap_or(0);
    // The name is the server's own word: only what prints safely on one line is shown.
    let name: String = servers[0].model_name.chars().filter(|c| !c.is_control()).collect();
    let mut lines = vec![
        format!("{name} ({block_count} blocks), id {model}"),
        format!(
            "{:>9}  {:<52}  {:>9}  {:>9}  {:>8}  {:>5}",
            "blocks", "peer", "decode/s", "prefill/s", "KV free", "queue"
        ),
    ];
    for server in servers {
        lines.push(format!(
            "{:>9}  {}  {:>9.0}  {:>9.0}  {:>8}  {:>5}{}",
            server.span.to_string(),
            server.peer,
            server.throughput.decode_tokens_per_second,
            server.throughput.prefill_tokens_per_second,
            server.kv_tokens_free,
            server.queue_depth,
            if server.draining { "  leaving" } else { "" },
        ));
    }
    let unserved: Vec<_> = (0..block_count)
        .filter(|block| !servers.iter().any(|s| !s.draining && s.span.contains(*block)))
        .map(|block| block.to_string())
        .collect();
    if !unserved.is_empty() {
        lines.push(format!("served by nobody: blocks {}", unserved.join(", ")));
    }
    lines.join("\n")
}
