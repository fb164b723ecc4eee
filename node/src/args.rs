//! What was typed.

mod about;
mod adapter;
mod bench;
mod gateway;
pub mod join;
mod look;
mod place;
mod reach;
mod rest;
mod sampling;
pub mod train;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use umbel_client::Sampling;
use umbel_engine::Arithmetic;
use umbel_net::{Multiaddr, parse_address};
use umbel_protocol::{DType, Span};

use crate::device::DeviceWish;

use place::host_port;

pub use about::{CompletionsArguments, ManArguments};
pub use adapter::{AdapterArguments, AdapterCommand, PublishArguments};
pub use bench::{BenchArguments, RandomShape};
pub use gateway::{FrontArguments, GatewayArguments};
pub use join::{SwarmArguments, SwarmCommand};
pub use look::{DoctorArguments, InspectArguments, PauseArguments, StatusArguments};
pub use reach::{ReachArguments, ReachWish};
pub use rest::RestArguments;
pub use umbel_net::Join;

/// The model of every command that names none.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// Runs language models that no single machine can hold, on a swarm of machines.
#[derive(Debug, Parser)]
#[command(name = "umbel", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as umbel=debug.
    #[arg(long, global = true, value_name = "FILTER", env = "UMBEL_LOG")]
    pub log: Option<String>,

    /// How to log: text for people, or JSON, one object a line.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        env = "UMBEL_LOG_FORMAT"
    )]
    pub log_format: LogFormat,

    /// A TOML file that says what is not typed and not in the environment: what flags of all commands
    /// say at its top, as `log = "debug"`, what those of one command say in a table of its name.
    #[arg(long, global = true, value_name = "FILE", env = "UMBEL_CONFIG")]
    pub config: Option<PathBuf>,

    /// Print what would be done as such a file, and where each setting comes from, instead.
    #[arg(long, global = true)]
    pub print_config: bool,

    /// Where downloaded models are kept [default: the user's cache folder].
    #[arg(long, global = true, value_name = "DIR", env = "UMBEL_CACHE")]
    pub cache_dir: Option<PathBuf>,

    /// Threads that compute [default: one for each processor core].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// The processor's instructions that compute: portable, avx2, avx2-vnni, avx512 or amx, or on
    /// ARM portable, neon or neon-sdot [default: the best that this machine has].
    #[arg(long, global = true, value_name = "SET")]
    pub instructions: Option<String>,

    /// How activations are multiplied with quantized weights that are here: usual rounds them to 8
    /// bits, and to 16 where a few are very large; careful rounds all to 16 and takes longer for long
    /// prompts; exact rounds nothing, also not beside bfloat16, and is slow. Processors only.
    #[arg(long, global = true, value_name = "HOW", default_value_t, value_parser = arithmetic)]
    pub arithmetic: Arithmetic,
}

const EXAMPLES: &str = "\
Examples:
  umbel demo --prompt 'What is gravity?'        a swarm of three servers on this machine answers
  umbel serve --block-count 10                  serve ten blocks of the default model
  umbel serve --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...
  umbel chat --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...
  umbel generate --local --prompt 'The capital of France is' --max-tokens 20";

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a small swarm on this machine and chat with it.
    Demo(DemoArguments),
    /// Serve blocks of a model to a swarm.
    Serve(Box<ServeArguments>),
    /// Let servers on this machine stop for a while: clients go elsewhere, the blocks stay in memory.
    Pause(PauseArguments),
    /// Let servers that pause go on.
    Resume(PauseArguments),
    /// Chat with a model.
    Chat(ChatArguments),
    /// Continue a text.
    Generate(GenerateArguments),
    /// Teach a model: learn an adapter from texts.
    Train(Box<train::TrainArguments>),
    /// Provide what was learned to others.
    Adapter(AdapterArguments),
    /// Answer requests of OpenAI's interface over HTTP.
    Gateway(GatewayArguments),
    /// Show a model: configuration, blocks, sizes, id.
    Inspect(InspectArguments),
    /// Show which peers serve which blocks.
    Status(StatusArguments),
    /// Find out what is wrong here, and what to do about it.
    Doctor(DoctorArguments),
    /// Measure decode and prefill speed, in one process and over swarms on this machine.
    Bench(BenchArguments),
    /// Make a private swarm, and invite others to it.
    Swarm(SwarmArguments),
    /// Print what completes the words of this program in a shell.
    Completions(CompletionsArguments),
    /// Print the manual page, or write one for each command.
    Man(ManArguments),
}

