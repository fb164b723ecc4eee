//! Each filter by itself, and the draw against the distribution that it claims.

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 6] = [1.0, 3.0, -2.0, 3.0, 0.5, 2.0];

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(sampling).unwrap()
}

/// How often each token is drawn over many positions.
fn counts(sampling: Sampling, logits: &[f32], draws: u32) -> Vec<u32> {
    let sampler = sampler(sampling);
    let mut counts = vec![0; logits.len()];
    let history = vec![u32::MAX; draws as usize];
    for position in 0..draws as usize {
        let token = sampler.sample(&mut logits.to_vec(), &history[..position]).unwrap();
        counts[token as usize] += 1;
    }
    counts
}

#[test]
fn greedy_takes_the_smallest_of_equal_tokens() {
    assert_eq!(sampler(Sampling::greedy()).sample(&mut LOGITS.to_vec(), &[]), Ok(1));
}

#[test]
fn what_is_not_a_number_is_never_chosen() {
    let logits = [f32::NAN, -5.0, f32::NAN, f32::NEG_INFINITY];
    assert_eq!(sampler(Sampling::greedy()).sample(&mut logits.to_vec(), &[]), Ok(1));
    assert_eq!(counts(Sampling::with_temperature(100.0, 1), &logits, 50)[1], 50);
    assert_eq!(top_logits(&logits, 1), [(1, -5.0)]);
}

#[test]
fn where_nothing_is_a_number_nothing_is_chosen() {
    for sampling in [Sampling::greedy(), Sampling::with_temperature(1.0, 1)] {
        let sample = |logits: [f32; 4]| sampler(sampling.clone()).sample(&mut logits.to_vec(), &[]);
        assert_eq!(sample([f32::NAN; 4]), Err(NotNumbers));
        // A form that an answer is held to may leave one token, which the model thinks impossible.
        assert_eq!(sample([f32::NEG_INFINITY; 4]), Ok(0));
    }
}

#[test]
fn an_infinite_logit_wins() {
    let logits = [1.0, f32::INFINITY, 2.0];
    assert_eq!(counts(Sampling::with_temperature(1.0, 1), &logits, 20), [0, 20, 0]);
}

#[test]
fn draws_follow_the_softmax() {
    const DRAWS: u32 = 40_000;
    // Six standard deviations of a count that follows a binomial distribution at its widest.
    const DEVIATION_MAX: f64 = 600.0;
    let drawn = counts(Sampling::with_temperature(2.0, 9), &LOGITS, DRAWS);
    let weights = LOGITS.map(|logit| f64::from(logit / 2.0).exp());
    let sum: f64 = weights.iter().sum();
    for (count, weight) in drawn.iter().zip(weights) {
        let expected = f64::from(DRAWS) * weight / sum;
        assert!((f64::from(*count) - expected).abs() < DEVIATION_MAX, "{drawn:?}");
    }
}

#[test]
fn a_draw_depends_on_seed_and_position_alone() {
    let draw = |seed, history: &[u32]| {
        let sampler = sampler(Sampling::with_temperature(5.0, seed));
        sampler.sample(&mut LOGITS.to_vec(), history).unwrap()
    };
    for position in 0..40 {
        assert_eq!(draw(3, &vec![0; position]), draw(3, &vec![4; position]));
    }
    let at = |seed| (0..40).map(|position| draw(seed, &vec![0; position])).collect::<Vec<_>>();
    assert_ne!(at(3), at(4));
}

#[test]
fn top_k_keeps_the_k_likeliest() {
    let sampling = Sampling { top_k: 3, ..Sampling::with_temperature(10.0, 1) };
    let drawn = counts(sampling, &LOGITS, 300);
    assert!(
        drawn.iter().enumerate().all(|(token, &count)| (count > 0) == [1, 3, 5].contains(&token))
    );
    let one = Sampling { top_k: 1, ..Sampling::with_temperature(10.0, 1) };
    assert_eq!(counts(one, &LOGITS, 30)[1], 30);
}

