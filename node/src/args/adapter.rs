//! What is done with adapters.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use umbel_net::{Join, Multiaddr, parse_address};

/// `umbel adapter`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel adapter publish --join ADDR chats
  umbel adapter publish --join ADDR --leave chats
  umbel generate --join ADDR --adapter ID --chat --prompt 'What is a bridge?'")]
pub struct AdapterArguments {
    /// What to do.
    #[command(subcommand)]
    pub what: AdapterCommand,
}

/// What can be done with adapters.
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Provide an adapter to the swarm until this is stopped: print its id, by which others fetch it, and
    /// "ready ADDR" once it can be had.
    Publish(PublishArguments),
}

/// What is published, and where.
#[derive(Debug, Args)]
pub struct PublishArguments {
    /// The adapter's folder, as `umbel train` and PEFT write it.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// Address of a peer of the swarm, as its `ready` line prints it, or an invite; may be given several
    /// times.
    #[arg(long, value_name = "ADDR", required = true)]
    pub join: Vec<Join>,

    /// Leave the adapter with servers that keep some for others (`umbel serve --keep-adapters`), say which do,
    /// and end.
    #[arg(long, conflicts_with = "listen")]
    pub leave: bool,

    /// The key by which servers know who left an adapter, made if it is missing: what is left with one key has
    /// a share of a server's room [default: in the user's data folder].
    #[arg(long, value_name = "FILE", requires = "leave")]
    pub identity: Option<PathBuf>,

    /// Where to listen for those who fetch it; may be given several times [default: every interface, QUIC
    /// and TCP, free ports].
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Vec<Multiaddr>,
}
