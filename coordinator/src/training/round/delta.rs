//! What a trainer has learned in a round, in a byte a value, and what these bytes leave out.

use sha2::{Digest as _, Sha256};

/// Values that share a scale: four bytes for 256 of them are little, and one large value spoils the
/// precision of few others.
pub const GROUP_VALUES: usize = umbel_protocol::averaging::GROUP_VALUES;

/// The largest scale: so that what it scales is a number.
const SCALE_MAX: f32 = f32::MAX / 128.0;

/// The largest step of a value, so that there are as many below zero as above.
const STEP_MAX: f32 = 127.0;

/// By how much each value has shrunk in a round: start less end, each a whole number from -127 to 127 times
/// the scale of its group.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    scales: Vec<f32>,
    steps: Vec<i8>,
}

impl Delta {
    /// A delta from its parts, as another peer has sent them; `None` where they are none: scales that are
    /// negative, no number or too large, or not one for each group.
    #[must_use]
    pub fn from_parts(scales: Vec<f32>, steps: Vec<i8>) -> Option<Self> {
        let fits = scales.len() == steps.len().div_ceil(GROUP_VALUES)
            && scales.iter().all(|scale| (0.0..=SCALE_MAX).contains(scale))
            && !steps.contains(&i8::MIN);
        fits.then_some(Self { scales, steps })
    }

    /// The scale of each group.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The whole number of each value.
    #[must_use]
    pub fn steps(&self) -> &[i8] {
        &self.steps
    }

    /// How many values it has.
    #[must_use]
    pub fn value_count(&self) -> usize {
        self.steps.len()
    }

    /// The values of a group.
    pub fn group(&self, group: usize) -> impl Iterator<Item = f32> {
        let steps = self.steps.chunks(GROUP_VALUES).nth(group).unwrap_or_default();
        let scale = self.scales.get(group).copied().unwrap_or_default();
        steps.iter().map(move |step| f32::from(*step) * scale)
    }

    /// SHA-256 over scales and steps.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        self.scales.iter().for_each(|scale| hash.update(scale.to_le_bytes()));
        for steps in self.steps.chunks(GROUP_VALUES) {
            let bytes: Vec<u8> = steps.iter().map(|step| step.to_le_bytes()[0]).collect();
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// What the deltas of the rounds so far have left out, which the next one makes up for: without it, what is
/// always below half a step would never be learned (Seide et al. 2014, 1-bit SGD).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Feedback(Vec<f32>);

impl Feedback {
    /// What is sent of `values` and of what was left out before, and what that leaves out. `None` where one
    /// of them is no number, or too large.
    #[must_use]
    pub fn narrow(&self, values: &[f32]) -> Option<(Delta, Self)> {
        let left_out = self.0.iter().copied().chain(std::iter::repeat(0.0));
        let mut wanted: Vec<f32> = values.iter().zip(left_out).map(|(v, left)| v + left).collect();
        let (mut scales, mut steps) = (Vec::new(), Vec::with_capacity(wanted.len()));
        for group in wanted.chunks_mut(GROUP_VALUES) {
            if group.iter().any(|value| !value.is_finite()) {
                return None;
            }
            let largest = group.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let scale = largest / STEP_MAX;
            scales.push(scale);
            for value in group {
                let step = if scale > 0.0 { *value / scale } else { 0.0 };
                #[expect(clippy::cast_possible_truncation, reason = "it is clamped")]
                let step = step.round().clamp(-STEP_MAX, STEP_MAX) as i8;
                steps.push(step);
                *value -= f32::from(step) * scale;
            }
        }
        Some((Delta::from_parts(scales, steps)?, Self(wanted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(delta: &Delta) -> Vec<f32> {
        (0..delta.scales().len()).flat_map(|group| delta.group(group).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_byte_a_value_is_within_half_a_step_of_the_largest_of_its_group() {
        let wanted: Vec<f32> = (0..600).map(|n| ((n * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let (delta, left) = Feedback::default().narrow(&wanted).unwrap();
        assert_eq!((delta.value_count(), delta.scales().len()), (600, 3));
        let half = delta.scales().iter().fold(0.0f32, |most, scale| most.max(*scale)) / 2.0;
        for ((wanted, sent), left) in wanted.iter().zip(values(&delta)).zip(&left.0) {
            assert!((wanted - sent).abs() <= half * 1.001);
            assert!((wanted - sent - left).abs() < 1e-6);
        }
        assert_eq!(values(&Feedback::default().narrow(&[0.0, -0.0]).unwrap().0), [0.0, 0.0]);
    }

    #[test]
    fn what_was_left_out_comes_later() {
        // A third of a step beside a value of 127 steps: no single delta has it.
        let wanted = [127.0, 1.0 / 3.0];
        let (mut feedback, mut sum) = (Feedback::default(), 0.0);
        for _ in 0..300 {
            let (delta, left) = feedback.narrow(&wanted).unwrap();
            sum += values(&delta)[1];
            feedback = left;
        }
        assert!((sum - 100.0).abs() < 1.0, "{sum}");
        assert_eq!(values(&Feedback::default().narrow(&wanted).unwrap().0)[1], 0.0);
    }

    #[test]
    fn what_is_no_delta_is_refused() {
        for (scales, steps) in [
            (vec![f32::NAN], vec![1]),
            (vec![-1.0], vec![1]),
            (vec![f32::INFINITY], vec![1]),
            (vec![f32::MAX], vec![1]),
            (vec![1.0, 1.0], vec![1]),
            (vec![], vec![1]),
            (vec![1.0], vec![i8::MIN]),
        ] {
            assert_eq!(Delta::from_parts(scales, steps), None);
        }
        let good = Delta::from_parts(vec![1.0], vec![1, -1]).unwrap();
        assert_ne!(good.digest(), Delta::from_parts(vec![1.0], vec![1, 1]).unwrap().digest());
        assert_eq!(Feedback::default().narrow(&[f32::NAN]), None);
        assert_eq!(Feedback::default().narrow(&[f32::INFINITY]), None);
    }
}
