//! Where a server that joins should go.

use std::cmp::Ordering;

use umbel_protocol::announcement::Announcement;
use umbel_protocol::{PeerId, Span};

use super::balance::{Balance, count};
use super::{Own, View};
use crate::random::Random;
use crate::swarm::flow::Supply;

/// How long a server is expected to serve the span that it takes, in seconds: four hours, an
/// evening of a volunteer. A download counts as time in which the server gives nothing, so its
/// cost is its own share of the throughput times the download's part of this.
pub(super) const STAY_SECONDS: f64 = 4.0 * 3600.0;

/// Values that differ by less than this part are equal, and chance decides.
const EQUAL: f64 = 1e-9;

/// The span that a server which joins should serve.
///
/// The order is: fewest blocks without a server, in the fewest stretches; then the most for the
/// weakest blocks, less what the download costs; then chance. `None` where the model has no blocks
/// or the server has room for none.
#[must_use]
pub fn choose_span(view: &View, own: &Own<'_>, random: &mut Random) -> Option<Span> {
    let mut supply = Supply::new(view.block_count);
    for (span, rate) in view.will_serve() {
        supply.add(span, rate);
    }
    let share = own.rate / count(supply.block_count());
    let mut best: Option<(Span, Balance)> = None;
    let mut equals = 1;
    for span in own.spans(view.block_count) {
        supply.add(span, own.rate);
        let mut balance = Balance::of(&supply);
        supply.remove(span, own.rate);
        balance.mean -= share * own.download_seconds(span, None) / STAY_SECONDS;
        let order = best.map_or(Ordering::Greater, |(_, best)| compare(balance, best));
        match order {
            Ordering::Greater => equals = 1,
            Ordering::Equal => equals += 1,
            Ordering::Less => {}
        }
        if order.is_gt() || (order.is_eq() && random.below(equals) == 0) {
            best = Some((span, balance));
        }
    }
    best.map(|(span, _)| span)
}

/// The servers by which one that begins chooses anew; `None` where it stays with what it has chosen.
///
/// Servers that begin at the same time have not heard of each other when they choose. So each tells
/// what it has chosen, and looks once more at who is there `now`, beside those that it has chosen by
/// (`before`). Of those that begin as it does, the ones with a lower id go first, and the others
/// give way.
#[must_use]
pub fn choose_again(
    own: PeerId,
    chosen: Span,
    before: &[Announcement],
    now: &[Announcement],
) -> Option<Vec<Announcement>> {
    let goal = |server: &Announcement| server.moving_to.unwrap_or(server.span);
    let was_there = |server: &&Announcement| {
        before.iter().any(|known| known.peer == server.peer && goal(known) == goal(server))
    };
    let goes_first = |server: &&Announcement| {
        let begins = server.draining && server.moving_to.is_some();
        !begins || was_there(server) || server.peer < own
    };
    let others = now.iter().filter(|server| server.peer != own);
    let counted: Vec<_> = others.filter(goes_first).collect();
    let in_the_way =
        |server: &&Announcement| !was_there(server) && goal(server).intersection(chosen).is_some();
    counted.iter().any(in_the_way).then(|| counted.into_iter().cloned().collect())
}

/// Greater is better.
fn compare(a: Balance, b: Balance) -> Ordering {
    let by_mean = if (a.mean - b.mean).abs() <= EQUAL * a.mean.abs().max(b.mean.abs()) {
        Ordering::Equal
    } else {
        a.mean.total_cmp(&b.mean)
    };
    b.unserved.cmp(&a.unserved).then(b.gaps.cmp(&a.gaps)).then(by_mean)
}
