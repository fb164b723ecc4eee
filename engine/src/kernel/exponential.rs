//! The exponential function, as arithmetic that compilers turn into vectors.

/// Beyond this `e^x` is no normal number: `ln` of the smallest one, 2^-126.
const SMALLEST: f32 = -87.336_54;

/// Beyond this `e^x` is infinite: `ln` of the largest number.
const LARGEST: f32 = 88.722_84;

/// 1.5 times 2^23: adding it rounds to the nearest integer and leaves that in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// `ln 2` in two parts; the first has so few bits that its product with an exponent is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// `e^x`, within 2 units in the last place; 0 where it would be smaller than any normal number.
///
/// `x` is split into `n ln 2 + r` with `|r| <= ln(2) / 2`, and `e^r` is the polynomial of `expf` in
/// Cephes (<https://www.netlib.org/cephes/>). There is no fused operation in it, so the result has the
/// same bits with every set of instructions.
#[inline(always)]
pub(crate) fn exponential(x: f32) -> f32 {
    // Comparisons, not `clamp`, so that what is no number stays so.
    let clamped = if x < SMALLEST { SMALLEST } else { x };
    let clamped = if clamped > LARGEST { LARGEST } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = clamped - n * LN_2[0] - n * LN_2[1];
    let mut sum = 1.987_569_2e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * r + coefficient;
    }
    let power = sum * (r * r) + r + 1.0;
    // Twice half the exponent: 2^128 is no number of its own, but `power` may be below 1.
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed();
    let half = exponent >> 1;
    let result = power * power_of_two(half) * power_of_two(exponent - half);
    let result = if x < SMALLEST { 0.0 } else { result };
    if x > LARGEST { f32::INFINITY } else { result }
}

/// `2^exponent` for exponents of normal numbers.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) << 23).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In units in the last place: the polynomial's own error, and three roundings.
    const ERROR_MAX: f64 = 2.0;

    #[test]
    fn it_is_the_exponential_within_two_units_in_the_last_place() {
        for step in -870_000..=887_000 {
            let x = step as f32 / 10_000.0;
            let exact = f64::from(x).exp();
            let unit = exact * f64::from(f32::EPSILON);
            let error = (f64::from(exponential(x)) - exact).abs() / unit;
            assert!(error <= ERROR_MAX, "e^{x}: {error} units");
        }
        assert_eq!(exponential(0.0), 1.0, "so that an unchanged maximum changes nothing");
    }

    #[test]
    fn what_lies_beyond_the_numbers_is_zero_infinite_or_no_number() {
        assert_eq!(exponential(-88.0), 0.0);
        assert_eq!(exponential(f32::NEG_INFINITY), 0.0);
        assert_eq!(exponential(89.0), f32::INFINITY);
        assert_eq!(exponential(f32::INFINITY), f32::INFINITY);
        assert!(exponential(f32::NAN).is_nan());
    }
}
