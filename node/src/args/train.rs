//! What was typed for `umbel train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use umbel_client::train::schedule::Decay;
use umbel_client::train::together::RunName;
use umbel_engine::train::TargetModule;
use umbel_net::{INVITE_PREFIX, InvalidJoin, Multiaddr, parse_address};

use super::{Join, ModelArguments};

/// `umbel train`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel train --local --data letters.jsonl --out letters
  umbel train --join ADDR --data chats.jsonl --out chats --rank 16 --epochs 2
  umbel train --join ADDR --data chats.jsonl --out chats --resume
  umbel train --join ADDR --data chats.jsonl --out chats --epochs 20 --patience 3
  umbel train --join ADDR --data chats.jsonl --out tone --method ptune --learning-rate 0.01
  umbel train --join ADDR --data mine.jsonl --out ours --together
  umbel train --join ADDR --data yours.jsonl --out ours --with TRAINER
  umbel train --join ADDR --data mine.jsonl --out ours --together letters
  umbel train --join ADDR --data yours.jsonl --out ours --with letters

Each line of the data is one JSON object: messages (a list of role and content, of which what the
assistant says is learned), or prompt and completion (the completion is), or text, or token_ids.
The folder gets adapter_config.json and adapter_model.safetensors, which PEFT reads as well,
README.md and loss.svg about them, metrics.jsonl, and checkpoint.safetensors to go on with.")]
pub struct TrainArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// What is learned: a file of JSON lines.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,

    /// Where the adapter goes.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Address of any peer of the swarm, or an invite; may be given several times.
    #[arg(long, value_name = "ADDR")]
    pub join: Vec<Join>,

    /// Train in this process, without a network.
    #[arg(long, conflicts_with = "join")]
    pub local: bool,

    /// Look for servers on the local network by mDNS if no address is given.
    #[arg(long, conflicts_with_all = ["join", "local"])]
    pub mdns: bool,

    /// Seconds to wait for a server of blocks that nobody serves.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "local", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub wait: u32,

    /// Divide each step among so many routes without a common server, where there are as many. Each
    /// microbatch's gradients then cross the network.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "local", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub routes: u8,

    /// Go on from the checkpoint in the folder.
    #[arg(long)]
    pub resume: bool,

    /// With whom it is learned.
    #[command(flatten)]
    pub together: TogetherArguments,

    /// What the adapter is.
    #[command(flatten)]
    pub adapter: AdapterArguments,

    /// How it is learned.
    #[command(flatten)]
    pub learning: LearningArguments,
}

/// With whom an adapter is learned.
#[derive(Debug, Clone, Args)]
pub struct TogetherArguments {
    /// Share the adapter with other trainers, each of whom has data of its own: begin a run, print
    /// "ready ADDR", and put together what all have learned in rounds. With a name, others find the run by
    /// it.
    #[arg(long, value_name = "NAME", num_args = 0..=1, conflicts_with = "with")]
    pub together: Option<Option<RunName>>,

    /// Join the run of this name, or of the trainer that printed this address; may be given several times.
    /// Model, adapter and --round-seconds have to be the same.
    #[arg(long, value_name = "NAME|ADDR", value_parser = with)]
    pub with: Vec<With>,

    /// Address of any peer of the swarm in which a run is found by its name, or an invite; may be given
    /// several times [default: that of --join].
    #[arg(long, value_name = "ADDR")]
    pub meet: Vec<Join>,

    /// Have other trainers reach this one through the peers of --meet, or of --join, which were started with
    /// `umbel serve --relay`: for where nothing comes in from elsewhere.
    #[arg(long)]
    pub relayed: bool,

    /// Where to listen for other trainers; may be given several times [default: every interface, QUIC and
    /// TCP, free ports].
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Vec<Multiaddr>,

    /// How long each learns by itself in a round.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub round_seconds: u32,
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Matrices in the blocks.
    Lora,
    /// Vectors that stand before the text. Servers hold nothing of them.
    Ptune,
    /// The same, and vectors that each block adds to the hidden states of these positions.
    DeepPtune,
}