#[test]
fn top_p_keeps_the_tokens_that_reach_it() {
    // Probabilities 0.5, 0.3, 0.15 and 0.05.
    let logits = [0.3f32, 0.5, 0.05, 0.15].map(f32::ln);
    let kept = |top_p| {
        let sampling = Sampling { top_p, ..Sampling::with_temperature(1.0, 1) };
        let mut kept: Vec<u32> =
            filter::keep(&logits, &sampling).iter().map(|&(token, _)| token).collect();
        kept.sort_unstable();
        kept
    };
    assert_eq!(kept(0.01), [1]);
    assert_eq!(kept(0.49), [1]);
    assert_eq!(kept(0.7), [0, 1]);
    assert_eq!(kept(0.9), [0, 1, 3]);
    assert_eq!(kept(1.0), [0, 1, 2, 3]);
}

#[test]
fn min_p_keeps_the_tokens_that_are_likely_enough() {
    let drawn = counts(
        Sampling { min_p: 0.25, ..Sampling::with_temperature(1.0, 1) },
        &[0.5f32, 0.3, 0.15, 0.05].map(f32::ln),
        300,
    );
    assert!(drawn[..3].iter().all(|&count| count > 0) && drawn[3] == 0, "{drawn:?}");
}

#[test]
fn repetition_makes_a_token_less_likely_once() {
    let penalized = |history: &[u32]| {
        let mut logits = LOGITS.to_vec();
        filter::penalize_repetition(&mut logits, history, 2.0);
        logits
    };
    assert_eq!(penalized(&[1, 2, 1, 1, 99]), [1.0, 1.5, -4.0, 3.0, 0.5, 2.0]);
    let greedy = sampler(Sampling { repetition_penalty: 2.0, ..Sampling::greedy() });
    assert_eq!(greedy.sample(&mut LOGITS.to_vec(), &[1]), Ok(3));
    assert_eq!(greedy.sample(&mut LOGITS.to_vec(), &[1, 3]), Ok(5));
}

#[test]
fn parameters_out_of_range_are_refused() {
    let greedy = Sampling::greedy;
    for temperature in [-0.1, f32::NAN, f32::INFINITY] {
        assert!(Sampler::new(Sampling { temperature, ..greedy() }).is_err());
    }
    for top_p in [0.0, 1.1, f32::NAN] {
        assert!(Sampler::new(Sampling { top_p, ..greedy() }).is_err());
    }
    for min_p in [-0.1, 1.1, f32::NAN] {
        assert!(Sampler::new(Sampling { min_p, ..greedy() }).is_err());
    }
    for repetition_penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(Sampler::new(Sampling { repetition_penalty, ..greedy() }).is_err());
    }
}

fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(any::<f32>(), 1..40)
}

proptest! {
    #[test]
    fn any_logits_give_a_token_of_the_vocabulary(
        mut logits in any_logits(),
        temperature in prop_oneof![Just(0.0f32), Just(f32::MIN_POSITIVE), 0.01f32..100.0],
        (top_k, top_p, min_p) in (0..50usize, 0.01f32..=1.0, 0.0f32..=1.0),
        repetition_penalty in 0.1f32..10.0,
        seed in any::<u64>(),
        history in proptest::collection::vec(0..50u32, 0..20),
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed };
        prop_assume!(check_numbers(&logits).is_ok());
        let vocabulary = logits.len();
        let token = sampler(sampling).sample(&mut logits, &history).unwrap();
        prop_assert!((token as usize) < vocabulary);
    }

    #[test]
    fn the_top_logits_are_the_first_of_all_sorted(logits in any_logits(), count in 0..50usize) {
        let mut sorted = filter::numbered(&logits);
        sorted.sort_by(larger_first);
        sorted.truncate(count);
        let bits = |ranked: &[(u32, f32)]| {
            ranked.iter().map(|&(token, logit)| (token, logit.to_bits())).collect::<Vec<_>>()
        };
        prop_assert_eq!(bits(&top_logits(&logits, count)), bits(&sorted));
    }
}
