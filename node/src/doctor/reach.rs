//! Whether others can come in, by what they have found out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use umbel_net::{Multiaddr, Reachability};

use super::Finding;

/// What was seen over one transport.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// `QUIC` or `TCP`.
    pub(super) transport: &'static str,
    /// Where this machine listened.
    pub(super) listened: Vec<Multiaddr>,
    /// Why no peer could be connected to, where none could.
    pub(super) no_way_out: Option<String>,
    /// What came of dials back.
    pub(super) dialled: Vec<Reachability>,
}

/// A finding for each transport. One that is open is enough to serve, so that the other is noted; so is a
/// relay, of which there are so many in the swarm.
pub(super) fn judge(seen: &[Seen], relays: usize) -> Vec<Finding> {
    let is_open = |seen: &Seen| seen.dialled.iter().any(|dialled| dialled.failure.is_none());
    let one_is_open = seen.iter().any(is_open);
    let mut findings: Vec<_> =
        seen.iter().map(|seen| judge_one(seen, one_is_open || relays > 0)).collect();
    let is_shut = |seen: &Seen| seen.no_way_out.is_none() && !seen.dialled.is_empty();
    if !one_is_open && seen.iter().any(is_shut) {
        findings.push(by_relays(relays));
    }
    findings.extend(seen.iter().filter(|seen| seen.transport == "QUIC").filter_map(router));
    findings
}

/// What kind of router stands before this machine, as far as UDP ports tell that several peers have seen: by
/// that two who met by a relay find a direct way, or do not.
fn router(seen: &Seen) -> Option<Finding> {
    let subject = "router";
    let foreign = seen.dialled.iter().filter(|dialled| !is_own(&dialled.address, &seen.listened));
    let (mut addresses, mut peers) = (BTreeSet::new(), BTreeSet::new());
    for Reachability { address, by, .. } in foreign {
        addresses.insert(address.to_string());
        peers.insert(by);
    }
    if addresses.len() > 1 {
        let what = "it translates addresses, and gives each destination another port";
        let advice = "a server here, or a client of others behind such routers, stays with relays: \
                      forward a port, or let the router keep ports (often called full cone)";
        return Some(Finding::note(subject, what, advice));
    }
    (addresses.len() == 1 && peers.len() > 1).then(|| {
        let what = format!(
            "it translates addresses, and keeps one port for all {} peers that were asked: direct \
             connections are found where the other one's router does so too",
            peers.len()
        );
        Finding::good(subject, what)
    })
}

/// What becomes of a server to which nobody comes in.
fn by_relays(relays: usize) -> Finding {
    let subject = "relays";
    if relays == 0 {
        let what = "no server of the swarm passes on for those to whom nobody comes in";
        let advice =
            "ask the host of one that can be reached to start it with `umbel serve --relay`";
        return Finding::bad(subject, what, advice);
    }
    let plural = if relays == 1 { "" } else { "s" };
    let what =
        format!("a server here is reached by a relay, of which {relays} server{plural} can be one");
    let advice =
        "`umbel serve` sees to it by itself, and looks for direct ways; a forwarded port is faster";
    Finding::note(subject, what, advice)
}

fn judge_one(seen: &Seen, serves_anyhow: bool) -> Finding {
    let subject = "reachability";
    let Seen { transport, no_way_out, dialled, .. } = seen;
    let closed = |what: String, advice: String| {
        if serves_anyhow {
            Finding::note(subject, what, advice)
        } else {
            Finding::bad(subject, what, advice)
        }
    };
    if let Some(why) = no_way_out {
        let what = format!("no peer can be connected to over {transport}: {why}");
        let port = if *transport == "QUIC" { "UDP" } else { "TCP" };
        return closed(what, format!("let {port} out through the firewall of this network"));
    }
    if let Some(open) = dialled.iter().find(|dialled| dialled.failure.is_none()) {
        let behind = if is_own(&open.address, &seen.listened) {
            ""
        } else {
            ", which is an address of a router before this machine"
        };
        let what = format!("peers come in over {transport} at {}{behind}", open.address);
        return Finding::good(subject, what);
    }
    let Some(failed) = dialled.first() else {
        let what = format!("no peer has dialled back over {transport}");
        let advice = "peers of another version may not know how: try another --join";
        return Finding::note(subject, what, advice);
    };
    let why = failed.failure.as_deref().unwrap_or_default();
    let what = format!("peers do not come in over {transport} at {}: {why}", failed.address);
    let advice = if is_own(&failed.address, &seen.listened) {
        "let it in through the firewall of this machine; who only asks needs none of this"
    } else {
        "forward a port of the router, and name it: `umbel serve --listen` with the port here and \
         --announce with the address there; who only asks needs none of this"
    };
    closed(what, advice.to_owned())
}

/// Whether an address is one of this machine's own, so that no router stands between.
fn is_own(address: &Multiaddr, listened: &[Multiaddr]) -> bool {
    let host = host(address);
    host.is_some() && listened.iter().any(|own| self::host(own) == host)
}

