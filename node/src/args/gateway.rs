//! What `umbel gateway` takes.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::place::host_port;
use super::{ChainArguments, ModelArguments, SpeculateArguments};

/// `umbel gateway`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel gateway --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...
  umbel gateway --local --listen 127.0.0.1:0

Once it answers, it prints one line to stdout: ready http://ADDRESS
Clients of OpenAI's interface take http://ADDRESS/v1 as their base URL. Ctrl-C stops it.")]
pub struct GatewayArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Where it is computed.
    #[command(flatten)]
    pub chain: ChainArguments,

    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Who may ask, and how many at once.
    #[command(flatten)]
    pub front: FrontArguments,

    /// Where Prometheus finds what is counted, at /metrics.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub metrics: Option<SocketAddr>,

    /// Learn adapters for those who ask, by /v1/files and /v1/fine_tuning/jobs, and keep them and what
    /// they are learned from in this folder.
    #[arg(long, value_name = "DIR")]
    pub fine_tuning: Option<PathBuf>,

    /// Whether tokens are guessed.
    #[command(flatten)]
    pub speculate: SpeculateArguments,
}

/// Who may ask a gateway, and how many at once.
#[derive(Debug, Args)]
pub struct FrontArguments {
    /// Who may ask, and how much: a TOML file with a table `key` for each, which has a name, a key, and
    /// if need be requests_per_minute and tokens_per_minute.
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,

    /// Listen without keys where others can reach it, or on loopback behind a proxy: everybody who does may
    /// ask, by whatever name.
    #[arg(long, conflicts_with = "keys")]
    pub allow_anyone: bool,

    /// Answers at once; further requests wait for their turn.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub answers: u16,

    /// Requests that wait for their turn; further ones are told to come back later (429).
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub waiting: u16,
}