/// Which model.
#[derive(Debug, Clone, Args)]
pub struct ModelArguments {
    /// A name from the catalogue (smollm2-135m), hf:OWNER/NAME[@REVISION], a folder with
    /// config.json and safetensors, or a .gguf file, one of its parts where there are several.
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// The same as MODEL.
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "model", value_hint = ValueHint::AnyPath)]
    model_option: Option<String>,
}

impl ModelArguments {
    /// The model that was named, or the default one.
    #[must_use]
    pub fn name(&self) -> &str {
        self.model.as_deref().or(self.model_option.as_deref()).unwrap_or(DEFAULT_MODEL)
    }

    /// The arguments that name this model.
    #[must_use]
    pub fn named(model: &str) -> Self {
        Self { model: Some(model.to_owned()), model_option: None }
    }
}

/// Where the model is computed.
#[derive(Debug, Clone, Args)]
pub struct ChainArguments {
    /// Address of any peer of the swarm, as its `ready` line prints it, or an invite; may be given
    /// several times.
    #[arg(long, value_name = "ADDR")]
    pub join: Vec<Join>,

    /// Compute everything in this process, without a network.
    #[arg(long, conflicts_with = "join")]
    pub local: bool,

    /// Look for servers on the local network by mDNS if no address is given.
    #[arg(long, conflicts_with_all = ["join", "local"])]
    pub mdns: bool,

    /// Have a spare compute along for each server of the route, where there is one, so that a
    /// failure costs no replay. It doubles what the swarm computes.
    #[arg(long, conflicts_with = "local")]
    pub standby: bool,

    /// Let the servers at the ends of the route embed tokens and draw them: each token crosses a link
    /// once, and this side needs no weights. The text is the same, if the last server is honest.
    /// There are no drafts then.
    #[arg(long, conflicts_with_all = ["local", "standby"])]
    pub thin: bool,

    /// Seconds to wait for a server of blocks that nobody serves, before and during an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, conflicts_with = "local", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub patience: u32,

    /// How hidden states are written on the links: f32 gives the numbers of a single process; bf16,
    /// f16 and q8 take a half or a quarter of a slow link and change them a little.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = wire_type)]
    pub wire: DType,

    /// How keys and values are kept: f32 as they are computed; bf16 and f16 take half the memory of
    /// the servers, q8 a quarter, and change the numbers a little.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = wire_type)]
    pub kv: DType,

    /// Take over nothing that servers have kept of earlier sessions, and leave them nothing.
    #[arg(long, conflicts_with = "local")]
    pub no_share: bool,
}

fn arithmetic(name: &str) -> Result<Arithmetic, String> {
    let named = Arithmetic::ALL.into_iter().find(|arithmetic| arithmetic.to_string() == name);
    named.ok_or_else(|| format!("one of {}", Arithmetic::ALL.map(|of| of.to_string()).join(", ")))
}

