//! The gradient of the gated activation of the MLP.

use crate::kernel::exponential;
use crate::kernel::parallel::for_each;

/// Values that one thread takes: an exponential and a division each.
const SHARE_VALUES: usize = 2048;

/// From the gradient of `silu(gate) * up` to those of `gate` and `up`.
///
/// `silu(x) = x s(x)` with the logistic function `s`, whose derivative is `s(x) (1 - s(x))`.
pub(super) fn gradients(gate: &[f32], up: &[f32], gradient: &[f32]) -> [Vec<f32>; 2] {
    let mut results = [vec![0.0; gate.len()], vec![0.0; gate.len()]];
    let [of_gate, of_up] = &mut results;
    let outputs = of_gate.chunks_mut(SHARE_VALUES).zip(of_up.chunks_mut(SHARE_VALUES));
    let inputs = gate.chunks(SHARE_VALUES).zip(up.chunks(SHARE_VALUES));
    let shares = outputs.zip(inputs).zip(gradient.chunks(SHARE_VALUES));
    for_each(shares, |(((of_gate, of_up), (gate, up)), gradient)| {
        for (index, gradient) in gradient.iter().enumerate() {
            let (gate, up) = (gate[index], up[index]);
            let logistic = 1.0 / (1.0 + exponential(-gate));
            of_up[index] = gradient * (gate * logistic);
            of_gate[index] = gradient * up * (logistic * (1.0 + gate * (1.0 - logistic)));
        }
    });
    results
}
