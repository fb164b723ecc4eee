//! AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>), as PyTorch computes it.

use super::adapter::{Adapter, Parameters};
use super::narrow;

/// What is added to a norm that is divided by, as `clip_grad_norm_` of PyTorch does.
const NORM_MIN: f64 = 1e-6;

/// How an optimizer steps; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How much of the mean gradient is kept from step to step.
    pub beta1: f64,
    /// How much of the mean square is kept.
    pub beta2: f64,
    /// What is added to the root of the mean square.
    pub epsilon: f64,
    /// How much of each value is taken away in a step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// What the gradients of a step are multiplied by so that their norm is at most `max`.
///
/// `sum_of_squares` is that of the gradients in all blocks on all servers.
#[must_use]
pub fn clip_factor(sum_of_squares: f64, max: f64) -> f64 {
    (max / (sum_of_squares.sqrt() + NORM_MIN)).min(1.0)
}

/// The state of one adapter's optimizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    settings: AdamW,
    steps: u64,
    pub(super) means: Parameters,
    pub(super) mean_squares: Parameters,
}

impl Optimizer {
    /// Before the first step of `adapter`.
    #[must_use]
    pub fn new(settings: AdamW, adapter: &Adapter) -> Self {
        let zeros = adapter.parameters().zeros_like();
        Self { settings, steps: 0, means: zeros.clone(), mean_squares: zeros }
    }

    /// Where a checkpoint of [`Self::steps`] and [`Self::moments`] was taken of `adapter`'s training.
    ///
    /// # Errors
    /// [`StepError`] where the moments are not of this adapter, or such as no training has.
    pub fn resume(
        settings: AdamW,
        adapter: &Adapter,
        steps: u64,
        [means, mean_squares]: [Parameters; 2],
    ) -> Result<Self, StepError> {
        if [&means, &mean_squares].iter().any(|moments| !moments.is_like(adapter.parameters())) {
            return Err(StepError::OtherAdapter);
        }
        let squares = mean_squares.rows().flat_map(|(_, row)| row);
        if !means.sum_of_squares().is_finite()
            || squares.into_iter().any(|v| !(0.0..f32::INFINITY).contains(v))
        {
            return Err(StepError::NotFinite);
        }
        Ok(Self { settings, steps, means, mean_squares })
    }

    /// Counts as having taken so many steps.
    pub(super) const fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// How it steps.
    #[must_use]
    pub const fn settings(&self) -> AdamW {
        self.settings
    }

    /// Steps that were taken.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// The running means of gradients and of their squares: what a checkpoint keeps.
    #[must_use]
    pub const fn moments(&self) -> [&Parameters; 2] {
        [&self.means, &self.mean_squares]
    }

    /// Changes `adapter` by its `gradients`, each multiplied by `factor` first.
    ///
    /// # Errors
    /// [`StepError`] where the three are not of one adapter or a gradient is not finite; then nothing
    /// has changed.
    pub fn step(
        &mut self,
        adapter: &mut Adapter,
        gradients: &Parameters,
        learning_rate: f64,
        factor: f64,
    ) -> Result<(), StepError> {
        self.step_pausing(adapter, gradients, (learning_rate, factor), &|| ())
    }

    /// As [`Self::step`], with `pause` behind each matrix.
    pub(super) fn step_pausing(
        &mut self,
        adapter: &mut Adapter,
        gradients: &Parameters,
        (learning_rate, factor): (f64, f64),
        pause: &dyn Fn(),
    ) -> Result<(), StepError> {
        if !gradients.is_like(&self.means) || !adapter.parameters().is_like(&self.means) {
            return Err(StepError::OtherAdapter);
        }
        // As a number of binary32, in which each square is kept.
        let squares = narrow(gradients.sum_of_squares_pausing(pause) * factor * factor);
        if !squares.is_finite() || !learning_rate.is_finite() {
            return Err(StepError::NotFinite);
        }
        self.steps += 1;
        let rule = Rule::new(self.settings, self.steps, (learning_rate, factor));
        let parameters = adapter.parameters.rows_mut().zip(gradients.rows());
        let moments = self.means.rows_mut().zip(self.mean_squares.rows_mut());
        for (((_, values), (_, gradients)), ((_, means), (_, squares))) in parameters.zip(moments) {
            rule.apply(values, gradients, means, squares);
            pause();
        }
        Ok(())
    }
}

/// The state of the optimizer of a row of values of one's own, such as those of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct RowOptimizer {
    settings: AdamW,
    steps: u64,
    means: Vec<f32>,
    mean_squares: Vec<f32>,
}

impl RowOptimizer {
    /// Before the first step of so many values.
    #[must_use]
    pub fn new(settings: AdamW, values: usize) -> Self {
        Self { settings, steps: 0, means: vec![0.0; values], mean_squares: vec![0.0; values] }
    }

    /// Steps that were taken.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Changes `values` by their `gradients`, each multiplied by `factor` first.
    ///
    /// # Errors
    /// [`StepError`] where there are not as many, or a gradient is not finite; then nothing has changed.
    pub fn step(
        &mut self,
        values: &mut [f32],
        gradients: &[f32],
        (learning_rate, factor): (f64, f64),
    ) -> Result<(), StepError> {
        if values.len() != self.means.len() || gradients.len() != self.means.len() {
            return Err(StepError::OtherAdapter);
        }
        let squares = gradients.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        if !narrow(squares * factor * factor).is_finite() || !learning_rate.is_finite() {
            return Err(StepError::NotFinite);
        }
        self.steps += 1;
        let rule = Rule::new(self.settings, self.steps, (learning_rate, factor));
        rule.apply(values, gradients, &mut self.means, &mut self.mean_squares);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    factor: f32,
    kept: f32,
    beta1_rest: f32,
    beta2: f32,
    beta2_rest: f32,
    epsilon: f32,
    root_correction: f32,
    step: f32,
}

impl Rule {
    /// The step with this number, in numbers of binary32 as PyTorch has them.
    fn new(settings: AdamW, steps: u64, (learning_rate, factor): (f64, f64)) -> Self {
        let AdamW { beta1, beta2, epsilon, weight_decay } = settings;
        let steps = i32::try_from(steps).unwrap_or(i32::MAX);
        let correction = |beta: f64| 1.0 - beta.powi(steps);
        Self {
            factor: narrow(factor),
            kept: narrow(1.0 - learning_rate * weight_decay),
            beta1_rest: narrow(1.0 - beta1),
            beta2: narrow(beta2),
            beta2_rest: narrow(1.0 - beta2),
            epsilon: narrow(epsilon),
            root_correction: narrow(correction(beta2).sqrt()),
            step: narrow(learning_rate / correction(beta1)),
        }
    }

    fn apply(self, values: &mut [f32], gradients: &[f32], means: &mut [f32], squares: &mut [f32]) {
        let moments = means.iter_mut().zip(squares);
        for ((value, gradient), (mean, square)) in values.iter_mut().zip(gradients).zip(moments) {
            let gradient = gradient * self.factor;
            *mean += self.beta1_rest * (gradient - *mean);
            *square = *square * self.beta2 + self.beta2_rest * gradient * gradient;
            let root = square.sqrt() / self.root_correction + self.epsilon;
            *value = *value * self.kept - self.step * *mean / root;
        }
    }
}

/// A step that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Gradients or state of something else.
    #[error("adapter, gradients and optimizer are not of one shape")]
    OtherAdapter,
    /// A gradient that is infinite or no number: go back to the last good state.
    #[error("a gradient is not finite: the training has diverged, and the step was not taken")]
    NotFinite,
}

#[cfg(test)]
mod tests;
