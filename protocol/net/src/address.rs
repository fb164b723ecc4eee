//! Which addresses to tell others, and which to try first.

use std::net::{IpAddr, SocketAddr};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use umbel_protocol::PeerId;

use crate::error::{AddressFailure, StartNetworkError};

/// Most addresses of one peer that are tried or kept: as many as an announcement holds.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// Longest address that is kept, as in an announcement too: one by a relay takes some 100 bytes.
pub(crate) const ADDRESS_BYTES_MAX: usize = 256;

/// Of what others say, the addresses that are kept of one peer.
pub(crate) fn to_keep(addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
    let short = |address: &Multiaddr| address.len() <= ADDRESS_BYTES_MAX;
    addresses.into_iter().filter(short).take(ADDRESSES_MAX).collect()
}

/// QUIC before TCP, what others can reach before what only this machine can, and relays last.
pub(crate) fn preference(address: &Multiaddr) -> (bool, bool, bool) {
    (is_relayed(address), is_loopback(address), !is_quic(address))
}

pub(crate) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::QuicV1)
}

/// What is said of an address that leads to whoever dials it.
pub(crate) const OWN: &str = "this is the peer itself";

/// What is said of an address that leads over neither.
pub(crate) const NOT_DIALABLE: &str = "neither a QUIC nor a TCP address";

/// The addresses that others are to be told, without this peer's name, the best first.
pub(crate) fn to_announce(
    own: libp2p::PeerId,
    addresses: &[Multiaddr],
) -> Result<Vec<Multiaddr>, StartNetworkError> {
    let checked = addresses.iter().take(ADDRESSES_MAX).map(|address| {
        let refused = |reason| StartNetworkError::Announce { address: address.clone(), reason };
        let (bare, named) = split_peer(address.clone());
        match named {
            Some(peer) if peer != own => Err(refused("it names another peer")),
            _ if !is_dialable(&bare) => Err(refused(NOT_DIALABLE)),
            _ if !is_concrete(&bare) => Err(refused("it is the address of no machine")),
            _ => Ok(bare),
        }
    });
    let mut addresses: Vec<_> = checked.collect::<Result<_, _>>()?;
    addresses.sort_by_key(preference);
    Ok(addresses)
}

/// Whether the address leads by a relay.
pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The address of a peer by a relay, without that peer's name; `None` where the relay's is not known, or
/// leads by a relay itself.
pub fn relayed_by(relay: &Multiaddr) -> Option<Multiaddr> {
    let (_, named) = split_peer(relay.clone());
    (named.is_some() && !is_relayed(relay)).then(|| relay.clone().with(Protocol::P2pCircuit))
}

/// The relay by which an address leads.
pub(crate) fn relay_of(address: &Multiaddr) -> Option<libp2p::PeerId> {
    let before = address.iter().take_while(|part| *part != Protocol::P2pCircuit);
    let name = |part| if let Protocol::P2p(peer) = part { Some(peer) } else { None };
    before.filter_map(name).last().filter(|_| is_relayed(address))
}

/// Of more addresses than an announcement holds those that it is to hold: the best, but none by a relay is
/// left out for a socket of one more interface.
pub(crate) fn fitting(addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let (relayed, own): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_relayed);
    let room = ADDRESSES_MAX.saturating_sub(relayed.len());
    own.into_iter().take(room).chain(relayed).collect()
}

/// Whether the address leads over QUIC or plain TCP.
fn is_dialable(address: &Multiaddr) -> bool {
    let last = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).last();
    matches!(last, Some(Protocol::QuicV1 | Protocol::Tcp(_)))
}

/// The socket of a TCP address.
pub(crate) fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let (Some(host), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else {
        return None;
    };
    socket(&host, port)
}

/// The socket of a QUIC address.
pub(crate) fn quic_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let (Some(host), Some(Protocol::Udp(port)), Some(Protocol::QuicV1)) =
        (parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    socket(&host, port)
}

fn socket(host: &Protocol<'_>, port: u16) -> Option<SocketAddr> {
    let ip: IpAddr = if let Protocol::Ip4(ip) = host {
        (*ip).into()
    } else if let Protocol::Ip6(ip) = host {
        (*ip).into()
    } else {
        return None;
    };
    Some(SocketAddr::new(ip, port))
}

pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

/// Whether only machines near by see the address: those behind the same router, or this one alone.
pub(crate) fn is_private(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            // 100.64.0.0/10 is what providers number their customers' routers with (RFC 6598).
            let [first, second, ..] = ip.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || is_shared
        }
        Some(Protocol::Ip6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        _ => false,
    }
}

/// Whether the address is that of one interface, and so leads somewhere.
pub(crate) fn is_concrete(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified(),
        first => first.is_some(),
    }
}

/// The address without the peer at its end, and that peer.
pub(crate) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<libp2p::PeerId>) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

/// The peer that an address names at its end.
pub fn named_peer(address: &Multiaddr) -> Option<PeerId> {
    let (_, named) = split_peer(address.clone());
    PeerId::from_multihash(&named?.to_bytes()).ok()
}

/// The addresses of `peer` among `addresses`, without its name.
pub(crate) fn of_peer(peer: libp2p::PeerId, addresses: &[Multiaddr]) -> Vec<Multiaddr> {
    let of_peer = addresses.iter().cloned().map(split_peer);
    let of_peer = of_peer.filter(|(_, named)| named.is_none_or(|named| named == peer));
    of_peer.map(|(address, _)| address).filter(is_concrete).take(ADDRESSES_MAX).collect()
}

