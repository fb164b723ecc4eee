//! The loss against the reference's gradient, by candle's automatic differentiation.

use candle_core::{D, Tensor, Var};
use umbel_shard::layout::{EMBEDDING, FINAL_NORM};
use umbel_shard::{Family, Weight, WeightType, Weights};

use super::*;
use crate::kernel::Arithmetic;
use crate::reference::Reference;
use crate::span::tests::model;

const TOKENS: usize = 9;

fn encoded(shape: Vec<usize>, values: &[f32]) -> Weight {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Weight::new(WeightType::F32, shape, bytes).unwrap()
}

fn ends() -> (Ends, Weights) {
    let config = model::config(Family::Llama);
    let (vocabulary, size) = (config.vocabulary_size, config.hidden_size);
    let embedding = model::hidden(vocabulary, 3).to_values();
    let norm: Vec<f32> = model::hidden(1, 4).to_values().iter().map(|v| 1.0 + v * 0.1).collect();
    let weights: Weights = [
        (EMBEDDING.to_owned(), encoded(vec![vocabulary, size], &embedding)),
        (FINAL_NORM.to_owned(), encoded(vec![size], &norm)),
    ]
    .into_iter()
    .collect();
    (Ends::load_with(Arithmetic::Exact, &config, &weights).unwrap(), weights)
}

fn targets() -> Vec<Option<u32>> {
    (0..).take(TOKENS).map(|index| (index % 3 != 1).then_some(index * 7)).collect()
}

#[test]
fn loss_and_gradient_are_those_of_the_reference() {
    let (ends, weights) = ends();
    let hidden = model::hidden(TOKENS, 8);
    let loss = ends.loss(&hidden, &targets(), 0.25).unwrap();

    let config = model::config(Family::Llama);
    let reference = Reference { config: &config, weights: &weights };
    let input = Var::from_tensor(hidden.tensor()).unwrap();
    let logits = reference.logits(&input).unwrap();
    let total = logits.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
    let chosen = logits.broadcast_sub(&total).unwrap();
    let weights: Vec<f32> = targets()
        .into_iter()
        .flat_map(|target| (0..64).map(move |id| if target == Some(id) { -1.0 } else { 0.0 }))
        .collect();
    let weights = Tensor::from_vec(weights, (TOKENS, 64), input.device()).unwrap();
    let sum = (chosen * weights).unwrap().sum_all().unwrap();
    let gradients = (sum.clone() * 0.25).unwrap().backward().unwrap();
    let expected: Vec<f32> =
        gradients.get(&input).unwrap().flatten_all().unwrap().to_vec1().unwrap();

    let sum = f64::from(sum.to_scalar::<f32>().unwrap());
    assert_eq!(loss.targets, 6);
    assert!((loss.sum / sum - 1.0).abs() < 1e-5, "{} and {sum}", loss.sum);
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (found, expected) in loss.gradient.to_values().iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5 * largest, "{found}, not {expected}");
    }
}

#[test]
fn a_row_without_a_target_has_no_gradient() {
    let (ends, _) = ends();
    let loss = ends.loss(&model::hidden(TOKENS, 8), &targets(), 1.0).unwrap();
    for (row, target) in loss.gradient.to_values().chunks(256).zip(targets()) {
        assert_eq!(row.iter().all(|value| *value == 0.0), target.is_none());
    }
}

#[test]
fn rows_with_a_target_have_the_bits_that_they_have_alone() {
    let (ends, _) = ends();
    let (hidden, targets) = (model::hidden(TOKENS, 8), targets());
    let loss = ends.loss(&hidden, &targets, 0.25).unwrap();
    let rows = (0..TOKENS).filter(|row| targets[*row].is_some());
    let taught: Vec<_> = rows.map(|row| hidden.rows(row..row + 1).unwrap()).collect();
    let taught = HiddenStates::concat(&taught).unwrap();
    let alone: Vec<_> = targets.iter().copied().filter(Option::is_some).collect();
    let alone = ends.loss(&taught, &alone, 0.25).unwrap();

    assert_eq!((loss.sum.to_bits(), loss.targets), (alone.sum.to_bits(), alone.targets));
    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let (found, expected) = (loss.gradient.to_values(), alone.gradient.to_values());
    let mut expected = expected.chunks(256).map(bits);
    for (row, target) in found.chunks(256).zip(&targets) {
        let zeros = || bits(&[0.0; 256]);
        assert_eq!(bits(row), target.map_or_else(zeros, |_| expected.next().unwrap()));
    }
}

