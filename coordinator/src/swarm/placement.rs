//! Which span a server should take, and when it should take another.
//!
//! Every server decides for itself, from its own view of the swarm, by the throughput of the whole
//! ([`crate::swarm::flow`]). Throughput alone is a poor guide: it stays the same while the second
//! of two weak places is mended, so a search that follows it stops on the first plateau. The rule
//! follows a balance instead: blocks without a server first, then the power mean of what the
//! blocks get, of an order low enough that the weakest blocks decide. Where no move of its own
//! helps, a server looks for moves of several that help together, and asks the others for theirs.
//!
//! A longer span never lowers the throughput, because the server may always leave the additional
//! blocks to others; so a server takes as many blocks as it has room for.

mod balance;
mod choose;
mod mover;
mod moving;
mod plan;
mod transit;

use std::collections::BTreeSet;

use umbel_protocol::announcement::{Announcement, Proposal};
use umbel_protocol::{PeerId, Span};

use crate::random::Random;

pub use choose::{choose_again, choose_span};
pub use mover::{
    DRAIN_MAX, Input, Intention, LOOK_INTERVAL, MOVE_INTERVAL_MIN, Mover, MoverConfig, Output,
    PLAN_MAX, READY_MAX, SETTLE, Sight,
};
pub use moving::{Move, consider_move};
pub use plan::propose;

/// The rate, in block-tokens a second, that a server counts for where none has measured its own.
const RATE_UNKNOWN: f64 = 1.0;

/// What is known of another server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServedSpan {
    /// The server.
    pub peer: PeerId,
    /// The blocks that it serves; `None` where it is still loading its first ones, or has left
    /// all others for those that it is going to serve.
    pub span: Option<Span>,
    /// The blocks that it is loading and will serve in place of `span`.
    pub moving_to: Option<Span>,
    /// Tokens a second through one block, shared by the blocks of its span.
    pub rate: f64,
    /// Most blocks that it can hold while it moves; 0 where it is not to be asked to move.
    pub held_max: u32,
    /// Whose proposal makes it move, once everybody asked will do so.
    pub joined: Option<PeerId>,
}

impl ServedSpan {
    /// What an announcement says; `None` where the server is about to leave the swarm. One that
    /// takes no sessions and names blocks to go to is there: it serves none before it has these.
    /// A server that has not measured itself yet is as fast as `typical`.
    fn of(announcement: &Announcement, typical: f64) -> Option<Self> {
        let Announcement { draining, moving_to, .. } = *announcement;
        if draining && moving_to.is_none() {
            return None;
        }
        Some(Self {
            peer: announcement.peer,
            span: (!draining).then_some(announcement.span),
            moving_to,
            rate: rate_of(announcement).unwrap_or(typical),
            held_max: announcement.held_blocks_max,
            joined: announcement.joined,
        })
    }

    /// The blocks that it will serve when it has loaded what it is loading. What it does only if
    /// others do something too may come to nothing.
    fn will_serve(&self) -> Option<Span> {
        if self.joined.is_some() { self.span } else { self.moving_to.or(self.span) }
    }

    /// Whether it serves `block` now and has no intention to leave it.
    fn keeps(&self, block: u32) -> bool {
        self.span.is_some_and(|span| span.contains(block))
            && self.moving_to.is_none_or(|to| to.contains(block))
    }

    /// Whether it serves `block` now and leaves it only when another keeps it: so does a server
    /// that serves more than usual and is going to serve a part of that.
    fn holds(&self, block: u32) -> bool {
        let shrinks =
            self.span.is_some_and(|span| self.moving_to.is_some_and(|to| span.covers(to)));
        self.keeps(block) || (shrinks && self.span.is_some_and(|span| span.contains(block)))
    }
}

/// What one server knows of the others that serve its model.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    block_count: u32,
    servers: Vec<ServedSpan>,
    /// Who asks others to move, and what for, in the order of their ids.
    proposals: Vec<(PeerId, Proposal)>,
}

impl View {
    /// The servers of a model with `block_count` blocks. Whoever claims blocks that the model does
    /// not have is left out.
    #[must_use]
    pub fn new(block_count: u32, servers: impl IntoIterator<Item = ServedSpan>) -> Self {
        let fits = |span: Option<Span>| span.is_none_or(|span| span.end() <= block_count);
        let mut servers: Vec<_> = servers
            .into_iter()
            .filter(|server| fits(server.span) && fits(server.moving_to))
            .collect();
        servers.sort_by_key(|server| server.peer);
        Self { block_count, servers, proposals: Vec::new() }
    }

