//! A line that brings a peer into a private swarm: its secret, and addresses of members.
//!
//! `umbel1` and base58 of the secret, of each address a length of two bytes and its bytes, and of
//! four bytes of a SHA-256 over all that, so that a line that was cut or mistyped is found out.

use std::fmt;
use std::str::FromStr;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use sha2::{Digest as _, Sha256};

use crate::swarm_key::{KEY_BYTES, SwarmKey};

/// How the line begins.
pub const INVITE_PREFIX: &str = "umbel1";

/// Bytes of the sum at its end.
const SUM_BYTES: usize = 4;

/// Most addresses: any one is enough.
const ADDRESSES_MAX: usize = 16;

/// Longest line: base58, which takes a time that grows with the square, of the longest content.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// Membership of a private swarm, and where its members are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// The secret.
    pub key: SwarmKey,
    /// Addresses of members; 16 at most are written.
    pub addresses: Vec<Multiaddr>,
}

impl Invite {
    /// An invite that leads somewhere.
    ///
    /// # Errors
    /// Where one of the addresses leads nowhere, or there are more than fit.
    pub fn new(key: SwarmKey, addresses: Vec<Multiaddr>) -> Result<Self, NoWayIn> {
        if addresses.len() > ADDRESSES_MAX {
            return Err(NoWayIn::TooMany { found: addresses.len(), max: ADDRESSES_MAX });
        }
        for address in &addresses {
            check_way(address)?;
        }
        Ok(Self { key, addresses })
    }
}

/// Whether somebody could dial this address. A relay's comes first where it leads over one.
fn check_way(address: &Multiaddr) -> Result<(), NoWayIn> {
    let is_host = |part: &Protocol<'_>| {
        matches!(
            part,
            Protocol::Ip4(_)
                | Protocol::Ip6(_)
                | Protocol::Dns(_)
                | Protocol::Dns4(_)
                | Protocol::Dns6(_)
        )
    };
    let mut parts = address.iter().skip_while(|part| matches!(part, Protocol::Ip6zone(_)));
    let address = address.clone();
    match (parts.next().filter(is_host), parts.next()) {
        (None, _) => Err(NoWayIn::NoHost { address }),
        (Some(Protocol::Ip4(ip)), _) if ip.is_unspecified() => Err(NoWayIn::AnyHost { address }),
        (Some(Protocol::Ip6(ip)), _) if ip.is_unspecified() => Err(NoWayIn::AnyHost { address }),
        (Some(_), Some(Protocol::Tcp(0))) => Err(NoWayIn::AnyPort { address }),
        (Some(_), Some(Protocol::Tcp(_))) => Ok(()),
        (Some(_), _) => Err(NoWayIn::NotTcp { address }),
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.key.as_bytes().to_vec();
        for address in self.addresses.iter().take(ADDRESSES_MAX) {
            let address = address.to_vec();
            let Ok(length) = u16::try_from(address.len()) else { continue };
            bytes.extend(length.to_be_bytes());
            bytes.extend(address);
        }
        bytes.extend(sum(&bytes));
        write!(f, "{INVITE_PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

impl FromStr for Invite {
    type Err = InvalidInvite;

    fn from_str(text: &str) -> Result<Self, InvalidInvite> {
        let text = text.trim().strip_prefix(INVITE_PREFIX).ok_or(InvalidInvite::Prefix)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvalidInvite::Damaged);
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| InvalidInvite::Damaged)?;
        let (content, end) = bytes.split_last_chunk::<SUM_BYTES>().ok_or(InvalidInvite::Damaged)?;
        if *end != sum(content) {
            return Err(InvalidInvite::Damaged);
        }
        let (key, mut rest) =
            content.split_first_chunk::<KEY_BYTES>().ok_or(InvalidInvite::Content)?;
        let mut addresses = Vec::new();
        while let Some((length, more)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let (address, more) = more.split_at_checked(length).ok_or(InvalidInvite::Content)?;
            if addresses.len() == ADDRESSES_MAX {
                return Err(InvalidInvite::Content);
            }
            addresses.push(address.to_vec().try_into().map_err(|_| InvalidInvite::Content)?);
            rest = more;
        }
        if !rest.is_empty() || addresses.is_empty() {
            return Err(InvalidInvite::Content);
        }
        Ok(Self { key: SwarmKey::from_bytes(*key), addresses })
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    let digest = Sha256::digest(bytes);
    let (sum, _) = digest.as_slice().split_first_chunk().expect("a digest has 32 bytes");
    *sum
}

/// Addresses by which nobody comes in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWayIn {
    /// Nothing says on which machine it is.
    #[error("{address} names no machine: an address of a member begins with /ip4/, /ip6/ or /dns/")]
    NoHost {
        /// The address.
        address: Multiaddr,
    },
    /// It is where a server listens on all of its interfaces, and stands for none of them.
    #[error("{address} stands for any machine: name an address at which others reach the member")]
    AnyHost {
        /// The address.
        address: Multiaddr,
    },
    /// It is where a server asks its system for a port.
    #[error("{address} stands for any port: name the one that the member's `ready` line prints")]
    AnyPort {
        /// The address.
        address: Multiaddr,
    },
    /// A private swarm has no other transport.
    #[error("{address}: the peers of a private swarm speak TCP alone")]
    NotTcp {
        /// The address.
        address: Multiaddr,
    },
    /// Some would be left out.
    #[error("an invite has room for {max} addresses, and {found} were given: any one is enough")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
}

