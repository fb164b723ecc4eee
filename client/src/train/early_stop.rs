//! When a training has learned what it can: the losses of its validations say so.

use serde::{Deserialize, Serialize};

/// Watches the validations of a training. It is kept with a checkpoint, so that a training that is
/// resumed stops where it would have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EarlyStop {
    best: Option<Best>,
    /// Validations since the best one.
    since: u32,
}

/// The best validation so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Best {
    step: u64,
    /// The bits of its loss: JSON would give back another number in its last digit.
    loss_bits: u64,
}

impl EarlyStop {
    /// Takes note of a validation behind a step; whether it is the best so far.
    pub fn validated(&mut self, step: u64, loss: f64) -> bool {
        let is_best = self.best().is_none_or(|(_, best)| loss < best);
        if is_best {
            self.best = Some(Best { step, loss_bits: loss.to_bits() });
            self.since = 0;
        } else {
            self.since = self.since.saturating_add(1);
        }
        is_best
    }

    /// Step and loss of the best validation.
    #[must_use]
    pub fn best(&self) -> Option<(u64, f64)> {
        self.best.map(|best| (best.step, f64::from_bits(best.loss_bits)))
    }

    /// Whether as many validations as `patience` have come since the best one.
    #[must_use]
    pub const fn is_over(&self, patience: u32) -> bool {
        self.since >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_stops_once_as_many_validations_as_its_patience_were_no_better() {
        let mut watch = EarlyStop::default();
        assert!(!watch.is_over(2), "nothing was seen yet");
        let seen = [(0, 3.0), (2, 2.0), (4, 2.5), (6, 1.5), (8, 1.5)];
        let best = seen.map(|(step, loss)| watch.validated(step, loss));
        assert_eq!(best, [true, true, false, true, false], "as good is not better");
        assert!(!watch.is_over(2) && watch.is_over(1));
        assert!(!watch.validated(10, f64::NAN), "no number is not better");
        assert!(watch.is_over(2));
        assert_eq!(watch.best(), Some((6, 1.5)));
    }

    #[test]
    fn what_was_seen_is_kept_to_the_last_bit() {
        let mut watch = EarlyStop::default();
        let loss = 0.1 + 0.2;
        watch.validated(7, loss);
        let text = serde_json::to_string(&watch).unwrap();
        let mut again: EarlyStop = serde_json::from_str(&text).unwrap();
        assert_eq!(again, watch);
        assert!(!again.validated(8, loss) && again.validated(9, loss.next_down()));
    }
}