    /// What announcements say.
    #[must_use]
    pub fn of<'a>(
        block_count: u32,
        announcements: impl Iterator<Item = &'a Announcement> + Clone,
    ) -> Self {
        let proposed = |server: &Announcement| Some((server.peer, server.proposal.clone()?));
        let typical = typical_rate(announcements.clone());
        let servers = announcements.clone().filter_map(|server| ServedSpan::of(server, typical));
        Self::new(block_count, servers).with_proposals(announcements.filter_map(proposed))
    }

    /// The same servers, and what some of them ask others to do. What asks for blocks that the
    /// model does not have, or asks one server twice, is left out.
    #[must_use]
    pub fn with_proposals(mut self, by: impl IntoIterator<Item = (PeerId, Proposal)>) -> Self {
        let makes_sense = |proposal: &Proposal| {
            let asked: BTreeSet<PeerId> = proposal.moves.iter().map(|of| of.peer).collect();
            let mut spans = proposal.moves.iter().flat_map(|of| of.via.into_iter().chain([of.to]));
            asked.len() == proposal.moves.len() && spans.all(|span| span.end() <= self.block_count)
        };
        self.proposals = by.into_iter().filter(|(_, proposal)| makes_sense(proposal)).collect();
        self.proposals.sort_by_key(|(peer, _)| *peer);
        self
    }

    /// Blocks of the model.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        self.block_count
    }

    /// The servers, in the order of their ids.
    #[must_use]
    pub fn servers(&self) -> &[ServedSpan] {
        &self.servers
    }

    /// The same view without this peer.
    #[must_use]
    pub fn without(mut self, peer: PeerId) -> Self {
        self.servers.retain(|server| server.peer != peer);
        self.proposals.retain(|(by, _)| *by != peer);
        self
    }

    /// Whether every block that a server gives up by going from one span to another is kept by
    /// another server: one that serves it now and has no intention to leave it.
    #[must_use]
    pub fn keeps_what_is_left(&self, from: Span, to: Span) -> bool {
        let mut left = from.blocks().filter(|block| !to.contains(*block));
        left.all(|block| self.servers.iter().any(|server| server.keeps(block)))
    }

    /// The same, but a server that leaves it only when another keeps it will do too.
    fn holds_what_is_left(&self, from: Span, to: Span) -> bool {
        let mut left = from.blocks().filter(|block| !to.contains(*block));
        left.all(|block| self.servers.iter().any(|server| server.holds(block)))
    }

    /// Where everybody will be, and how fast they are. What was agreed upon counts as done, also
    /// where not everybody has begun.
    fn will_serve(&self) -> impl Iterator<Item = (Span, f64)> {
        let place = |server: &ServedSpan| self.agreed(server.peer).or_else(|| server.will_serve());
        self.servers.iter().filter_map(move |server| Some((place(server)?, server.rate)))
    }

    /// Where this server goes by a plan that has begun.
    fn agreed(&self, peer: PeerId) -> Option<Span> {
        let mut agreed = self.proposals.iter().filter(|(_, proposal)| proposal.agreed);
        agreed.find_map(|(_, proposal)| Some(proposal.of(peer)?.to))
    }

    /// Whether somebody waits for others to agree to what he proposes.
    fn is_being_asked(&self) -> bool {
        self.proposals.iter().any(|(_, proposal)| !proposal.agreed)
    }
}

/// What a server knows of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Own<'a> {
    /// Tokens a second through one block.
    pub rate: f64,
    /// Most blocks that it can serve.
    pub block_limit: u32,
    /// For each block of the model, the bytes that are not on disk yet; a block beyond the end of
    /// the slice costs nothing.
    pub missing_bytes: &'a [u64],
    /// How fast it downloads; 0 where that is not known, and then downloads cost nothing.
    pub bytes_per_second: f64,
}

impl Own<'_> {
    /// Seconds until the blocks of `span` that are not in `held` are on disk.
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes fits the mantissa")]
    fn download_seconds(&self, span: Span, held: Option<Span>) -> f64 {
        let wanted = span.blocks().filter(|block| held.is_none_or(|held| !held.contains(*block)));
        let bytes: u64 =
            wanted.filter_map(|block| self.missing_bytes.get(block as usize)).copied().sum();
        if self.bytes_per_second > 0.0 { bytes as f64 / self.bytes_per_second } else { 0.0 }
    }

    /// The spans that it can serve, as long as they can be.
    fn spans(&self, block_count: u32) -> impl Iterator<Item = Span> + use<> {
        slides(self.block_limit.min(block_count), block_count)
    }
}

/// The `count` consecutive blocks that the server `own` should take when it begins and knows no
/// more than these announcements: what [`choose_span`] says where downloads cost nothing and the
/// server is as fast as the middle one. Of spans that are as good as each other two servers hardly
/// take the same. What is left of the server's own last run does not count.
///
/// `None` where `count` or `block_count` is 0. More blocks than there are means all of them.
#[must_use]
pub fn thinnest_span<'a>(
    block_count: u32,
    count: u32,
    own: PeerId,
    servers: impl IntoIterator<Item = &'a Announcement>,
) -> Option<Span> {
    let others: Vec<_> = servers.into_iter().filter(|server| server.peer != own).collect();
    let others = others.iter().copied();
    let rate = typical_rate(others.clone());
    let view = View::of(block_count, others);
    let me = Own { rate, block_limit: count, missing_bytes: &[], bytes_per_second: 0.0 };
    let [a, b, c, d, e, f, g, h, ..] = *own.public_key();
    choose_span(&view, &me, &mut Random::new(u64::from_le_bytes([a, b, c, d, e, f, g, h])))
}

/// The rate that a server announces; `None` where it has not measured it yet.
fn rate_of(announcement: &Announcement) -> Option<f64> {
    let rate = f64::from(announcement.throughput.decode_tokens_per_second);
    (rate > 0.0).then_some(rate)
}

/// The rate of the server in the middle, for those that have not measured their own yet.
fn typical_rate<'a>(announcements: impl Iterator<Item = &'a Announcement>) -> f64 {
    let mut rates: Vec<f64> = announcements.filter_map(rate_of).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(RATE_UNKNOWN)
}

/// Every span of `count` blocks.
fn slides(count: u32, block_count: u32) -> impl Iterator<Item = Span> + use<> {
    let starts = if count == 0 { 0..0 } else { 0..block_count + 1 - count.min(block_count) };
    starts.filter_map(move |start| Span::new(start, start + count.min(block_count)).ok())
}

#[cfg(test)]
mod tests;