/// A text that is no invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInvite {
    /// It begins otherwise.
    #[error("an invite begins with {INVITE_PREFIX}")]
    Prefix,
    /// A part of it is gone, or was changed.
    #[error("the invite was cut or mistyped: copy it once more, as a whole")]
    Damaged,
    /// It is whole, and says nothing that can be used.
    #[error("the invite holds no secret and address that this version could use")]
    Content,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite(addresses: &[&str]) -> Invite {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Invite { key: SwarmKey::from_bytes([7; KEY_BYTES]), addresses }
    }

    #[test]
    fn an_invite_says_the_same_when_it_is_read() {
        let invite = invite(&["/ip4/10.0.0.7/tcp/4001", "/dns/example.org/tcp/1"]);
        let text = invite.to_string();
        assert!(text.starts_with("umbel1") && text.len() < 150, "{text}");
        assert_eq!(text.parse(), Ok(invite));
        assert_eq!(
            format!(" {text}\n").parse::<Invite>().map(|invite| invite.to_string()),
            Ok(text)
        );
    }

    #[test]
    fn an_invite_that_was_cut_or_changed_is_refused() {
        let text = invite(&["/ip4/10.0.0.7/tcp/4001"]).to_string();
        for end in 0..text.len() {
            assert!(text[..end].parse::<Invite>().is_err(), "{end}");
        }
        for at in INVITE_PREFIX.len()..text.len() {
            let other = if text.as_bytes()[at] == b'z' { "y" } else { "z" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(changed.parse::<Invite>(), Err(InvalidInvite::Damaged), "{at}");
        }
        assert_eq!("/ip4/10.0.0.7/tcp/1".parse::<Invite>(), Err(InvalidInvite::Prefix));
        let long = format!("{INVITE_PREFIX}{}", "2".repeat(TEXT_BYTES_MAX + 1));
        assert_eq!(long.parse::<Invite>(), Err(InvalidInvite::Damaged));
    }

    #[test]
    fn an_address_by_which_nobody_comes_in_is_refused() {
        let new = |addresses: &[&str]| {
            let Invite { key, addresses } = invite(addresses);
            Invite::new(key, addresses)
        };
        for good in [
            "/ip4/10.0.0.7/tcp/4001",
            "/ip6zone/eth0/ip6/fe80::1/tcp/4001",
            "/dns/example.org/tcp/1",
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWH3uVF6wv47WnArKHk5p6cvgCJEb74UTmxztmQDc298L3/p2p-circuit",
        ] {
            assert_eq!(new(&[good]), Ok(invite(&[good])));
        }
        for (wrong, said) in [
            ("/ip4/0.0.0.0/tcp/4001", "any machine"),
            ("/ip6/::/tcp/4001", "any machine"),
            ("/tcp/4001", "no machine"),
            ("/ip4/10.0.0.7/tcp/0", "any port"),
            ("/ip4/10.0.0.7/udp/4001/quic-v1", "TCP alone"),
            ("/ip4/10.0.0.7", "TCP alone"),
        ] {
            let error = new(&["/ip4/10.0.0.7/tcp/4001", wrong]).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(wrong), "{wrong}: {error}");
        }
        let many = ["/ip4/10.0.0.7/tcp/4001"; ADDRESSES_MAX + 1];
        assert!(new(&many[1..]).is_ok());
        assert_eq!(new(&many), Err(NoWayIn::TooMany { found: 17, max: 16 }));
    }

    #[test]
    fn an_invite_without_addresses_leads_nowhere() {
        assert_eq!(invite(&[]).to_string().parse::<Invite>(), Err(InvalidInvite::Content));
    }
}
