//! What is done for private swarms.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use umbel_net::{Multiaddr, parse_address};

/// `umbel swarm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  umbel swarm new ours.key
  umbel serve --swarm ours.key --listen /ip4/0.0.0.0/tcp/4001
  umbel swarm invite ours.key /ip4/10.0.0.7/tcp/4001
  umbel serve --join umbel1...

Whoever has the key or an invite is a member and can invite others; to be rid of one, make a new key.")]
pub struct SwarmArguments {
    /// What to do.
    #[command(subcommand)]
    pub what: SwarmCommand,
}

/// What can be done for a private swarm.
#[derive(Debug, Subcommand)]
pub enum SwarmCommand {
    /// Make the key of a private swarm.
    New {
        /// Where to keep it; the file must not be there yet.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a line by which others come in, with --join.
    Invite {
        /// The key.
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Address of a member, as its `ready` line prints it; one or several.
        #[arg(value_name = "ADDR", required = true, value_parser = parse_address)]
        addresses: Vec<Multiaddr>,
    },
}
