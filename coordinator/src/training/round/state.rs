//! What all trainers of a run have in common after a round.

use sha2::{Digest as _, Sha256};
use umbel_protocol::averaging::Stand;

/// The outer step: what trainers have learned together is the gradient of one more optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OuterStep {
    /// How far it goes.
    pub learning_rate: f32,
    /// Nesterov's momentum.
    pub momentum: f32,
}

impl Default for OuterStep {
    /// What DiLoCo found best (Douillard et al. 2023, <https://arxiv.org/abs/2311.08105>, section 4).
    fn default() -> Self {
        Self { learning_rate: 0.7, momentum: 0.9 }
    }
}

/// The adapter of a run after a round, and the momentum with which it goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    round: u64,
    values: Vec<f32>,
    momentum: Vec<f32>,
}

impl RunState {
    /// The state before the first round; `None` where a value is no number.
    #[must_use]
    pub fn begin(values: Vec<f32>) -> Option<Self> {
        let momentum = vec![0.0; values.len()];
        Self::from_parts(0, values, momentum)
    }

    /// A state from its parts, as another peer has sent them; `None` where they are none: a value that is
    /// no number, or not a momentum for each.
    #[must_use]
    pub fn from_parts(round: u64, values: Vec<f32>, momentum: Vec<f32>) -> Option<Self> {
        let fits = values.len() == momentum.len()
            && values.iter().chain(&momentum).all(|value| value.is_finite());
        fits.then_some(Self { round, values, momentum })
    }

    /// Rounds that are behind it.
    #[must_use]
    pub const fn round(&self) -> u64 {
        self.round
    }

    /// The adapter's values.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The momentum of each value.
    #[must_use]
    pub fn momentum(&self) -> &[f32] {
        &self.momentum
    }

    /// Its name: SHA-256 over all of it.
    #[must_use]
    pub fn stand(&self) -> Stand {
        let mut hash = Sha256::new();
        hash.update(self.round.to_le_bytes());
        self.values.iter().chain(&self.momentum).for_each(|value| hash.update(value.to_le_bytes()));
        Stand { round: self.round, digest: hash.finalize().into() }
    }

    /// The state after a round of which the deltas are combined in `gradient`; `None` where a value would
    /// be no number.
    ///
    /// # Panics
    /// If the gradient is of another number of values.
    #[must_use]
    pub fn step(&self, gradient: &[f32], outer: OuterStep) -> Option<Self> {
        assert_eq!(gradient.len(), self.values.len(), "a gradient for each value");
        let (mut values, mut momentum) = (self.values.clone(), self.momentum.clone());
        let places = values.iter_mut().zip(&mut momentum);
        for ((value, momentum), gradient) in places.zip(gradient) {
            *momentum = outer.momentum * *momentum + gradient;
            *value -= outer.learning_rate * (gradient + outer.momentum * *momentum);
        }
        Self::from_parts(self.round + 1, values, momentum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_that_of_nesterov() {
        let outer = OuterStep { learning_rate: 0.5, momentum: 0.5 };
        let first = RunState::begin(vec![1.0, 2.0]).unwrap().step(&[1.0, -2.0], outer).unwrap();
        // Momentum is the gradient at first, so that the step is one and a half of it.
        assert_eq!((first.values(), first.momentum()), (&[0.25, 3.5][..], &[1.0, -2.0][..]));
        let second = first.step(&[1.0, 0.0], outer).unwrap();
        assert_eq!(second.momentum(), [1.5, -1.0]);
        assert_eq!(second.values(), [0.25 - 0.5 * 1.75, 3.5 + 0.25]);
        assert_eq!((first.round(), second.round()), (1, 2));
    }

    #[test]
    fn a_state_has_a_name_of_its_own_and_only_numbers() {
        let state = RunState::begin(vec![1.0, 2.0]).unwrap();
        let still = state.step(&[0.0, 0.0], OuterStep::default()).unwrap();
        assert_ne!(state.stand(), still.stand());
        assert_eq!(RunState::begin(vec![f32::NAN]), None);
        assert_eq!(RunState::from_parts(1, vec![1.0], vec![]), None);
        assert_eq!(state.step(&[f32::MAX, 0.0], OuterStep::default()), None);
    }
}