/// What Noise says where the two sides do not begin with the same secret.
const NOT_THE_SAME_SECRET: &str = "decrypt error";

/// A reason that says what to do about it, and whether it lasts.
fn explained(reason: String) -> (String, bool) {
    if reason == NOT_THE_SAME_SECRET {
        let explained = format!(
            "one side is in a private swarm and the other is not in it: come with an invite from there, \
             or its key ({reason})"
        );
        return (explained, true);
    }
    (reason, false)
}

/// Why a dial led nowhere, one entry for each address that was tried.
pub(crate) fn failures(error: &libp2p::swarm::DialError) -> Vec<AddressFailure> {
    use libp2p::core::transport::TransportError;
    use libp2p::swarm::DialError;

    let failure = |address: Option<&Multiaddr>, (reason, lasts)| AddressFailure {
        address: address.cloned(),
        reason,
        lasts,
        is_own: false,
    };
    let one = |address, reason: &str| vec![failure(address, (reason.to_owned(), false))];
    match error {
        DialError::Transport(errors) => errors
            .iter()
            .map(|(address, error)| match error {
                // Resolving names comes first, and calls an address that it hands on in vain
                // another error.
                TransportError::Other(error) if is_dialable(address) => {
                    failure(Some(address), explained(innermost(error)))
                }
                TransportError::MultiaddrNotSupported(_) | TransportError::Other(_) => {
                    failure(Some(address), (NOT_DIALABLE.to_owned(), true))
                }
            })
            .collect(),
        DialError::WrongPeerId { obtained, address } => {
            one(Some(address), &format!("another peer answers there, {obtained}"))
        }
        DialError::LocalPeerId { address } => {
            let failure = failure(Some(address), (OWN.to_owned(), false));
            vec![AddressFailure { is_own: true, ..failure }]
        }
        DialError::Denied { cause } => one(None, &innermost(cause)),
        DialError::NoAddresses => one(None, "no address is known"),
        DialError::Aborted => one(None, "the attempt was given up"),
        DialError::DialPeerConditionFalse(_) => one(None, "an attempt is under way already"),
    }
}

/// The text of the error at the bottom: what lies above it in libp2p only repeats it.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    loop {
        // An `io::Error` hides the error within it from `source`.
        let within = innermost
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .map(|within| within as &(dyn std::error::Error + 'static));
        match within.or_else(|| innermost.source()) {
            Some(next) => innermost = next,
            None => return innermost.to_string().replace('\n', " "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quic_and_can_be_reached_comes_first() {
        let texts = [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.0.0.7/tcp/1",
            "/ip4/127.0.0.1/udp/1/quic-v1",
            "/ip4/10.0.0.7/udp/1/quic-v1",
        ];
        let mut addresses: Vec<Multiaddr> = texts.map(|text| text.parse().unwrap()).to_vec();
        addresses.sort_by_key(preference);
        let order: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(order, [texts[3], texts[1], texts[2], texts[0]]);
    }

    #[test]
    fn a_relay_is_named_before_the_circuit_and_the_peer_behind_it() {
        let (relay, peer) = (libp2p::PeerId::random(), libp2p::PeerId::random());
        let relayed: Multiaddr =
            format!("/ip4/10.0.0.7/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        assert_eq!(relay_of(&relayed), Some(relay));
        assert_eq!(relay_of(&relayed.with(Protocol::P2p(peer))), Some(relay));
        let direct: Multiaddr = format!("/ip4/10.0.0.7/tcp/1/p2p/{peer}").parse().unwrap();
        assert_eq!(relay_of(&direct), None);
    }

    #[test]
    fn addresses_by_relays_are_told_however_many_interfaces_there_are() {
        let own = (1..=20).map(|port| format!("/ip4/10.0.0.7/tcp/{port}").parse().unwrap());
        let relay = libp2p::PeerId::random();
        let relayed: Multiaddr =
            format!("/ip4/10.0.0.8/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        let told = fitting(own.chain([relayed.clone()]).collect());
        assert_eq!((told.len(), told.last()), (ADDRESSES_MAX, Some(&relayed)));
    }

    #[test]
    fn what_only_neighbours_see_is_private() {
        let is_private = |text: &str| is_private(&text.parse().unwrap());
        for near in [
            "/ip4/192.168.1.5",
            "/ip4/100.64.0.1",
            "/ip4/127.0.0.1",
            "/ip6/fd00::1",
            "/ip6/fe80::1",
        ] {
            assert!(is_private(near), "{near}");
        }
        for far in ["/ip4/203.0.113.7", "/ip4/100.128.0.1", "/ip6/2001:db8::1", "/dns/example.org"]
        {
            assert!(!is_private(far), "{far}");
        }
    }

    #[test]
    fn an_address_of_another_peer_is_not_tried() {
        let (own, other) = (libp2p::PeerId::random(), libp2p::PeerId::random());
        let bare: Multiaddr = "/ip4/10.0.0.7/tcp/1".parse().unwrap();
        let of = |peer| bare.clone().with(Protocol::P2p(peer));
        let anywhere = "/ip4/0.0.0.0/tcp/1".parse().unwrap();
        assert_eq!(of_peer(own, &[of(other), of(own), anywhere]), [bare]);
    }
}
