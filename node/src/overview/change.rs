//! What is other than it was: who came, went, moved or leaves.

use std::collections::BTreeMap;
use std::fmt;

use umbel_protocol::{ModelId, PeerId, Span};

use super::{Overview, ServerOverview};

/// Something that happened to a server between two pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Came {
        /// Which.
        peer: PeerId,
        /// What it serves.
        span: Span,
    },
    /// It is no longer there: it has left, or its announcement has expired.
    Went {
        /// Which.
        peer: PeerId,
        /// What it served.
        span: Span,
    },
    /// It serves other blocks.
    Moved {
        /// Which.
        peer: PeerId,
        /// What it served.
        from: Span,
        /// What it serves now.
        to: Span,
    },
    /// It has begun to leave.
    Leaves {
        /// Which.
        peer: PeerId,
        /// What it serves still.
        span: Span,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Came { peer, span } => write!(f, "{peer} has come and serves {span}"),
            Self::Went { peer, span } => write!(f, "{peer} is gone, which served {span}"),
            Self::Moved { peer, from, to } => write!(f, "{peer} has moved from {from} to {to}"),
            Self::Leaves { peer, span } => write!(f, "{peer} is about to leave {span}"),
        }
    }
}

/// What is other in `after` than in `before`, in the order of models and peers.
#[must_use]
pub fn changes(before: &Overview, after: &Overview) -> Vec<Change> {
    let (old, new) = (by_name(before), by_name(after));
    let mut changes = Vec::new();
    for (name, server) in &old {
        if !new.contains_key(name) {
            changes.push(Change::Went { peer: server.peer, span: server.span });
        }
    }
    for (name, server) in &new {
        let (peer, span) = (server.peer, server.span);
        match old.get(name) {
            // It has its blocks still to load, or leaves already.
            None if server.draining => {}
            None => changes.push(Change::Came { peer, span }),
            Some(was) if was.draining && !server.draining && was.span == span => {
                changes.push(Change::Came { peer, span });
            }
            Some(was) if was.span != span => {
                changes.push(Change::Moved { peer, from: was.span, to: span });
            }
            Some(was) if !was.draining && server.draining => {
                changes.push(Change::Leaves { peer, span });
            }
            Some(_) => {}
        }
    }
    changes
}

fn by_name(overview: &Overview) -> BTreeMap<(ModelId, PeerId), &ServerOverview> {
    let models = overview.models.iter();
    models.flat_map(|model| model.servers.iter().map(|s| ((model.id, s.peer), s))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{overview, peer, server};
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let span = |text: &str| text.parse::<Span>().unwrap();
        let before = overview(&[server(1, 0, 2), server(2, 2, 4), server(3, 0, 4)]);
        let mut leaving = server(3, 0, 4);
        leaving.draining = true;
        let after = overview(&[server(2, 1, 3), leaving, server(4, 0, 1)]);
        let mut told = changes(&before, &after);
        let of = |change: &Change| change.to_string();
        told.sort_by_key(of);
        let mut expected = [
            Change::Went { peer: peer(1), span: span("0..2") },
            Change::Moved { peer: peer(2), from: span("2..4"), to: span("1..3") },
            Change::Leaves { peer: peer(3), span: span("0..4") },
            Change::Came { peer: peer(4), span: span("0..1") },
        ];
        expected.sort_by_key(of);
        assert_eq!(told, expected);
        assert!(changes(&after, &after).is_empty());
    }

    #[test]
    fn who_loads_its_blocks_has_come_when_it_serves_them() {
        let mut loads = server(1, 0, 2);
        (loads.draining, loads.moving_to) = (true, Some(loads.span));
        let [nobody, begun] = [overview(&[]), overview(&[loads])];
        assert!(changes(&nobody, &begun).is_empty());
        let came = Change::Came { peer: peer(1), span: "0..2".parse().unwrap() };
        assert_eq!(changes(&begun, &overview(&[server(1, 0, 2)])), [came]);
    }
}
