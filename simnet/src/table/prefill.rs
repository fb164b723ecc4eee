//! A prompt through several stages: one after another, and all of them at once.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::prefill::{self, CHUNK_TOKENS_MAX, Stage};
use umbel_coordinator::server::ServerConfig;
use umbel_protocol::inference::AnswerRows;
use umbel_protocol::{ModelId, PeerId, Span};

use super::{Table, cells};
use crate::host::Speed;
use crate::link::LinkClass;
use crate::oracle::{HIDDEN_SIZE, VOCABULARY};
use crate::seed::Seed;
use crate::workload::{Plan, tokens};
use crate::world::{Planner, Settings, World};

/// Stages of the route, of as many blocks each.
const STAGES: u32 = 4;

/// Blocks of a stage: a model of a billion parameters has 16 of about 61 million.
const BLOCKS: u32 = 4;

/// Such a block on two cores: 122 MB of bf16 weights at 25 GB/s, the arithmetic of a token at
/// 400 GFLOP/s, and 2 KiB of keys and values of each token of the context, read at the same pace.
const SPEED: Speed = Speed {
    per_block: Duration::from_micros(4_900),
    per_token: Duration::from_micros(305),
    per_context: Duration::from_nanos(82),
};

/// One way.
const DELAY: Duration = Duration::from_millis(20);

/// Bytes of a token's hidden state of 2,048 values in binary32.
const TOKEN_BYTES: usize = 8_192;

/// How a prompt is handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// All of it through one stage after another.
    StageAfterStage,
    /// A chunk of 512 tokens is handed in when the one before it has come back, with all its rows.
    ChunkAfterChunk,
    /// Planned chunks, all of them under way at once, of which the last row comes back.
    Streamed,
}

impl Manner {
    /// Every manner.
    pub const ALL: [Self; 3] = [Self::StageAfterStage, Self::ChunkAfterChunk, Self::Streamed];

    const fn name(self) -> &'static str {
        match self {
            Self::StageAfterStage => "stage after stage",
            Self::ChunkAfterChunk => "chunk after chunk",
            Self::Streamed => "streamed",
        }
    }

    fn chunks(self, prompt: u32) -> Vec<u32> {
        match self {
            Self::StageAfterStage => vec![prompt],
            Self::ChunkAfterChunk => prefill::plan(&[], 0, prompt, CHUNK_TOKENS_MAX),
            Self::Streamed => {
                let stage = Stage {
                    per_chunk: (SPEED.per_block * BLOCKS).as_secs_f64(),
                    per_context: (SPEED.per_context * BLOCKS).as_secs_f64(),
                    per_token: (SPEED.per_token * BLOCKS).as_secs_f64(),
                    per_pair: 0.0,
                };
                prefill::plan(&[stage; STAGES as usize], 0, prompt, CHUNK_TOKENS_MAX)
            }
        }
    }
}

/// How long a prompt takes the machines of production, over links of so many bytes a second.
///
/// # Panics
/// If the session does not come to its end.
#[must_use]
pub fn time(manner: Manner, prompt: u32, bytes_per_second: f64) -> Duration {
    let model = ModelId::from_bytes([6; 32]);
    let links = LinkClass::new(DELAY, Duration::ZERO, bytes_per_second);
    let settings = Settings {
        token_bytes: TOKEN_BYTES,
        planner: Planner::Announced,
        ..Settings::new(model, STAGES * BLOCKS, links)
    };
    let mut world = World::new(Seed(0), settings);
    for (name, stage) in (1u8..).zip(0..STAGES) {
        let config = ServerConfig {
            peer: PeerId::from_public_key([name; 32]),
            model,
            span: Span::new(stage * BLOCKS, (stage + 1) * BLOCKS).expect("a stage has blocks"),
            block_count: STAGES * BLOCKS,
            vocabulary_size: Some(VOCABULARY),
            hidden_size: HIDDEN_SIZE,
            head_size: 32,
            context_tokens: 8_192,
            kv_tokens_max: 8_192,
            cache: None,
            journal_bytes_max: 64 << 20,
            keeps_pages: true,
            adapters: None,
        };
        world.serve(config, SPEED, 0);
    }
    let chunks = manner.chunks(prompt);
    let mut random = Seed(0).stream("tokens");
    let (window, answer_rows) = match manner {
        Manner::StageAfterStage | Manner::ChunkAfterChunk => (1, AnswerRows::All),
        Manner::Streamed => (chunks.len(), AnswerRows::Last),
    };
    let mut plan = Plan { tokens_max: prompt, window, answer_rows, ..Plan::default() };
    let mut position = 0;
    for chunk in chunks {
        plan.steps.push_back((position, tokens(chunk, &mut random)));
        position += chunk;
    }
    world.join(Time::after_start(Duration::from_secs(1)), plan, 0);
    world.run();
    let client = &world.clients[0];
    assert!(client.failures.is_empty(), "{:?}", client.failures);
    assert!(world.totals.broken.is_empty(), "{:?}", world.totals.broken);
    assert_eq!(world.totals.blames, 0, "{:?}", client.blamed);
    let answers = &client.answers;
    let (first, last) = (answers.first().expect("a chunk"), answers.last().expect("a chunk"));
    // The first one was begun when the session was ready.
    (last.at + first.took).since(first.at)
}

/// Prompts of several lengths in every manner.
#[must_use]
pub fn table() -> Table {
    let mut rows = Vec::new();
    for bytes_per_second in [125e6, 12.5e6] {
        for prompt in [500, 1_000, 2_000, 4_000] {
            let times = Manner::ALL.map(|manner| time(manner, prompt, bytes_per_second));
            let [whole, .., streamed] = times.map(|time| time.as_secs_f64());
            let [stages, chunks, at_once] =
                times.map(|time| format!("{:.2} s", time.as_secs_f64()));
            let link = format!("{:.0} Mbit/s", bytes_per_second * 8.0 / 1e6);
            let part = format!("{:.0}%", 100.0 * streamed / whole);
            rows.push(cells([&link, &prompt.to_string(), &stages, &chunks, &at_once, &part]));
        }
    }
    let names = Manner::ALL.map(Manner::name);
    Table {
        title: "A prompt through four stages, 20 ms apart".to_owned(),
        header: cells(["links", "tokens", names[0], names[1], names[2], "streamed takes"]),
        rows,
        notes: vec![
            "Four blocks of a model of a billion parameters on each of four servers of two cores."
                .to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thousand_tokens_take_at_most_35_percent_of_what_they_take_stage_after_stage() {
        let [whole, .., streamed] = Manner::ALL.map(|manner| time(manner, 2_000, 125e6));
        let part = streamed.as_secs_f64() / whole.as_secs_f64();
        assert!(part <= 0.35, "{streamed:?} of {whole:?}");
    }
}
