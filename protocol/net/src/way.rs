//! How to come into a swarm: by the address of a peer, or by an invite.

use std::net::SocketAddr;
use std::str::FromStr;

use libp2p::Multiaddr;

use crate::invite::{INVITE_PREFIX, InvalidInvite, Invite};
use crate::swarm_key::SwarmKey;

/// What a person names to come into a swarm.
#[derive(Debug, Clone)]
pub enum Join {
    /// The address of a peer.
    Address(Multiaddr),
    /// An invite to a private swarm.
    Invite(Box<Invite>),
}

impl FromStr for Join {
    type Err = InvalidJoin;

    fn from_str(text: &str) -> Result<Self, InvalidJoin> {
        if text.trim_start().starts_with(INVITE_PREFIX) {
            return Ok(Self::Invite(Box::new(text.parse()?)));
        }
        Ok(Self::Address(parse_address(text)?))
    }
}

/// A text that names no way into a swarm.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJoin {
    /// It begins as an invite, and is none.
    #[error(transparent)]
    Invite(#[from] InvalidInvite),
    /// It is no address either.
    #[error("no address and no invite: {0}")]
    Address(#[from] InvalidAddress),
}

/// Reads an address as a person types it.
///
/// # Errors
/// [`InvalidAddress`], with what was probably meant where the text is HOST:PORT.
pub fn parse_address(text: &str) -> Result<Multiaddr, InvalidAddress> {
    let text = text.trim();
    text.parse().map_err(|source| InvalidAddress { meant: meant(text), source })
}

/// A text that is no address of a peer.
#[derive(Debug, thiserror::Error)]
#[error("an address is written as {} ({source})", .meant.as_deref().unwrap_or(EXAMPLE))]
pub struct InvalidAddress {
    /// What was probably meant.
    meant: Option<String>,
    source: libp2p::multiaddr::Error,
}

/// What an address may look like.
const EXAMPLE: &str = "/ip4/10.0.0.7/tcp/4001";

/// The address over TCP, which every kind of swarm has, of what was written as others write sockets.
fn meant(text: &str) -> Option<String> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        let version = if socket.is_ipv4() { "ip4" } else { "ip6" };
        return Some(format!("/{version}/{}/tcp/{}", socket.ip(), socket.port()));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || "-.".contains(c));
    is_name.then(|| format!("/dns/{host}/tcp/{port}"))
}

/// Where peers are, and what they want to know.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Addresses, any one of which is enough.
    pub addresses: Vec<Multiaddr>,
    /// The secret of a private swarm.
    pub swarm_key: Option<SwarmKey>,
}

impl Way {
    /// What all that was named says together, with a secret that was named apart.
    ///
    /// # Errors
    /// Where it speaks of more than one private swarm.
    pub fn new(join: &[Join], swarm_key: Option<SwarmKey>) -> Result<Self, DifferentSwarms> {
        let mut way = Self { addresses: Vec::new(), swarm_key };
        for join in join {
            match join {
                Join::Address(address) => way.addresses.push(address.clone()),
                Join::Invite(invite) => {
                    way.addresses.extend(invite.addresses.iter().cloned());
                    let known = way.swarm_key.get_or_insert_with(|| invite.key.clone());
                    if *known != invite.key {
                        return Err(DifferentSwarms);
                    }
                }
            }
        }
        Ok(way)
    }
}

/// Invites to more than one swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the invites are to different swarms: a peer is in one")]
pub struct DifferentSwarms;

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
        let plain = Way::new(std::slice::from_ref(&address), None).unwrap();
        assert_eq!((plain.addresses.len(), plain.swarm_key), (1, None));
        let both = Way::new(&[address, ours.clone()], None).unwrap();
        assert_eq!((both.addresses.len(), both.swarm_key.is_some()), (2, true));
        assert!(Way::new(&[ours.clone(), others], None).is_err());
        let key = SwarmKey::create(&folder.path().join("third")).unwrap();
        assert!(Way::new(&[ours], Some(key)).is_err());
    }

    #[test]
    fn what_is_neither_says_why() {
        let error = |text: &str| text.parse::<Join>().unwrap_err().to_string();
        assert!(error("nonsense").contains("no address and no invite"));
        assert!(error("umbel1abc").contains("cut or mistyped"));
    }

    #[test]
    fn who_types_a_host_and_a_port_is_told_what_they_are_as_an_address() {
        let error = |text: &str| parse_address(text).unwrap_err().to_string();
        for (typed, meant) in [
            ("10.0.0.8:4002", "/ip4/10.0.0.8/tcp/4002"),
            ("[::1]:4002", "/ip6/::1/tcp/4002"),
            ("peer.example.org:4002", "/dns/peer.example.org/tcp/4002"),
        ] {
            assert!(error(typed).contains(meant), "{}", error(typed));
            assert!(meant.parse::<Multiaddr>().is_ok(), "{meant}");
        }
        assert!(error("nonsense").contains(EXAMPLE));
        assert_eq!(parse_address(" /ip4/10.0.0.8/tcp/4002 ").unwrap().iter().count(), 2);
    }
}