impl Method {
    /// As it is typed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Ptune => "ptune",
            Self::DeepPtune => "deep-ptune",
        }
    }
}

/// Tokens of a prompt where no number was typed: as many as Petals' examples have.
const PROMPT_TOKENS: u16 = 16;

/// What a matrix is added to where none was typed.
const ATTENTION: [TargetModule; 4] =
    [TargetModule::Query, TargetModule::Key, TargetModule::Value, TargetModule::Output];

/// The rank where none was typed.
const RANK: u16 = 8;

/// Whom a trainer joins.
#[derive(Debug, Clone)]
pub enum With {
    /// A member of the run.
    Member(Join),
    /// Whoever is in the run of this name.
    Run(RunName),
}

fn with(text: &str) -> Result<With, String> {
    let text = text.trim();
    match text.parse() {
        // An invite has nothing but letters and digits either.
        Ok(name) if !text.starts_with(INVITE_PREFIX) => Ok(With::Run(name)),
        _ => text.parse().map(With::Member).map_err(|error: InvalidJoin| error.to_string()),
    }
}

/// What an adapter is.
#[derive(Debug, Clone, Args)]
pub struct AdapterArguments {
    /// What is learned. Prompts want a higher --learning-rate than matrices, such as 0.01.
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Method::Lora)]
    pub method: Method,

    /// Tokens of the prompt that is learned [default: 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub prompt_tokens: Option<u16>,

    /// The text whose embeddings the prompt begins with, as often as there is room [default: tokens that
    /// are drawn].
    #[arg(long, value_name = "TEXT")]
    pub prompt_text: Option<String>,

    /// Rows of the adapter's inner matrices.
    #[arg(long, value_name = "N", default_value_t = RANK, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub rank: u16,

    /// How much it counts, times the rank [default: twice the rank].
    #[arg(long, value_name = "A")]
    pub alpha: Option<f32>,

    /// The matrices that it adds to: q_proj, k_proj, v_proj, o_proj, and in models without experts
    /// gate_proj, up_proj, down_proj
    /// [default: q_proj,k_proj,v_proj,o_proj].
    #[arg(long, value_name = "NAME,NAME,...", value_delimiter = ',', value_parser = target_module)]
    pub target_modules: Vec<TargetModule>,

    /// How many of its inputs are dropped while it learns.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub dropout: f32,

    /// Divide by the root of the rank and not by the rank.
    #[arg(long)]
    pub rank_stabilized: bool,

    /// Learn the norm of each row of the matrices too (DoRA), for a third more computation, or with --dropout
    /// more than twice as much.
    #[arg(long)]
    pub dora: bool,
}

impl AdapterArguments {
    /// The matrices that were typed, or those of attention.
    #[must_use]
    pub fn target_modules(&self) -> Vec<TargetModule> {
        if self.target_modules.is_empty() {
            return ATTENTION.to_vec();
        }
        self.target_modules.clone()
    }

    /// Tokens that stand before each text.
    #[must_use]
    pub fn prompt_tokens(&self) -> u16 {
        match self.method {
            Method::Lora => 0,
            Method::Ptune | Method::DeepPtune => self.prompt_tokens.unwrap_or(PROMPT_TOKENS),
        }
    }

    /// The first argument that has no meaning for what is learned.
    #[must_use]
    pub fn out_of_place(&self) -> Option<&'static str> {
        let of_prompts = [
            ("--prompt-tokens", self.prompt_tokens.is_some()),
            ("--prompt-text", self.prompt_text.is_some()),
        ];
        let of_matrices = [
            ("--rank", self.rank != RANK),
            ("--alpha", self.alpha.is_some()),
            ("--dropout", self.dropout != 0.0),
            ("--rank-stabilized", self.rank_stabilized),
            ("--dora", self.dora),
            ("--target-modules", !self.target_modules.is_empty()),
        ];
        let typed = match self.method {
            Method::Lora => &of_prompts[..],
            Method::Ptune | Method::DeepPtune => &of_matrices[..],
        };
        typed.iter().find(|(_, is_typed)| *is_typed).map(|(name, _)| *name)
    }
}