fn wire_type(name: &str) -> Result<DType, String> {
    let named = DType::ALL.into_iter().find(|dtype| dtype.to_string() == name);
    named.ok_or_else(|| format!("one of {}", DType::ALL.map(|dtype| dtype.to_string()).join(", ")))
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
pub struct SamplingArguments {
    /// 0 takes the likeliest token; higher is more varied [default: 0.2 of `umbel chat` and `umbel demo`,
    /// 0 of `umbel generate`].
    #[arg(long, value_name = "T", value_parser = sampling::temperature)]
    pub temperature: Option<f32>,

    /// Choose among the K likeliest tokens [default: all].
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Choose among the likeliest tokens that together have probability P [default: 0.9 of `umbel chat` and
    /// `umbel demo`, 1 of `umbel generate`, which is all].
    #[arg(long, value_name = "P", value_parser = sampling::top_p)]
    pub top_p: Option<f32>,

    /// Choose among tokens at least P times as likely as the likeliest [default: 0, which is all].
    #[arg(long, value_name = "P", value_parser = sampling::min_p)]
    pub min_p: Option<f32>,

    /// Make tokens that have occurred less likely; 1 changes nothing [default: 1].
    #[arg(long, value_name = "R", value_parser = sampling::repetition_penalty)]
    pub repetition_penalty: Option<f32>,

    /// The same seed gives the same text [default: drawn at random].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingArguments {
    /// What was typed over `defaults`.
    #[must_use]
    pub fn over(&self, defaults: Sampling, drawn_seed: u64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.unwrap_or(drawn_seed),
        }
    }
}

/// How tokens are guessed, so that one trip round the chain gives several.
#[derive(Debug, Clone, Args)]
pub struct SpeculateArguments {
    /// Guess tokens, so that one trip gives several; the text stays the same: auto (from the text
    /// so far, where it pays), off, prompt (from the text so far, always), or a small model with
    /// the same vocabulary, which is computed here.
    #[arg(long, value_name = "auto|off|prompt|MODEL", default_value = "auto")]
    pub speculate: String,
}

/// `umbel demo`.
#[derive(Debug, Args)]
#[command(
    mut_args(gateway::of_gateway),
    after_help = "Examples:\n  umbel demo\n  umbel demo --prompt 'What is gravity?' --servers 2"
)]
pub struct DemoArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Answer this and exit.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Answer OpenAI's interface and serve the page over HTTP, until Ctrl-C, in place of the chat.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, conflicts_with = "prompt")]
    pub gateway: Option<SocketAddr>,

    /// How many servers share the blocks.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub servers: u32,

    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,

    /// How the next token is chosen.
    #[command(flatten)]
    pub sampling: SamplingArguments,

    /// Who may ask the gateway, and how many at once.
    #[command(flatten, next_help_heading = "With --gateway")]
    pub front: FrontArguments,
}

/// `umbel serve`.
#[derive(Debug, Args)]
#[command(
    mut_args(gateway::of_gateway),
    after_help = "\
Examples:
  umbel serve                                    as many blocks as fit into memory
  umbel serve --blocks 0..10 --listen /ip4/127.0.0.1/udp/0/quic-v1
  umbel serve ./my-model --block-count 8 --join /ip4/10.0.0.7/tcp/4001/p2p/12D3Koo...
  umbel serve --listen /ip4/0.0.0.0/udp/4001/quic-v1 --announce /ip4/203.0.113.7/udp/4001/quic-v1

Once it serves, it prints one line to stdout: ready MULTIADDR
Give that address to others as --join. Ctrl-C or SIGTERM stops it."
)]
pub struct ServeArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Address of any peer of the swarm, or an invite; may be given several times. This server's own is
    /// passed over, and where nobody answers yet it begins alone and goes on trying.
    #[arg(long, value_name = "ADDR")]
    pub join: Vec<Join>,

    /// The key of a private swarm, which has members alone and speaks TCP alone; who comes by an invite
    /// needs none.
    #[arg(long, value_name = "FILE")]
    pub swarm: Option<PathBuf>,

    /// Which blocks, START..END; by default as many as fit, where the swarm is thinnest.
    #[arg(long, value_name = "A..B", conflicts_with = "block_count")]
    pub blocks: Option<Span>,

    /// How many blocks, where the swarm is thinnest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub block_count: Option<u32>,

    /// Where to listen; may be given several times [default: every interface over IPv4, QUIC and TCP,
    /// free ports].
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Vec<Multiaddr>,

    /// Address at which others reach this server, where that is not one it listens on: behind a
    /// port that is forwarded, say. They are told these alone; may be given several times.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub announce: Vec<Multiaddr>,

    /// The key by which this peer is known, made if it is missing [default: in the user's data
    /// folder].
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,

    /// Tokens of KV cache for all sessions together [default: what fits beside the weights, at
    /// most four full contexts and at most 32768 tokens].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub kv_tokens: Option<u32>,

    /// Where to compute: auto (the first GPU if one can be used, else the processor), cpu, cuda, cuda:1
    /// and so on for further GPUs, or all: every GPU, with a server process of its own that takes other
    /// blocks and the ports behind those that are named.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceWish,

    /// Memory for weights, keys and values, also while the server moves to other blocks; more is
    /// refused [default: 80% of what is free].
    #[arg(long, value_name = "BYTES")]
    pub memory_bytes: Option<u64>,

    /// Stay with the blocks that were chosen at the start, also where others are needed more; with
    /// --blocks a server always does.
    #[arg(long)]
    pub no_rebalance: bool,

    /// Mean seconds between two looks at whether other blocks are needed more.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub rebalance_interval: u32,

    /// Seconds that clients have to move to other servers when this one is told to stop; a second
    /// Ctrl-C stops it at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub drain_timeout: u32,

    /// Keep nothing of what sessions have read for later ones of the same client.
    #[arg(long)]
    pub no_share: bool,

    /// Hold blocks alone, also the first or the last one: without the embedding and the head, which
    /// clients with --thin need there.
    #[arg(long)]
    pub no_ends: bool,

    /// Do not look for peers on the local network.
    #[arg(long)]
    pub no_mdns: bool,

    /// Have links to processes of this machine take the way of the network too, not that of a Unix socket.
    #[arg(long)]
    pub no_local_links: bool,

    /// Answer OpenAI's interface over HTTP as well, as `umbel gateway` does, and print where in a line
    /// that begins with `gateway`.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub gateway: Option<SocketAddr>,

    /// Where Prometheus finds what is counted, at /metrics.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub metrics: Option<SocketAddr>,

    /// Stop when stdin closes, so that a server does not outlive the program that started it.
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,

    /// Address of another server on this machine, which is joined beside what --join says.
    #[arg(long, hide = true, value_name = "ADDR", value_parser = parse_address)]
    pub beside: Vec<Multiaddr>,

    /// How others reach this server, and whom it helps.
    #[command(flatten, next_help_heading = "Behind routers")]
    pub reach: ReachArguments,

    /// What of the machine is left to its host.
    #[command(flatten, next_help_heading = "Limits")]
    pub rest: RestArguments,

    /// Who may ask the gateway, and how many at once.
    #[command(flatten, next_help_heading = "With --gateway")]
    pub front: FrontArguments,
}

