//! The gradient of normalization by the root mean square.

use crate::kernel::parallel::for_each;
use crate::operation::rms_norm::RmsNorm;

use super::dense::dot;

/// Groups of values that one thread takes: some thousand values at the sizes that models have.
const SHARE_GROUPS: usize = 16;

/// Adds the gradient of the input of `norm` to `output`, for each group of values that it divides.
///
/// With `y = w x / r` and `r` the root of the mean square of the `n` values of `x`, the gradient is
/// `(g w - x (g w . x) / (n r^2)) / r`, where `g` is that of `y`.
pub(super) fn add_gradient(norm: &RmsNorm, input: &[f32], gradient: &[f32], output: &mut [f32]) {
    let (weight, epsilon) = (norm.weight(), norm.epsilon());
    let size = weight.len();
    assert_eq!(input.len() % size, 0, "the input has whole groups");
    assert!(input.len() == gradient.len() && input.len() == output.len(), "all have one size");
    let share = SHARE_GROUPS * size;
    let shares = output.chunks_mut(share).zip(input.chunks(share)).zip(gradient.chunks(share));
    for_each(shares, |((output, input), gradient)| {
        let groups = output.chunks_exact_mut(size).zip(input.chunks_exact(size));
        let mut scaled = vec![0.0; size];
        for ((output, input), gradient) in groups.zip(gradient.chunks_exact(size)) {
            for ((scaled, gradient), weight) in scaled.iter_mut().zip(gradient).zip(weight) {
                *scaled = gradient * weight;
            }
            let mean = dot(input, input) / size as f32 + epsilon;
            let inverse = 1.0 / mean.sqrt();
            let along = dot(&scaled, input) / (size as f32 * mean);
            for ((output, input), scaled) in output.iter_mut().zip(input).zip(&scaled) {
                *output += (scaled - input * along) * inverse;
            }
        }
    });
}
