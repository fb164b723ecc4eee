//! How others reach a server, and whom it helps to be reached.

use clap::{Args, ValueEnum};
use umbel_net::{Multiaddr, Reach, parse_address, relayed_by};

/// Reaching, and being reached.
#[derive(Debug, Clone, Args)]
pub struct ReachArguments {
    /// How others reach this server: auto (where it listens; by relays too once peers that have tried do not
    /// come in), direct (where it listens and nowhere else), or relayed (by relays alone). With --announce
    /// the server is reached there.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub reach: ReachWish,

    /// Whole address, with /p2p/ and its name, of a server that runs with --relay, to be asked before those
    /// that are found; may be given several times. A server takes places at two.
    #[arg(long, value_name = "ADDR", value_parser = relay)]
    pub relayed_by: Vec<Multiaddr>,

    /// Pass on what others say to servers and trainers that cannot be reached: 256 pairs at once, and 2 GiB
    /// for each before it asks anew.
    #[arg(long)]
    pub relay: bool,
}

/// How others are to reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReachWish {
    /// Where it listens, and by relays where nobody comes in.
    Auto,
    /// Where it listens.
    Direct,
    /// By relays.
    Relayed,
}

impl From<ReachWish> for Reach {
    fn from(wish: ReachWish) -> Self {
        match wish {
            ReachWish::Auto => Self::Auto,
            ReachWish::Direct => Self::Direct,
            ReachWish::Relayed => Self::Relayed,
        }
    }
}

/// Where a relay gives places, from its own address.
fn relay(text: &str) -> Result<Multiaddr, String> {
    let address = parse_address(text).map_err(|error| error.to_string())?;
    relayed_by(&address).ok_or_else(|| {
        "a server's whole address, with /p2p/ and its name, as its `ready` line prints it"
            .to_owned()
    })
}
