//! Where the time of a step went.

use std::time::Duration;

use umbel_protocol::PeerId;
use umbel_protocol::inference::HopTiming;

use crate::chain::{HopTime, StepTime};

/// Divides what is neither arithmetic nor waiting among the links, in proportion to their round
/// trips; `own` tells those of this side.
pub(super) fn divide(
    trace: Vec<HopTiming>,
    total: Duration,
    own: impl Fn(PeerId) -> Option<Duration>,
) -> StepTime {
    let busy: Duration = trace.iter().map(|hop| hop.compute.saturating_add(hop.queue)).sum();
    let network = total.saturating_sub(busy);
    let mut weights: Vec<f64> = Vec::with_capacity(trace.len());
    let mut into = trace.first().and_then(|first| own(first.peer));
    for hop in &trace {
        weights.push(into.map_or(f64::NAN, |trip| trip.as_secs_f64()));
        into = hop.link_round_trip;
    }
    if let (Some(last), Some(weight)) = (trace.last(), weights.last_mut()) {
        *weight += own(last.peer).map_or(f64::NAN, |trip| trip.as_secs_f64());
    }
    // Where a link has not been measured yet, all count the same.
    let sum: f64 = weights.iter().sum();
    let even = 1.0 / trace.len().max(1) as f64;
    let share = |weight: f64| {
        if sum.is_finite() && sum > 0.0 { weight / sum } else { even }
    };
    let hops = trace
        .iter()
        .zip(&weights)
        .map(|(hop, weight)| HopTime {
            peer: Some(hop.peer),
            blocks: hop.span,
            compute: hop.compute,
            queue: hop.queue,
            network: network.mul_f64(share(*weight).clamp(0.0, 1.0)),
        })
        .collect();
    StepTime { total, hops }
}
