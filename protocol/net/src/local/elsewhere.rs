//! Systems on which every link takes the way of the network.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use libp2p::Multiaddr;
use umbel_protocol::LinkProtocol;

use crate::link::Link;
use crate::links::{Acceptors, Incoming};
use crate::rates::Rates;

pub(crate) const fn is_worth_it(_: LinkProtocol) -> bool {
    false
}

pub(crate) const fn listened_port(_: &Multiaddr, _: &Multiaddr) -> Option<u16> {
    None
}

pub(crate) async fn ask(_: Link, _: LinkProtocol, _: &Arc<Rates>) -> io::Result<Link> {
    Err(ErrorKind::Unsupported.into())
}

pub(crate) async fn answer(_: Incoming, _: Arc<Acceptors>, _: Arc<Rates>) {}