/// `umbel chat`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  umbel chat --local\n  umbel chat --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo..."
)]
pub struct ChatArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Where it is computed.
    #[command(flatten)]
    pub chain: ChainArguments,

    /// An adapter's folder, as `umbel train` and PEFT write it, or the id of one that was published.
    #[arg(long, value_name = "DIR|ID")]
    pub adapter: Option<PathBuf>,

    /// How the model is told to behave.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Ask a model that thinks before it answers, as Qwen3, for the answer alone: its chat template is told
    /// that enable_thinking is false.
    #[arg(long)]
    pub no_thinking: bool,

    /// Keep nothing of what is typed for later chats; at a terminal the arrow keys bring it back.
    #[arg(long)]
    pub no_history: bool,

    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,

    /// How the next token is chosen.
    #[command(flatten)]
    pub sampling: SamplingArguments,

    /// Whether tokens are guessed.
    #[command(flatten)]
    pub speculate: SpeculateArguments,
}

/// `umbel generate`.
#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("input").required(true).args(["prompt", "prompt_ids"])),
    after_help = "Examples:\n  umbel generate --local --prompt 'The capital of France is' --max-tokens 20\n  umbel generate --join ADDR --chat --prompt 'What is gravity?' --json"
)]
pub struct GenerateArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Where it is computed.
    #[command(flatten)]
    pub chain: ChainArguments,

    /// The text to continue.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Token ids to continue, for models without a tokenizer.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', num_args = 1)]
    pub prompt_ids: Option<Vec<u32>>,

    /// An adapter's folder, as `umbel train` and PEFT write it, or the id of one that was published.
    #[arg(long, value_name = "DIR|ID")]
    pub adapter: Option<PathBuf>,

    /// Put the prompt into the model's chat template, as what the user says.
    #[arg(long, conflicts_with = "prompt_ids")]
    pub chat: bool,

    /// Most new tokens.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,

    /// How the next token is chosen.
    #[command(flatten)]
    pub sampling: SamplingArguments,

    /// Whether tokens are guessed.
    #[command(flatten)]
    pub speculate: SpeculateArguments,

    /// End where this text comes up; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Go on to the limit, past the model's own end.
    #[arg(long)]
    pub ignore_eos: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,

    /// With --json, show the K largest logits of each step.
    #[arg(long, value_name = "K", requires = "json")]
    pub top_logits: Option<usize>,

    /// Most tokens of the prompt that are computed in one step; over a swarm at most 512.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub prefill_chunk: Option<u32>,
}
