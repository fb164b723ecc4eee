//! Table 2 of the Petals paper, and the same rows of its README: one stream over simulated networks.
//!
//! Compute is calibrated on the row with 1 Gbit/s and 5 ms: what remains of a step after the ways
//! of the paper's own chain there. The other rows follow from the networks alone. A delay in the
//! table is a round trip. Activations go as they are, with two bytes a number.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::server::ServerConfig;
use umbel_protocol::{ModelId, PeerId, Span};

use super::{Table, cells};
use crate::host::Speed;
use crate::link::LinkClass;
use crate::oracle::{HIDDEN_SIZE, VOCABULARY};
use crate::seed::Seed;
use crate::workload::{Plan, tokens};
use crate::world::{Planner, Settings, World};

/// Decode steps that are measured, after a context of the length that the row names.
const STEPS: u32 = 16;

/// Tokens of a step that fills the context. More would take the slowest of these links longer than
/// a hop has to answer a ping, and the ping waits behind them.
const CHUNK_TOKENS: u32 = 32;

/// A model on three servers, and what the paper measured.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// For people.
    pub name: &'static str,
    /// Blocks at which one server ends and the next begins, the model's ends included.
    pub boundaries: [u32; 4],
    /// Bytes of a token's hidden state.
    pub token_bytes: usize,
    /// Steps a second at 128 and at 2,048 tokens, for each of the networks.
    pub paper: [[f64; 2]; 3],
}

/// The two models of the paper.
pub const SETUPS: [Setup; 2] = [
    Setup {
        name: "BLOOM-176B, 3 x A100",
        boundaries: [0, 23, 46, 70],
        token_bytes: 14_336 * 2,
        paper: [[1.71, 1.54], [1.66, 1.49], [1.23, 1.11]],
    },
    Setup {
        name: "Llama-2-70B, 3 x T4",
        boundaries: [0, 27, 54, 80],
        token_bytes: 8_192 * 2,
        paper: [[2.29, 2.02], [2.29, 2.01], [1.57, 1.44]],
    },
];

/// A network: its name, bits a second, and round trip.
pub const NETWORKS: [(&str, f64, Duration); 3] = [
    ("1 Gbit/s, 5 ms", 1e9, Duration::from_millis(5)),
    ("100 Mbit/s, 5 ms", 1e8, Duration::from_millis(5)),
    ("100 Mbit/s, 100 ms", 1e8, Duration::from_millis(100)),
];

fn link(network: usize) -> LinkClass {
    let (_, bits, round_trip) = NETWORKS[network];
    LinkClass::new(round_trip / 2, Duration::ZERO, bits / 8.0)
}

impl Setup {
    const fn block_count(&self) -> u32 {
        self.boundaries[3]
    }

    /// The four ways of a token round the ring, with nothing but its hidden state.
    fn ways(&self, network: usize) -> f64 {
        let link = link(network);
        4.0 * (link.delay + link.transfer(self.token_bytes)).as_secs_f64()
    }

    /// Servers that compute as those of the first row did.
    fn speed(&self) -> Speed {
        let compute = self.paper[0].map(|rate| 1.0 / rate - self.ways(0));
        let blocks = f64::from(self.block_count());
        let context = (compute[1] - compute[0]) / (2_048.0 - 128.0) / blocks;
        let block = compute[0] / blocks - 128.0 * context;
        Speed {
            per_block: Duration::from_secs_f64(block),
            per_token: Duration::from_secs_f64(block / 64.0),
            per_context: Duration::from_secs_f64(context),
        }
    }

    /// Steps a second that no chain of these servers can exceed: compute and one-way delays.
    #[must_use]
    pub fn limit(&self, network: usize, length: u32) -> f64 {
        let step = |position| self.speed().step(self.block_count(), position, 1).as_secs_f64();
        let compute: f64 = (length..length + STEPS).map(step).sum::<f64>() / f64::from(STEPS);
        1.0 / (compute + self.ways(network))
    }

    /// Steps a second of the machines of production, at a context of so many tokens.
    ///
    /// # Panics
    /// If the session does not come to its end.
    #[must_use]
    pub fn rate(&self, network: usize, length: u32) -> f64 {
        let model = ModelId::from_bytes([6; 32]);
        let settings = Settings {
            token_bytes: self.token_bytes,
            planner: Planner::Announced,
            ..Settings::new(model, self.block_count(), link(network))
        };
        let mut world = World::new(Seed(0), settings);
        for (name, ends) in (1u8..).zip(self.boundaries.windows(2)) {
            let config = ServerConfig {
                peer: PeerId::from_public_key([name; 32]),
                model,
                span: Span::new(ends[0], ends[1]).expect("no server is without blocks"),
                block_count: self.block_count(),
                vocabulary_size: Some(VOCABULARY),
                hidden_size: HIDDEN_SIZE,
                head_size: 32,
                context_tokens: 4_096,
                kv_tokens_max: 8_192,
                cache: None,
                journal_bytes_max: 16 << 20,
                keeps_pages: true,
                adapters: None,
            };
            world.serve(config, self.speed(), 0);
        }
        let mut random = Seed(0).stream("tokens");
        let mut plan = Plan { tokens_max: length + STEPS, ..Plan::default() };
        for position in (0..length).step_by(CHUNK_TOKENS as usize) {
            plan.steps.push_back((position, tokens(CHUNK_TOKENS, &mut random)));
        }
        for position in length..length + STEPS {
            plan.steps.push_back((position, tokens(1, &mut random)));
        }
        world.join(Time::after_start(Duration::from_secs(1)), plan, 0);
        world.run();
        let client = &world.clients[0];
        assert!(client.failures.is_empty(), "{:?}", client.failures);
        assert!(world.totals.broken.is_empty(), "{:?}", world.totals.broken);
        let decode = client.answers.iter().filter(|answer| answer.tokens == 1);
        let decode: Duration = decode.map(|answer| answer.took).sum();
        f64::from(STEPS) / decode.as_secs_f64()
    }
}

/// The paper's tables and ours.
#[must_use]
pub fn table() -> Table {
    let mut rows = Vec::new();
    for setup in SETUPS {
        for (network, (name, _, _)) in NETWORKS.into_iter().enumerate() {
            for (column, length) in [128, 2_048].into_iter().enumerate() {
                let (ours, limit) = (setup.rate(network, length), setup.limit(network, length));
                rows.push(cells([
                    setup.name,
                    name,
                    &length.to_string(),
                    &format!("{ours:.3}"),
                    &format!("{:.2}", setup.paper[network][column]),
                    &format!("{limit:.3}"),
                    &format!("{:.1}%", 100.0 * ours / limit),
                ]));
            }
        }
    }
    Table {
        title: "One stream over simulated networks: steps a second".to_owned(),
        header: cells(["servers", "network", "context", "Umbel", "Petals", "limit", "of limit"]),
        rows,
        notes: vec![
            "Compute is calibrated on the rows with 1 Gbit/s; two bytes a number, uncompressed."
                .to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_takes_one_trip_round_the_ring_and_nothing_else() {
        for setup in SETUPS {
            for (network, (name, _, _)) in NETWORKS.into_iter().enumerate() {
                let (ours, limit) = (setup.rate(network, 128), setup.limit(network, 128));
                let name = (setup.name, name);
                assert!(ours <= limit * 1.000_1 && ours >= 0.95 * limit, "{name:?}: {ours}");
                // Petals sends one byte a number, here there are two: 1% at 100 Mbit/s.
                assert!(ours >= 0.985 * setup.paper[network][0], "{name:?}: {ours}");
            }
        }
    }
}