/// How an adapter is learned.
#[derive(Debug, Clone, Args)]
pub struct LearningArguments {
    /// How often each text is learned.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub epochs: u64,

    /// Texts of one step.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4_096))]
    pub batch: u16,

    /// The highest learning rate.
    #[arg(long, value_name = "R", default_value_t = 1e-3, value_parser = above_zero)]
    pub learning_rate: f64,

    /// How the learning rate falls: constant, linear or cosine.
    #[arg(long, value_name = "NAME", default_value = "cosine", value_parser = decay)]
    pub schedule: Decay,

    /// Steps during which the learning rate rises.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup_steps: u64,

    /// How much of each value is taken away in a step, times the learning rate.
    #[arg(long, value_name = "D", default_value_t = 0.01, value_parser = zero_or_more)]
    pub weight_decay: f64,

    /// The largest norm of the gradients of a step; a very large one, such as 1e30, clips none.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = above_zero)]
    pub clip: f64,

    /// Tokens at which texts are cut.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub max_tokens: u32,

    /// Tokens that go through the blocks together.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub microbatch_tokens: u32,

    /// The share of the texts that is not learned but shows how well others are foretold.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    pub validation: f64,

    /// Texts that are not learned but show how well others are foretold, instead of a share of the data:
    /// a file of JSON lines.
    #[arg(long, value_name = "FILE", conflicts_with = "validation")]
    pub validation_data: Option<PathBuf>,

    /// Validate behind so many steps too, and not only behind each epoch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub validate_every: Option<u64>,

    /// Stop once so many validations in a row were no better than the best before them; the adapter is
    /// then that of the best.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub patience: Option<u32>,

    /// Write a checkpoint behind so many steps.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: u64,

    /// What the adapter's first values, the order of the texts and dropout are drawn from.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What goes against the gradient, and not with it or nowhere.
fn above_zero(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |number| number > 0.0)
}

fn zero_or_more(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 on", |number| number >= 0.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 on, below 1", |number| (0.0..1.0).contains(&number))
}

fn number(text: &str, range: &str, is_in: impl Fn(f64) -> bool) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && is_in(*number));
    number.ok_or_else(|| range.to_owned())
}

fn target_module(name: &str) -> Result<TargetModule, String> {
    let named = TargetModule::ALL.into_iter().find(|module| module.name() == name);
    named.ok_or_else(|| format!("one of {}", TargetModule::ALL.map(TargetModule::name).join(", ")))
}

fn decay(name: &str) -> Result<Decay, String> {
    match name {
        "constant" => Ok(Decay::Constant),
        "linear" => Ok(Decay::Linear),
        "cosine" => Ok(Decay::Cosine),
        _ => Err("one of constant, linear, cosine".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::args::Arguments;

    #[test]
    fn numbers_that_learn_nothing_or_the_reverse_are_refused_with_their_range() {
        let typed = |flag: &str| {
            let fixed = ["umbel", "train", "--model", "m", "--data", "d", "--out", "o", "--local"];
            Arguments::try_parse_from(fixed.into_iter().chain([flag]))
        };
        for (flag, range) in [
            ("--clip=0", "above 0"),
            ("--clip=-1", "above 0"),
            ("--clip=inf", "above 0"),
            ("--learning-rate=-1", "above 0"),
            ("--learning-rate=0", "above 0"),
            ("--learning-rate=nan", "above 0"),
            ("--weight-decay=-5", "from 0 on"),
            ("--weight-decay=nan", "from 0 on"),
            ("--validation=-1", "from 0 on, below 1"),
            ("--validation=nan", "from 0 on, below 1"),
            ("--validation=1", "from 0 on, below 1"),
            ("--validation=2", "from 0 on, below 1"),
        ] {
            let refused = typed(flag).expect_err(flag).to_string();
            assert!(refused.contains(range) && refused.contains(&flag[..6]), "{refused}");
        }
        for flag in [
            "--clip=1e30",
            "--learning-rate=1e-9",
            "--weight-decay=0",
            "--validation=0",
            "--validation=0.99",
        ] {
            assert!(typed(flag).is_ok(), "{flag}");
        }
    }
}
