//! How far each step of a training goes.

use std::f64::consts::PI;

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Along a line, to zero behind the last step.
    Linear,
    /// Along half a cosine, to zero behind the last step.
    Cosine,
}

/// The learning rates of a training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest.
    pub learning_rate: f64,
    /// Steps during which it rises along a line from zero.
    pub warmup_steps: u64,
    /// All steps of the training.
    pub steps: u64,
    /// How it falls after that.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of a step, the first of which is 1: as transformers' schedules have it, where
    /// the step before the first is at zero.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        let before = step.saturating_sub(1);
        if before < self.warmup_steps {
            return self.learning_rate * before as f64 / self.warmup_steps as f64;
        }
        let falling = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let gone = ((before - self.warmup_steps) as f64 / falling).min(1.0);
        let factor = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - gone,
            Decay::Cosine => 0.5 * (1.0 + (PI * gone).cos()),
        };
        self.learning_rate * factor
    }

    /// Whether every step has a rate of zero, as a single one has that is in the warm-up.
    #[must_use]
    pub fn learns_nothing(&self) -> bool {
        // Of a warm-up only the first step is at zero, and what falls to zero does so behind the last.
        (1..=self.steps.min(2)).all(|step| self.at(step) == 0.0)
    }

    /// Whether the training is over before the rate has risen to the highest.
    #[must_use]
    pub const fn ends_in_warmup(&self) -> bool {
        self.steps <= self.warmup_steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay, warmup_steps: u64) -> Vec<f64> {
        let schedule = Schedule { learning_rate: 8.0, warmup_steps, steps: 6, decay };
        (1..=7).map(|step| (schedule.at(step) * 100.0).round() / 100.0).collect()
    }

    #[test]
    fn rates_rise_and_fall_as_in_transformers() {
        assert_eq!(rates(Decay::Constant, 2), [0.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0]);
        assert_eq!(rates(Decay::Linear, 2), [0.0, 4.0, 8.0, 6.0, 4.0, 2.0, 0.0]);
        assert_eq!(rates(Decay::Cosine, 2), [0.0, 4.0, 8.0, 6.83, 4.0, 1.17, 0.0]);
        assert_eq!(rates(Decay::Linear, 0)[0], 8.0);
        assert_eq!(rates(Decay::Cosine, 9)[6], 5.33, "a training may end within the warm-up");
    }

    #[test]
    fn one_step_that_warms_up_learns_nothing() {
        let learns_nothing = |steps, warmup_steps| {
            let (learning_rate, decay) = (8.0, Decay::Cosine);
            Schedule { learning_rate, warmup_steps, steps, decay }.learns_nothing()
        };
        assert!(learns_nothing(1, 1) && learns_nothing(1, 2));
        assert!(!learns_nothing(1, 0) && !learns_nothing(2, 2) && !learns_nothing(6, 9));
    }

    #[test]
    fn a_warmup_of_all_steps_never_comes_to_the_highest_rate() {
        for (warmup_steps, ends_in_it) in [(0, false), (5, false), (6, true), (100, true)] {
            let (learning_rate, steps, decay) = (8.0, 6, Decay::Constant);
            let schedule = Schedule { learning_rate, warmup_steps, steps, decay };
            assert_eq!(schedule.ends_in_warmup(), ends_in_it, "{warmup_steps}");
            let highest = (1..=steps).any(|step| schedule.at(step) == learning_rate);
            assert_eq!(highest, !ends_in_it, "{warmup_steps}");
        }
    }
}
