//! How likely a draft is right, as far as those before it told.

use super::DraftKind;

/// Observations that make an estimate: fewer follow a text that changes, more are steadier.
const MEMORY: f64 = 24.0;

/// For how many observations a first guess counts.
const PRIOR_WEIGHT: f64 = 2.0;

/// From how many matching tokens on a class of suffix drafts begins, and how likely such a draft is
/// taken to be right at first. These are guesses; a few drafts correct them.
const MATCHED: [(u32, f64); 9] =
    [(1, 0.2), (2, 0.35), (3, 0.5), (4, 0.6), (6, 0.7), (9, 0.8), (13, 0.85), (21, 0.9), (33, 0.9)];

/// At which draft of a model a class begins, and how likely it is taken to be right at first.
const MODEL: [(u32, f64); 6] = [(1, 0.6), (2, 0.6), (3, 0.6), (4, 0.6), (6, 0.6), (9, 0.6)];

/// The chance that a draft is right if all before it in its step are.
///
/// Drafts that continue a match are told apart by its length: a match that has held for 20 tokens
/// breaks less often than one of two. Each draft that is right makes the match longer by one.
#[derive(Debug, Clone)]
pub(super) struct Acceptance {
    matched: [Share; MATCHED.len()],
    model: [Share; MODEL.len()],
}

/// A share that is estimated from what was seen.
#[derive(Debug, Clone, Copy)]
struct Share {
    value: f64,
    weight: f64,
}

impl Share {
    fn observe(&mut self, hit: bool) {
        self.weight = (self.weight + 1.0).min(MEMORY);
        self.value += (f64::from(u8::from(hit)) - self.value) / self.weight;
    }
}

impl Default for Acceptance {
    fn default() -> Self {
        let first = |(_, value): (u32, f64)| Share { value, weight: PRIOR_WEIGHT };
        Self { matched: MATCHED.map(first), model: MODEL.map(first) }
    }
}

impl Acceptance {
    /// The chance of the draft with this index (from 0) of a step.
    pub(super) fn chance(&self, kind: DraftKind, index: u32) -> f64 {
        match kind {
            DraftKind::Suffix { matched } => self.matched[class(&MATCHED, matched + index)].value,
            DraftKind::Model => self.model[class(&MODEL, index + 1)].value,
        }
    }

    /// Of so many drafts so many were right; the one behind them, if there was one, was wrong, and
    /// of the others nothing is known.
    pub(super) fn observe(&mut self, kind: DraftKind, drafted: u32, accepted: u32) {
        for index in 0..drafted.min(accepted + 1) {
            let share = match kind {
                DraftKind::Suffix { matched } => {
                    &mut self.matched[class(&MATCHED, matched + index)]
                }
                DraftKind::Model => &mut self.model[class(&MODEL, index + 1)],
            };
            share.observe(index < accepted);
        }
    }
}

/// The class in which `value` is.
fn class(classes: &[(u32, f64)], value: u32) -> usize {
    classes.partition_point(|&(first, _)| first <= value).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_class_that_begins_at_or_before_them() {
        let classes: Vec<_> = [0, 1, 2, 5, 6, 33, 900].map(|value| class(&MATCHED, value)).into();
        assert_eq!(classes, [0, 0, 1, 3, 4, 8, 8]);
    }

    #[test]
    fn what_is_seen_moves_the_class_that_it_belongs_to() {
        let mut acceptance = Acceptance::default();
        let short = DraftKind::Suffix { matched: 1 };
        for _ in 0..200 {
            acceptance.observe(short, 4, 1);
        }
        assert!(acceptance.chance(short, 0) > 0.99);
        assert!(acceptance.chance(short, 1) < 0.01, "the draft behind the last right one");
        let untouched = Acceptance::default();
        for index in 2..10 {
            let chances = [&acceptance, &untouched].map(|a| a.chance(short, index).to_bits());
            assert_eq!(chances[0], chances[1], "of later drafts nothing was seen");
        }
        assert!((acceptance.chance(DraftKind::Model, 0) - 0.6).abs() < 1e-9);
    }
}
