//! What `umbel bench` takes.

use std::path::PathBuf;

use clap::Args;
use umbel_protocol::DType;
use umbel_shard::WeightType;

use super::{ModelArguments, wire_type};

/// The shape of a random model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RandomShape {
    /// That of SmolLM2-135M: 30 blocks of hidden size 576.
    #[value(name = "135m")]
    M135,
    /// 0.85 billion parameters: 16 blocks of hidden size 2048.
    #[value(name = "1b")]
    B1,
    /// That of Llama 3.1 8B: 32 blocks of hidden size 4096.
    #[value(name = "8b")]
    B8,
    /// Of experts: 2.7 billion parameters, of which a token meets 0.5; 16 blocks of hidden size 2048.
    #[value(name = "3b-a0.5b")]
    B3A05,
}

/// `umbel bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  umbel bench\n  umbel bench --servers 1,2,4 --new-tokens 128 --rounds 5\n  \
                  umbel bench --servers 1 --clients 1,8,32 --prompt-tokens 256\n  \
                  umbel bench --servers 1,2 --shared-tokens 1000\n  \
                  umbel bench --random-model 1b --weights q8_0 --llama-bench ./llama-bench"
)]
pub struct BenchArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// A model of this shape with random weights instead, made on the first use and kept in the
    /// cache folder: real speed, meaningless tokens.
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "model_option"])]
    pub random_model: Option<RandomShape>,

    /// How the random weights are written: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k
    /// or q6_k.
    #[arg(long, value_name = "TYPE", default_value = "bf16", requires = "random_model")]
    pub weights: WeightType,

    /// Swarms of how many servers are measured beside the single process; 0 for none.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,2,4")]
    pub servers: Vec<u32>,

    /// Measure each swarm a second time, by thin sessions: its last server draws the tokens and feeds the
    /// first one.
    #[arg(long, conflicts_with_all = ["clients", "shared_tokens"])]
    pub thin: bool,

    /// Measure so many clients at once, at a swarm of the first number of servers.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    pub clients: Vec<u32>,

    /// Tokens of a prompt that one more client reads while the others decode; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 2_000, requires = "clients")]
    pub reader_tokens: u32,

    /// Measure llama.cpp as well, in turn, on the same GGUF file with as many threads: the path of
    /// its program llama-bench.
    #[arg(long, value_name = "PATH", conflicts_with = "clients")]
    pub llama_bench: Option<PathBuf>,

    /// The same for many clients: the path of llama-batched-bench.
    #[arg(long, value_name = "PATH", requires = "clients")]
    pub llama_batched_bench: Option<PathBuf>,

    /// Measure, instead, how long the first token takes of a request that begins with so many tokens
    /// of an earlier one.
    #[arg(long, value_name = "N", conflicts_with_all = ["clients", "llama_bench"], value_parser = clap::value_parser!(u32).range(1..))]
    pub shared_tokens: Option<u32>,

    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prompt_tokens: u32,

    /// Tokens that are decoded after it.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub new_tokens: u32,

    /// How often each is measured, in turn; medians are printed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// How hidden states are written on the links: f32, f16, bf16 or q8.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = wire_type)]
    pub wire: DType,

    /// How keys and values are kept: f32, f16, bf16 or q8.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = wire_type)]
    pub kv: DType,

    /// Have the links of swarms take the way of the network, as between machines, not that of Unix sockets.
    #[arg(long)]
    pub no_local_links: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
