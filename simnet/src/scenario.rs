//! Scenarios: a world in words, from a file in TOML.

mod build;

use serde::Deserialize;

/// The scenarios that come with the crate, by name.
pub const BUILT_IN: [(&str, &str); 5] = [
    ("churn", include_str!("../scenarios/churn.toml")),
    ("liar", include_str!("../scenarios/liar.toml")),
    ("partition", include_str!("../scenarios/partition.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
    ("thousands", include_str!("../scenarios/thousands.toml")),
];

/// A world in words.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is for.
    pub about: String,
    /// The model.
    pub model: Model,
    /// How long things go on.
    pub phases: Phases,
    /// The links of which nothing else is said.
    pub network: Network,
    /// Links between groups.
    #[serde(default)]
    pub links: Vec<Between>,
    /// Servers, group by group.
    pub servers: Vec<Servers>,
    /// Clients, group by group.
    pub clients: Vec<Clients>,
    /// What fails.
    #[serde(default)]
    pub faults: Vec<Failing>,
    /// Groups that are parted for a time.
    #[serde(default)]
    pub partitions: Vec<Partition>,
}

/// The model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its blocks.
    pub blocks: u32,
    /// Bytes of one token's hidden state on a link.
    pub token_bytes: usize,
}

/// How long things go on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Minutes in which things fail.
    pub faults_minutes: f64,
    /// Minutes after them in which clients still begin sessions.
    pub quiet_minutes: f64,
}

/// What a link is like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One way, in milliseconds.
    pub delay_ms: f64,
    /// Added by chance, at most.
    #[serde(default)]
    pub jitter_ms: f64,
    /// Millions of bits a second.
    pub mbit_per_second: f64,
    /// How likely a packet is lost, and sent again.
    #[serde(default)]
    pub loss: f64,
    /// What waits before the link at most, in KiB; nothing said: without bound.
    pub buffer_kib: Option<f64>,
}

/// The links between two groups, in both directions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Between {
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// What they are like.
    pub network: Network,
    /// Whether those of `to` can be dialled from `from`.
    #[serde(default = "yes")]
    pub dialable: bool,
    /// Whether those of `from` can be dialled from `to`.
    #[serde(default = "yes")]
    pub dialable_back: bool,
}

/// A group of equal servers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Servers {
    /// Where they stand.
    #[serde(default)]
    pub group: String,
    /// How many.
    pub count: usize,
    /// Consecutive blocks on each.
    pub blocks: u32,
    /// Milliseconds to read a block's weights.
    pub block_ms: f64,
    /// Milliseconds of arithmetic for a token and block.
    pub token_ms: f64,
    /// Tokens of KV cache.
    pub kv_tokens: u32,
    /// Room for journals, in MiB of the modelled network's bytes.
    pub journal_mib: f64,
}

/// A group of clients that do the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// Where they stand.
    #[serde(default)]
    pub group: String,
    /// How many.
    pub count: usize,
    /// Most sessions of each; nothing said: as many as find time.
    pub sessions: Option<u32>,
    /// Seconds until the last of them begins.
    pub arrival_seconds: f64,
    /// Tokens of a prompt: least and most.
    pub prompt: [u32; 2],
    /// Tokens of an answer: least and most.
    pub answer: [u32; 2],
    /// How likely a step begins with a rollback.
    #[serde(default)]
    pub rollback: f64,
    /// Seconds between two sessions: least and most.
    #[serde(default)]
    pub pause_seconds: [f64; 2],
    /// Whether each hop is to have a spare.
    #[serde(default)]
    pub standby: bool,
}

/// What fails.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    /// How.
    pub kind: Kind,
    /// The servers of this group; nothing said: of all groups.
    pub group: Option<String>,
    /// The part of them that it happens to in each period.
    pub share: f64,
    /// Minutes of a period.
    pub every_minutes: f64,
    /// Seconds until it is over: least and most.
    pub for_seconds: [f64; 2],
    /// How many times slower, where that is what happens.
    #[serde(default = "ten")]
    pub factor: u32,
}

/// How something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It ends, and its links close.
    Crash,
    /// It falls silent for good.
    Silence,
    /// It stands still, and goes on.
    Freeze,
    /// It computes slower.
    Slow,
    /// It is asked to leave.
    Leave,
    /// It starts anew at once.
    Restart,
    /// Its answers have the wrong shape.
    Lie,
}

/// Groups that are parted for a time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Which two.
    pub between: [String; 2],
    /// From when on.
    pub at_minutes: f64,
    /// For how long.
    pub seconds: f64,
}

/// A scenario that is none.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It is not the TOML of a scenario.
    #[error("the scenario cannot be read")]
    Syntax(#[from] toml::de::Error),
    /// No world is like that.
    #[error("{field} must be {must}")]
    Value {
        /// What is wrong.
        field: &'static str,
        /// What is right.
        must: &'static str,
    },
    /// A group without anybody in it.
    #[error("no servers or clients are in a group {group:?}")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
}

const fn yes() -> bool {
    true
}

const fn ten() -> u32 {
    10
}

#[cfg(test)]
mod tests;
