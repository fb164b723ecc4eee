//! What the commands take that look at something (a model, the swarm, this machine), or tell servers
//! on it something.

use std::path::PathBuf;

use clap::Args;
use umbel_net::{Multiaddr, parse_address};

use super::{Join, ModelArguments};

/// `umbel inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  umbel inspect\n  umbel inspect ./my-model --json")]
pub struct InspectArguments {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `umbel status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel status --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...
  umbel status --watch --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...")]
pub struct StatusArguments {
    /// Address of any peer of the swarm, or an invite; may be given several times.
    #[arg(long, value_name = "ADDR", required = true)]
    pub join: Vec<Join>,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,

    /// Go on, and show what changes: a view on a terminal, a table after each interval elsewhere.
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,

    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, requires = "watch", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub interval: u32,
}

/// `umbel doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel doctor
  umbel doctor --join /ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3Koo...
  umbel doctor ./my-model --listen /ip4/0.0.0.0/udp/4001/quic-v1

The exit status is a failure where something does not work; notes alone are none.")]
pub struct DoctorArguments {
    /// Which model is to be served.
    #[command(flatten)]
    pub model: ModelArguments,

    /// Address of any peer of the swarm, or an invite; may be given several times. Peers are asked to dial back.
    #[arg(long, value_name = "ADDR")]
    pub join: Vec<Join>,

    /// Where a server is to listen; may be given several times [default: free ports].
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Vec<Multiaddr>,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `umbel pause` and `umbel resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel pause                                    all servers of this user on this machine
  umbel resume --identity server.pem             the server that was started with this identity")]
pub struct PauseArguments {
    /// The identity of one server [default: all that have one in the user's data folder].
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}
