//! How to come into a swarm: by the address of a peer, or by an invite.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use umbel_net::{INVITE_PREFIX, Invite, Multiaddr, SwarmKey};

/// What `--join` takes.
#[derive(Debug, Clone)]
pub enum Join {
    /// The address of a peer.
    Address(Multiaddr),
    /// An invite to a private swarm.
    Invite(Box<Invite>),
}

impl FromStr for Join {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with(INVITE_PREFIX) {
            let invite = text.parse::<Invite>();
            return invite.map(|invite| Self::Invite(Box::new(invite))).map_err(|e| e.to_string());
        }
        text.parse()
            .map(Self::Address)
            .map_err(|error| format!("no address and no invite: {error}"))
    }
}

/// Where peers are, and what they want to know.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Addresses, any one of which is enough.
    pub addresses: Vec<Multiaddr>,
    /// The secret of a private swarm.
    pub swarm_key: Option<SwarmKey>,
}

/// What all that was named says together, with a secret that was named apart.
///
/// # Errors
/// Where it speaks of more than one private swarm.
pub fn way(join: &[Join], swarm_key: Option<SwarmKey>) -> anyhow::Result<Way> {
    let mut way = Way { addresses: Vec::new(), swarm_key };
    for join in join {
        match join {
            Join::Address(address) => way.addresses.push(address.clone()),
            Join::Invite(invite) => {
                way.addresses.extend(invite.addresses.iter().cloned());
                let known = way.swarm_key.get_or_insert_with(|| invite.key.clone());
                if *known != invite.key {
                    anyhow::bail!("the invites are to different swarms: a peer is in one");
                }
            }
        }
    }
    Ok(way)
}

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
        #[arg(value_name = "ADDR", required = true)]
        addresses: Vec<Multiaddr>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite(folder: &tempfile::TempDir, name: &str) -> Join {
        let key = SwarmKey::create(&folder.path().join(name)).unwrap();
        let addresses = vec!["/ip4/10.0.0.7/tcp/4001".parse().unwrap()];
        Invite { key, addresses }.to_string().parse().unwrap()
    }

    #[test]
    fn invites_and_addresses_lead_into_one_swarm() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, others) = (invite(&folder, "ours"), invite(&folder, "others"));
        let address: Join = "/ip4/10.0.0.8/tcp/4001".parse().unwrap();
        let plain = way(std::slice::from_ref(&address), None).unwrap();
        assert_eq!((plain.addresses.len(), plain.swarm_key), (1, None));
        let both = way(&[address, ours.clone()], None).unwrap();
        assert_eq!((both.addresses.len(), both.swarm_key.is_some()), (2, true));
        assert!(way(&[ours.clone(), others], None).is_err());
        let key = SwarmKey::create(&folder.path().join("third")).unwrap();
        assert!(way(&[ours], Some(key)).is_err());
    }

    #[test]
    fn what_is_neither_says_why() {
        let error = |text: &str| text.parse::<Join>().unwrap_err();
        assert!(error("nonsense").contains("no address and no invite"));
        assert!(error("umbel1abc").contains("cut or mistyped"));
    }
}