#[test]
fn what_a_row_without_a_target_holds_makes_no_difference() {
    let (ends, _) = ends();
    let hidden = model::hidden(TOKENS, 8);
    let mut values = hidden.to_values();
    let masked = values.chunks_mut(256).zip(targets()).filter(|(_, target)| target.is_none());
    masked.for_each(|(row, _)| row.fill(f32::NAN));
    let wild = HiddenStates::from_values(values, 256).unwrap();
    let loss = |hidden| ends.loss(hidden, &targets(), 1.0).unwrap();
    let (calm, wild) = (loss(&hidden), loss(&wild));
    assert_eq!(calm.sum.to_bits(), wild.sum.to_bits());
    assert_eq!(calm.gradient.to_values(), wild.gradient.to_values());
}

#[test]
fn the_sum_alone_has_the_bits_of_that_with_a_gradient() {
    let (ends, _) = ends();
    let hidden = model::hidden(TOKENS, 8);
    for targets in [targets(), vec![Some(3); TOKENS], vec![None; TOKENS]] {
        let loss = ends.loss(&hidden, &targets, 0.25).unwrap();
        let sum = ends.loss_sum(&hidden, &targets).unwrap();
        assert_eq!(sum.to_bits(), loss.sum.to_bits());
    }
    let refused = ends.loss_sum(&hidden, &targets()[1..]).unwrap_err();
    assert!(matches!(refused, LossError::Shape { .. }));
}

#[test]
fn targets_that_do_not_fit_are_refused() {
    let (ends, _) = ends();
    let hidden = model::hidden(TOKENS, 8);
    let refused = ends.loss(&hidden, &targets()[1..], 1.0).unwrap_err();
    assert!(matches!(refused, LossError::Shape { .. }));
    let refused = ends.loss(&hidden, &[Some(64); TOKENS], 1.0).unwrap_err();
    assert_eq!(refused, LossError::UnknownToken { id: 64, vocabulary_size: 64 });
    let narrow = HiddenStates::from_values(vec![0.0; 8], 8).unwrap();
    assert!(matches!(ends.loss(&narrow, &[None], 1.0), Err(LossError::Shape { .. })));
}

#[test]
fn the_gradient_through_the_final_norm_is_the_slope() {
    let (ends, _) = ends();
    let (hidden, weights) = (model::hidden(2, 8), model::hidden(2, 9));
    let gradient = ends.normed_gradient(&hidden, &weights).unwrap().to_values();
    let value = |values: Vec<f32>| {
        let hidden = HiddenStates::from_values(values, 256).unwrap();
        let normed: Vec<f32> = ends.normed(&hidden).unwrap().concat();
        let pairs = normed.iter().zip(weights.to_values());
        pairs.map(|(a, b)| f64::from(*a) * f64::from(b)).sum::<f64>()
    };
    let length = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let moved = |step: f32| {
        #[expect(clippy::cast_possible_truncation, reason = "steps are binary32")]
        let along = gradient.iter().map(|value| step * value / length as f32);
        hidden.to_values().iter().zip(along).map(|(value, along)| value + along).collect()
    };
    let slope = (value(moved(1e-2)) - value(moved(-1e-2))) / 2e-2;
    assert!((slope / length - 1.0).abs() < 1e-2, "{slope}, not {length}");
    let short = weights.rows(0..1).unwrap();
    assert!(matches!(ends.normed_gradient(&hidden, &short), Err(LossError::Shape { .. })));
}
