//! How good a placement is: finer than its throughput, so that a search sees where to go.

use crate::swarm::flow::Supply;

/// How well the blocks of a swarm are served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Balance {
    /// Blocks without a server. With any of them the swarm carries nothing.
    pub(super) unserved: usize,
    /// The stretches that those blocks form: few long gaps are easier to fill than many short ones.
    pub(super) gaps: usize,
    /// The power mean, of order -8, of what the other blocks get when the rates are shared as
    /// evenly as can be, in tokens a second.
    ///
    /// At -8 a block at half of the throughput of the rest counts for 256 of them, so the mean
    /// follows the weakest blocks closely, and still shows whether the second weakest became
    /// better. In trials with tight memory, orders of -1, -2 and -4 ended lower.
    pub(super) mean: f64,
    /// What the weakest of all blocks gets: the throughput.
    pub(super) least: f64,
}

impl Balance {
    pub(super) fn of(supply: &Supply) -> Self {
        let levels = supply.levels();
        let scale = supply.rate() / count(levels.len());
        let (mut unserved, mut gaps, mut sum) = (0, 0, 0.0);
        let mut in_gap = false;
        for level in &levels {
            let empty = *level <= 0.0;
            if empty {
                unserved += 1;
                gaps += usize::from(!in_gap);
            } else {
                sum += (scale / level).powi(8);
            }
            in_gap = empty;
        }
        let served = levels.len() - unserved;
        let mean = if served == 0 { 0.0 } else { scale * (sum / count(served)).powf(-0.125) };
        let least = levels.iter().copied().fold(f64::INFINITY, f64::min);
        Self { unserved, gaps, mean, least }
    }
}

/// The power mean and the least of the levels of a swarm in which each block has a server, as in
/// [`Balance`]; `None` where the mean is below `enough`, which costs less to find out.
pub(super) fn mean_above(supply: &Supply, enough: f64) -> Option<(f64, f64)> {
    let blocks = count(supply.block_count());
    let scale = supply.rate() / blocks;
    let most = blocks * (scale / enough.max(f64::MIN_POSITIVE)).powi(8);
    let (mut sum, mut least) = (0.0, f64::INFINITY);
    supply.visit_levels(|level, _, at_it| {
        sum += count(at_it) * (scale / level).powi(8);
        least = least.min(level);
        sum <= most
    });
    (sum <= most).then(|| (scale * (sum / blocks).powf(-0.125), least))
}

/// The most that servers with these rates and these numbers of blocks can carry, wherever they
/// stand: a server gives at most its rate, and at most the throughput at each of its blocks.
pub(super) fn throughput_bound(
    block_count: u32,
    servers: impl IntoIterator<Item = (u32, f64)>,
) -> f64 {
    // A server is limited by its blocks while the throughput is below its rate per block. In the
    // order of those, all others give their rates.
    let mut servers: Vec<(u32, f64)> = servers.into_iter().filter(|(held, _)| *held > 0).collect();
    servers.sort_by(|a, b| (a.1 / f64::from(a.0)).total_cmp(&(b.1 / f64::from(b.0))));
    let mut blocks_free = f64::from(block_count);
    let mut rates: f64 = servers.iter().map(|server| server.1).sum();
    for (held, rate) in servers.iter().rev() {
        if blocks_free <= 0.0 {
            return f64::INFINITY;
        }
        if rates / blocks_free >= rate / f64::from(*held) {
            break;
        }
        blocks_free -= f64::from(*held);
        rates -= rate;
    }
    if blocks_free <= 0.0 { f64::INFINITY } else { rates.max(0.0) / blocks_free }
}

#[expect(clippy::cast_precision_loss, reason = "a number of blocks fits the mantissa")]
pub(super) fn count(blocks: usize) -> f64 {
    blocks as f64
}
