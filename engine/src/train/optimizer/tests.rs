//! Steps against the rule in binary64.

use umbel_protocol::Span;
use umbel_shard::Family;

use super::*;
use crate::span::tests::model;
use crate::train::{AdapterConfig, TargetModule};

const RATE: f64 = 0.02;

fn adapter() -> Adapter {
    let config = AdapterConfig {
        rank: 2,
        alpha: 4.0,
        rank_stabilized: true,
        dropout: 0.0,
        target_modules: vec![TargetModule::Key],
        ..AdapterConfig::default()
    };
    let span = Span::new(1, 2).unwrap();
    Adapter::begin(config, &model::config(Family::Llama), span, 3).unwrap()
}

/// Gradients that are another multiple of the values in each step, and one for B, which is zero.
fn gradients(adapter: &Adapter, factor: f32) -> Parameters {
    let mut gradients = adapter.parameters().clone();
    for matrices in gradients.matrices.values_mut() {
        matrices.a.iter_mut().for_each(|value| *value *= factor);
        matrices.b.fill(factor);
    }
    gradients
}

#[test]
fn steps_follow_the_rule_with_decay_and_clipping() {
    let settings = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let mut adapter = adapter();
    let mut optimizer = Optimizer::new(settings, &adapter);
    let place = (1, TargetModule::Key);
    let (mut value, mut mean, mut square) =
        (f64::from(adapter.parameters().matrices[&place].a[5]), 0.0, 0.0);
    for step in 1..=20 {
        let gradients = gradients(&adapter, [0.5, -1.5, 3.0][step % 3]);
        let factor = clip_factor(gradients.sum_of_squares(), 1.0);
        let gradient = f64::from(gradients.matrices[&place].a[5]) * factor;
        optimizer.step(&mut adapter, &gradients, RATE, factor).unwrap();
        mean = 0.9 * mean + 0.1 * gradient;
        square = 0.999 * square + 0.001 * gradient * gradient;
        let step = i32::try_from(step).unwrap();
        let root = (square / (1.0 - 0.999_f64.powi(step))).sqrt() + 1e-8;
        value -= RATE * 0.1 * value;
        value -= RATE * (mean / (1.0 - 0.9_f64.powi(step))) / root;
        let found = f64::from(adapter.parameters().matrices[&place].a[5]);
        assert!((found - value).abs() < 1e-5 * (1.0 + value.abs()), "{step}: {found}, not {value}");
    }
    assert_eq!(optimizer.steps(), 20);
}

#[test]
fn only_norms_above_the_bound_are_clipped() {
    assert_eq!(clip_factor(0.25, 1.0).to_bits(), 1.0_f64.to_bits());
    assert!((clip_factor(16.0, 1.0) - 0.25).abs() < 1e-6);
    assert_eq!(clip_factor(0.0, 1.0).to_bits(), 1.0_f64.to_bits());
}

#[test]
fn gradients_that_are_not_finite_or_of_another_adapter_change_nothing() {
    let mut adapter = adapter();
    let mut optimizer = Optimizer::new(AdamW::default(), &adapter);
    let (before, state) = (adapter.clone(), optimizer.clone());
    let mut broken = gradients(&adapter, 1.0);
    broken.matrices.values_mut().for_each(|matrices| matrices.b[3] = f32::NAN);
    let refused = optimizer.step(&mut adapter, &broken, RATE, 1.0);
    assert_eq!(refused, Err(StepError::NotFinite));
    let refused = optimizer.step(&mut adapter, &Parameters::default(), RATE, 1.0);
    assert_eq!(refused, Err(StepError::OtherAdapter));
    let huge = gradients(&adapter, 1e20);
    assert_eq!(optimizer.step(&mut adapter, &huge, RATE, 1.0), Err(StepError::NotFinite));
    let sound = gradients(&adapter, 1.0);
    assert_eq!(optimizer.step(&mut adapter, &sound, f64::NAN, 1.0), Err(StepError::NotFinite));
    assert_eq!((adapter, optimizer), (before, state));
}

#[test]
fn a_training_that_is_resumed_takes_the_steps_of_one_that_was_not() {
    let mut adapter = adapter();
    let mut optimizer = Optimizer::new(AdamW::default(), &adapter);
    let step = |optimizer: &mut Optimizer, adapter: &mut Adapter, factor| {
        let gradients = gradients(adapter, factor);
        optimizer.step(adapter, &gradients, RATE, 1.0).unwrap();
    };
    step(&mut optimizer, &mut adapter, 0.5);
    let resume = |moments| Optimizer::resume(AdamW::default(), &adapter, 1, moments);
    let mut resumed = resume(optimizer.moments().map(Clone::clone)).unwrap();
    let mut resumed_adapter = adapter.clone();
    let [means, squares] = optimizer.moments().map(Clone::clone);
    let other = resume([means.clone(), Parameters::default()]);
    assert_eq!(other, Err(StepError::OtherAdapter));
    assert_eq!(resume([squares, means]), Err(StepError::NotFinite), "no square is negative");
    step(&mut optimizer, &mut adapter, -2.0);
    step(&mut resumed, &mut resumed_adapter, -2.0);
    assert_eq!((adapter, optimizer), (resumed_adapter, resumed));
}

#[test]
fn a_row_of_ones_own_steps_as_an_adapter_does() {
    let mut adapter = adapter();
    let mut optimizer = Optimizer::new(AdamW::default(), &adapter);
    let count = adapter.parameters().value_count();
    let mut row = adapter.parameters().read(0..count).unwrap();
    let mut alone = RowOptimizer::new(AdamW::default(), row.len());
    for scale in [1.0, -3.0] {
        let gradients = gradients(&adapter, scale);
        let of_row = gradients.read(0..count).unwrap();
        optimizer.step(&mut adapter, &gradients, RATE, 0.5).unwrap();
        alone.step(&mut row, &of_row, (RATE, 0.5)).unwrap();
        assert_eq!(adapter.parameters().read(0..count).unwrap(), row);
    }
    let before = (alone.clone(), row.clone());
    assert_eq!(alone.step(&mut row[1..], &[0.0], (RATE, 1.0)), Err(StepError::OtherAdapter));
    let mut broken = vec![0.0; row.len()];
    broken[3] = f32::NAN;
    assert_eq!(alone.step(&mut row, &broken, (RATE, 1.0)), Err(StepError::NotFinite));
    assert_eq!((alone, row), before, "nothing has changed");
}
