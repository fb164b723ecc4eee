//! Passes that are not computed.

use std::cell::Cell;

use super::*;

#[test]
fn what_does_not_fit_is_refused_with_what_is_wrong() {
    let world = World::new(Family::Llama, WeightType::F32);
    let hosted = world.host(span(1, 3));
    let sequences = &world.sequences;
    let new = |blocks, adapter, sequences| {
        TrainingPass::new(&hosted, blocks, adapter, sequences).map(|_| ()).unwrap_err()
    };
    assert!(matches!(new(span(0, 2), None, sequences), TrainError::NotHosted { .. }));
    assert_eq!(new(span(1, 2), None, &[]), TrainError::NoToken);
    let empty = [Sequence { tokens: 0, dropout_seed: 0 }];
    assert_eq!(new(span(1, 2), None, &empty), TrainError::NoToken);
    let part = world.adapter.part(span(1, 2)).unwrap();
    assert!(matches!(new(span(1, 3), Some(&part), sequences), TrainError::NotAdapted { .. }));

    let pass = TrainingPass::new(&hosted, span(1, 3), None, sequences).unwrap();
    let short = world.input.rows(0..TOKENS - 1).unwrap();
    assert!(matches!(pass.forward(&short), Err(TrainError::Shape { .. })));
    let narrow = HiddenStates::from_values(vec![0.0; TOKENS * 4], 4).unwrap();
    assert!(matches!(pass.forward(&narrow), Err(TrainError::Shape { .. })));
    let inputs = pass.forward(&world.input).unwrap().inputs;
    let refused = pass.backward(&inputs[..1], &world.gradient).unwrap_err();
    assert_eq!(refused, TrainError::Inputs { found: 1, expected: 2 });
    assert!(matches!(pass.backward(&inputs, &short), Err(TrainError::Shape { .. })));
    let mixed = [inputs[0].clone(), short];
    assert!(matches!(pass.backward(&mixed, &world.gradient), Err(TrainError::Shape { .. })));
}

#[test]
fn a_pass_is_given_up_between_two_blocks() {
    let world = World::new(Family::Llama, WeightType::F32);
    let hosted = world.host(span(0, 3));
    let asked = Cell::new(0);
    let is_over = || asked.replace(asked.get() + 1) > 0;
    let inputs = world.pass(&hosted, None).forward(&world.input).unwrap().inputs;
    let pass = || {
        asked.set(0);
        world.pass(&hosted, None).until(&is_over)
    };
    assert_eq!(pass().forward(&world.input).unwrap_err(), TrainError::Over);
    assert_eq!(asked.get(), 2, "one block was computed, and no more");
    assert_eq!(pass().backward(&inputs, &world.gradient).unwrap_err(), TrainError::Over);
    assert_eq!(asked.get(), 2);
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let world = World::new(Family::Llama, WeightType::F32);
    let mut wider = world.config.clone();
    wider.intermediate_size *= 2;
    let other = adapter(&wider, 0.0);
    let hosted = world.host(span(0, 3));
    let refused = TrainingPass::new(&hosted, span(0, 3), Some(&other), &world.sequences);
    let refused = refused.map(|_| ()).unwrap_err();
    let expected = TrainError::OtherModel {
        block: 0,
        module: TargetModule::Gate,
        expected: [512, 256],
        found: [1024, 256],
    };
    assert_eq!(refused, expected);
}

#[test]
fn values_that_are_no_numbers_harm_only_their_own_sequence() {
    let world = World::new(Family::Llama, WeightType::F32);
    let hosted = world.host(span(0, 3));
    let mut values = world.input.to_values();
    values[0] = f32::NAN;
    let output = world.pass(&hosted, None).forward(&states(values, &world.input)).unwrap().output;
    let start = world.sequences[0].tokens * world.input.hidden_size();
    assert!(output.to_values()[start..].iter().all(|value| value.is_finite()));
    assert!(output.to_values()[..start].iter().any(|value| value.is_nan()));
}
