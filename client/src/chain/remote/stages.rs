//! What the stages of a route take for a chunk of a prompt, from what its servers announce.

use umbel_coordinator::Hop;
use umbel_coordinator::prefill::Stage;
use umbel_protocol::announcement::Announcement;
use umbel_shard::ModelConfig;

/// How the work of a block divides, by the shape of the model alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proportions {
    /// What attending to one token takes, as a part of the arithmetic of a token's matrices.
    pair: f64,
    /// What reading one token's keys and values takes, as a part of reading the weights.
    context: f64,
}

impl Proportions {
    pub(super) fn of(config: &ModelConfig) -> Self {
        let queries = (config.head_count * config.head_size) as f64;
        let keys = (config.kv_head_count * config.head_size) as f64;
        let (hidden, between) =
            (config.hidden_size as f64, config.active_intermediate_size() as f64);
        let weights = hidden * (2.0 * queries + 2.0 * keys + 3.0 * between);
        Self { pair: 2.0 * queries / weights, context: 2.0 * keys / weights }
    }
}

/// The stages of a route; none where a server has not said how fast it is, since half of an
/// estimate is worse than long chunks.
pub(super) fn of_route(
    hops: &[Hop],
    announcements: &[Announcement],
    proportions: Proportions,
    token_bytes: u32,
) -> Vec<Stage> {
    let mut stages = Vec::new();
    for hop in hops {
        let Some(server) = announcements.iter().find(|server| server.peer == hop.peer) else {
            return Vec::new();
        };
        let speed = server.throughput;
        let (prefill, decode) = (speed.prefill_tokens_per_second, speed.decode_tokens_per_second);
        if prefill <= 0.0 || decode <= 0.0 {
            return Vec::new();
        }
        let blocks = f64::from(hop.blocks.block_count());
        let (per_token, per_chunk) = (blocks / f64::from(prefill), blocks / f64::from(decode));
        // The link that leads there is a stage too, where its speed is known; its delay is the same
        // for any number of chunks.
        if speed.network_bytes_per_second > 0 {
            let per_token = f64::from(token_bytes) / speed.network_bytes_per_second as f64;
            stages.push(Stage { per_token, ..Stage::default() });
        }
        stages.push(Stage {
            per_chunk,
            per_context: per_chunk * proportions.context,
            per_token,
            per_pair: per_token * proportions.pair,
        });
    }
    stages
}