fn host(address: &Multiaddr) -> Option<IpAddr> {
    let text = address.to_string();
    let mut parts = text.split('/').skip(1);
    matches!(parts.next(), Some("ip4" | "ip6")).then(|| parts.next()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use umbel_protocol::PeerId;

    use super::super::Grade;
    use super::*;

    fn seen(transport: &'static str, failure: Option<&str>) -> Seen {
        let dialled = Reachability {
            address: "/ip4/203.0.113.7/udp/4001/quic-v1".parse().unwrap(),
            by: PeerId::from_public_key([1; 32]),
            failure: failure.map(str::to_owned),
        };
        let listened = vec!["/ip4/192.168.1.5/udp/4001/quic-v1".parse().unwrap()];
        Seen { transport, listened, no_way_out: None, dialled: vec![dialled] }
    }

    fn grades(seen: &[Seen]) -> Vec<Grade> {
        judge(seen, 0).iter().map(|finding| finding.grade).collect()
    }

    #[test]
    fn one_open_transport_is_enough_to_serve() {
        let (open, shut) = (seen("QUIC", None), seen("TCP", Some("dial error")));
        assert_eq!(grades(&[open.clone(), shut.clone()]), [Grade::Good, Grade::Note]);
        // The third says that no relay helps.
        assert_eq!(grades(&[shut.clone(), shut.clone()]), [Grade::Bad, Grade::Bad, Grade::Bad]);
        let nothing = Seen { dialled: Vec::new(), ..open };
        assert_eq!(grades(&[nothing]), [Grade::Note], "nobody has tried");
        let no_way = Seen { no_way_out: Some("no route".to_owned()), ..shut };
        assert_eq!(grades(&[no_way]), [Grade::Bad]);
    }

    #[test]
    fn a_relay_is_enough_to_serve_where_nobody_comes_in() {
        let shut = [seen("QUIC", Some("dial error")), seen("TCP", Some("dial error"))];
        let findings = judge(&shut, 2);
        assert!(findings.iter().all(|finding| finding.grade == Grade::Note), "{findings:?}");
        assert!(findings[2].what.contains("by a relay, of which 2 servers"), "{findings:?}");
        assert_eq!(judge(&[seen("QUIC", None)], 2).len(), 1, "nobody needs one");
        let offline = Seen { no_way_out: Some("no route".to_owned()), ..Seen::default() };
        assert_eq!(judge(&[offline], 0).len(), 1, "no relay helps who cannot get out");
    }

    #[test]
    fn a_router_is_known_by_the_ports_that_peers_see() {
        let by = |peer: u8, port: u16, transport| {
            let mut seen = seen(transport, Some("dial error"));
            let address = format!("/ip4/203.0.113.7/udp/{port}/quic-v1").parse().unwrap();
            seen.dialled[0] = Reachability {
                address,
                by: PeerId::from_public_key([peer; 32]),
                ..seen.dialled[0].clone()
            };
            seen
        };
        let both = |first: Seen, second: Seen| Seen {
            dialled: [first.dialled, second.dialled].concat(),
            ..first
        };
        let of_router = |seen: Seen| {
            let findings = judge(&[seen], 1).into_iter();
            findings.filter(|finding| finding.subject == "router").collect::<Vec<_>>()
        };
        let kept = of_router(both(by(1, 4001, "QUIC"), by(2, 4001, "QUIC")));
        assert_eq!(kept[0].grade, Grade::Good);
        assert!(kept[0].what.contains("for all 2 peers"), "{kept:?}");
        let changed = of_router(both(by(1, 4001, "QUIC"), by(2, 4002, "QUIC")));
        assert_eq!(changed[0].grade, Grade::Note);
        assert!(changed[0].what.contains("another port"), "{changed:?}");
        assert!(of_router(by(1, 4001, "QUIC")).is_empty(), "one peer cannot tell");
        // Each connection over TCP has a port of its own anyway.
        assert!(of_router(both(by(1, 4001, "TCP"), by(2, 4002, "TCP"))).is_empty());
        let mut own = both(by(1, 4001, "QUIC"), by(2, 4001, "QUIC"));
        own.listened = own.dialled.iter().map(|dialled| dialled.address.clone()).collect();
        assert!(of_router(own).is_empty(), "no router stands between");
    }

    #[test]
    fn behind_a_router_a_port_is_to_be_forwarded_and_else_the_firewall_opened() {
        let mut shut = seen("QUIC", Some("dial error"));
        let advice = |shut: &Seen| judge(std::slice::from_ref(shut), 0)[0].advice.clone().unwrap();
        assert!(advice(&shut).contains("--announce"));
        shut.dialled[0].address = "/ip4/192.168.1.5/udp/4001/quic-v1".parse().unwrap();
        assert!(advice(&shut).contains("firewall of this machine"));
        let behind = judge(&[seen("QUIC", None)], 0)[0].what.clone();
        assert!(behind.contains("router"), "{behind}");
    }
}
