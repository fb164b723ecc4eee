//! Trials of the rule by which servers place themselves.
//!
//! A [`Trial`] runs uneven servers through joins and leaves in virtual time, each deciding for
//! itself on views that are some seconds old; [`reference`](mod@reference) looks for the best
//! placement with everything in one hand, and [`petals`] is the rule to beat.

pub mod petals;
pub mod reference;
pub mod scenario;
mod trial;

use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::flow::Supply;
use umbel_protocol::Span;

use crate::seed::Seed;

pub use trial::{Rule, Tally, Trial};

/// A server, as it comes from the shop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Tokens a second through one block.
    pub rate: f64,
    /// Most blocks that it can serve.
    pub block_limit: u32,
    /// Most blocks that it can hold while it moves.
    pub held_max: u32,
    /// How fast it downloads.
    pub bytes_per_second: f64,
}

/// A model and the machines that are to serve it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// Blocks of the model.
    pub block_count: u32,
    /// The machines, in the order in which they join.
    pub machines: Vec<Machine>,
}

impl Fleet {
    /// Uneven machines: a model of 24 to 80 blocks, room for 1 up to `block_limit_max` blocks,
    /// rates and downloads that differ by a factor of 30 and 10. One in four cannot hold two spans
    /// at once. There are always enough machines for the model: what is missing joins at the end.
    #[must_use]
    pub fn random(seed: Seed, count: usize, block_limit_max: u32) -> Self {
        let mut random = seed.stream("fleet");
        let block_count = 24 + below(&mut random, 57);
        let mut machines = Vec::new();
        for _ in 0..count {
            let block_limit = (1 + below(&mut random, block_limit_max)).min(block_count);
            machines.push(machine(&mut random, block_limit));
        }
        // Rather a few larger machines than more of them: the count is what a trial is named by.
        let mut next = 0;
        while machines.iter().map(|machine| machine.block_limit).sum::<u32>() < block_count {
            machines[next % count].block_limit += 1;
            machines[next % count].held_max += 1;
            next += 1;
        }
        Self { block_count, machines }
    }

    /// Tokens a second that no placement can exceed.
    ///
    /// A server gives at most its rate, and at most the throughput at each of its blocks.
    #[must_use]
    pub fn bound(&self) -> f64 {
        bound(self.block_count, &self.machines)
    }
}

/// Tokens a second that no placement of these machines can exceed.
#[must_use]
pub fn bound(block_count: u32, machines: &[Machine]) -> f64 {
    let given = |throughput: f64| {
        let of = |machine: &Machine| machine.rate.min(throughput * f64::from(machine.block_limit));
        machines.iter().map(of).sum::<f64>() / f64::from(block_count)
    };
    // From above, each round comes nearer to the fixed point, fast.
    (0..200).fold(given(f64::INFINITY), |throughput, _| given(throughput))
}

/// What a placement carries.
#[must_use]
pub fn throughput(block_count: u32, placed: impl IntoIterator<Item = (Span, f64)>) -> f64 {
    let mut supply = Supply::new(block_count);
    for (span, rate) in placed {
        supply.add(span, rate);
    }
    supply.throughput()
}

fn machine(random: &mut Random, block_limit: u32) -> Machine {
    let both = random.below(4) > 0;
    Machine {
        rate: 100.0 * 30f64.powf(random.unit()),
        block_limit,
        held_max: if both { 2 * block_limit } else { block_limit },
        // 100 Mbit/s to 1 Gbit/s.
        bytes_per_second: 12.5e6 * 10f64.powf(random.unit()),
    }
}

fn below(random: &mut Random, bound: u32) -> u32 {
    u32::try_from(random.below(bound as usize)).expect("below a number of 32 bits")
}

#[cfg(test)]
mod tests;
