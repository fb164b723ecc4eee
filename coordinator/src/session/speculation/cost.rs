//! What a step costs, by how many drafts it carries.

use std::time::Duration;

/// How much a step counts when the next one comes: some 30 steps make an estimate, so that it
/// follows a route that changes within a few seconds.
const MEMORY: f64 = 0.97;

/// How much the estimate before counts against one step with one draft. Little, so that the first
/// probe decides, but enough that two equal steps do not divide by zero.
const PRIOR_WEIGHT: f64 = 0.1;

/// A step that takes more than so many times what was expected was disturbed, for example by a
/// server that failed; it counts as if it had taken so long.
const OUTLIER: f64 = 4.0;

/// What one more row is taken to cost before it was measured, as a share of the arithmetic of a
/// single one: half, since rows that share a pass share the reading of the weights.
const ROW_SHARE: f64 = 0.5;

/// Seconds of a step, as a line over the drafts that it carries: least squares with forgetting.
#[derive(Debug, Clone, Default)]
pub(super) struct StepCost {
    weight: f64,
    drafts: f64,
    drafts_squared: f64,
    seconds: f64,
    drafts_by_seconds: f64,
    /// The slope as it was estimated last.
    slope: Option<f64>,
    /// Whether a step with drafts was among those observed.
    measured: bool,
}

impl StepCost {
    /// A step with so many drafts took so long, of which `compute` was arithmetic.
    pub(super) fn observe(&mut self, drafted: u32, took: Duration, compute: Duration) {
        let drafts = f64::from(drafted);
        let rows = drafts + 1.0;
        self.slope.get_or_insert(ROW_SHARE * compute.min(took).as_secs_f64() / rows);
        let mut seconds = took.as_secs_f64();
        if let Some(expected) = self.of(drafted) {
            seconds = seconds.min(expected * OUTLIER);
        }
        self.weight = self.weight * MEMORY + 1.0;
        self.drafts = self.drafts * MEMORY + drafts;
        self.drafts_squared = self.drafts_squared * MEMORY + drafts * drafts;
        self.seconds = self.seconds * MEMORY + seconds;
        self.drafts_by_seconds = self.drafts_by_seconds * MEMORY + drafts * seconds;
        if drafted > 0 {
            self.slope = Some(self.line().1);
            self.measured = true;
        }
    }

    /// Whether the cost of a draft is more than a guess.
    pub(super) const fn is_measured(&self) -> bool {
        self.measured
    }

    /// Seconds of a step without drafts, once there was a step.
    pub(super) fn plain(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.line().0)
    }

    /// Seconds that one more draft costs.
    pub(super) fn draft(&self) -> f64 {
        self.line().1
    }

    /// Seconds of a step with so many drafts.
    fn of(&self, drafted: u32) -> Option<f64> {
        Some(self.plain()? + f64::from(drafted) * self.draft())
    }

    /// Height and slope of the line, neither below zero.
    fn line(&self) -> (f64, f64) {
        let prior = self.slope.unwrap_or_default();
        if self.weight == 0.0 {
            return (0.0, prior);
        }
        // Drafts that never vary say nothing of the slope; the prior keeps the determinant above 0.
        let squared = self.drafts_squared + PRIOR_WEIGHT;
        let by_seconds = PRIOR_WEIGHT.mul_add(prior, self.drafts_by_seconds);
        let determinant = self.weight.mul_add(squared, -(self.drafts * self.drafts));
        let slope = self.weight.mul_add(by_seconds, -(self.drafts * self.seconds)) / determinant;
        let slope = slope.max(0.0);
        (((self.seconds - slope * self.drafts) / self.weight).max(0.0), slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: f64) -> Duration {
        Duration::from_secs_f64(milliseconds / 1e3)
    }

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 0.05 * expected
    }

    #[test]
    fn before_a_draft_was_sent_it_is_taken_to_cost_half_the_arithmetic() {
        let mut cost = StepCost::default();
        assert_eq!(cost.plain(), None);
        for _ in 0..3 {
            cost.observe(0, ms(200.0), ms(40.0));
        }
        assert!(near(cost.plain().unwrap(), 0.2));
        assert!(near(cost.draft(), 0.02));
    }

    #[test]
    fn a_few_steps_show_the_true_line_and_it_is_followed() {
        let mut cost = StepCost::default();
        for (fixed, each) in [(200.0, 3.0), (50.0, 10.0)] {
            for step in 0..200u32 {
                let drafts = [0, 4, 0, 1, 12, 0][step as usize % 6];
                cost.observe(drafts, ms(f64::from(drafts).mul_add(each, fixed)), ms(30.0));
            }
            assert!(near(cost.plain().unwrap(), fixed / 1e3), "{cost:?}");
            assert!(near(cost.draft(), each / 1e3), "{cost:?}");
        }
    }

    #[test]
    fn steps_of_one_kind_keep_what_was_learnt_of_the_other() {
        let mut cost = StepCost::default();
        for drafts in [0, 4, 0, 4] {
            cost.observe(drafts, ms(f64::from(drafts).mul_add(5.0, 100.0)), ms(80.0));
        }
        for _ in 0..500 {
            cost.observe(0, ms(100.0), ms(80.0));
        }
        assert!(near(cost.draft(), 0.005), "{cost:?}");
    }

    #[test]
    fn a_step_that_was_disturbed_moves_the_estimate_a_little() {
        let mut cost = StepCost::default();
        for _ in 0..40 {
            cost.observe(0, ms(100.0), ms(50.0));
        }
        cost.observe(0, ms(60_000.0), ms(50.0));
        assert!(cost.plain().unwrap() < 0.12);
    }
}
