//! What is computed value by value.

use super::exponential::exponential;
use super::{InstructionSet, PARALLEL_WORK_MIN, parallel};

/// A value costs about as much as this many multiplications: an exponential and a division.
const VALUE_WORK: usize = 16;

/// `gate = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`: the gate of the MLP of Llama
/// (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).
///
/// # Panics
/// Where the slices differ in length.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    swiglu_with(InstructionSet::detected(), gate, up);
}

/// As [`swiglu`], with the instructions of `set`. All sets give the same bits.
///
/// # Panics
/// Where the slices differ in length.
pub fn swiglu_with(set: InstructionSet, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one gate for each value");
    let share = PARALLEL_WORK_MIN / VALUE_WORK;
    parallel::for_each(gate.chunks_mut(share).zip(up.chunks(share)), |(gate, up)| match set {
        InstructionSet::Portable => self::gate(gate, up),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(avx2) => avx2.gate(gate, up),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(avx512) => avx512.gate(gate, up),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx(amx) => amx.avx512().gate(gate, up),
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon(_) => self::gate(gate, up),
    });
}

/// Adds `other` to `values`.
///
/// # Panics
/// Where the slices differ in length.
pub fn add(values: &mut [f32], other: &[f32]) {
    assert_eq!(values.len(), other.len(), "one value is added to each");
    let shares = values.chunks_mut(PARALLEL_WORK_MIN).zip(other.chunks(PARALLEL_WORK_MIN));
    parallel::for_each(shares, |(values, other)| {
        values.iter_mut().zip(other).for_each(|(value, other)| *value += other);
    });
}

/// One thread's share of [`swiglu`].
#[inline(always)]
pub(super) fn gate(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exponential(-*gate)) * up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative: two units of the exponential, and the roundings of a sum, a quotient and a product.
    const ERROR_MAX: f64 = 6.0 * f32::EPSILON as f64;

    #[test]
    fn a_gate_lets_through_what_silu_says() {
        let gate: Vec<f32> = (-4000..4000).map(|step| step as f32 / 50.0).collect();
        let up: Vec<f32> = (0..gate.len()).map(|index| 1.5 - index as f32 / 1000.0).collect();
        let mut output = gate.clone();
        swiglu(&mut output, &up);
        for ((&gate, &up), &output) in gate.iter().zip(&up).zip(&output) {
            let (gate, up) = (f64::from(gate), f64::from(up));
            let exact = gate / (1.0 + (-gate).exp()) * up;
            let error = (f64::from(output) - exact).abs();
            assert!(error <= ERROR_MAX * exact.abs(), "{gate}: {output}, not {exact}");
        }
    }

    #[test]
    fn every_instruction_set_and_every_share_gives_the_same_bits() {
        let gate: Vec<f32> = (0..5001).map(|index| (index as f32 * 0.37).sin() * 20.0).collect();
        let up: Vec<f32> = (0..5001).map(|index| (index as f32 * 0.11).cos()).collect();
        let mut portable = gate.clone();
        swiglu_with(InstructionSet::Portable, &mut portable, &up);
        for set in InstructionSet::all() {
            let mut together = gate.clone();
            swiglu_with(set, &mut together, &up);
            assert_eq!(together, portable);
        }
        for (index, &value) in portable.iter().enumerate() {
            let mut alone = [gate[index]];
            swiglu(&mut alone, &up[index..=index]);
            assert_eq!(alone[0].to_bits(), value.to_bits());
        }
    }

    #[test]
    fn far_gates_are_shut_or_open_and_what_is_no_number_shows() {
        let gate = [-200.0, 200.0, f32::NAN, 0.0];
        let mut output = gate;
        swiglu(&mut output, &[1.0, 2.0, 1.0, 1.0]);
        assert_eq!((output[0], output[1], output[3]), (0.0, 400.0, 0.0));
        assert!(output[2].is_nan());
    }

    #[test]
    fn a_residual_is_added_to_each_value() {
        let mut values = [1.0, 2.0];
        add(&mut values, &[0.5, -2.0]);
        assert_eq!(values, [1.5, 0.0]);
    }
}
