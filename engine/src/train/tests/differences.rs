//! Against differences: values a small step before and behind along a gradient.

use super::dora::decomposed;
use super::*;

/// Of a difference beside the gradient: the third derivative over a step, and rounding of binary32.
const ERROR_MAX: f64 = 1e-2;

/// A step whose square is far below the error that is allowed, and which moves the value by far more
/// than it is rounded.
const STEP: f32 = 2e-3;

/// The change of the value along `direction`, for one step.
fn change(value_at: impl Fn(f32) -> f64) -> f64 {
    (value_at(STEP) - value_at(-STEP)) / (2.0 * f64::from(STEP))
}

/// `direction` with the length 1, so that a step is [`STEP`] long, and the slope along it.
fn unit(gradient: &[f32]) -> (Vec<f32>, f64) {
    let length = product(gradient, gradient).sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "steps are taken in binary32")]
    let inverse = length.recip() as f32;
    (gradient.iter().map(|value| value * inverse).collect(), length)
}

fn stepped(values: &[f32], direction: &[f32], step: f32) -> Vec<f32> {
    values.iter().zip(direction).map(|(value, direction)| value + step * direction).collect()
}

/// A world without steps: where there are experts, each token goes through all of them, whatever moves.
fn smooth(family: Family) -> World {
    let mut world = World::new(family, WeightType::F32);
    if let Some(experts) = &mut world.config.experts {
        experts.per_token = experts.count;
    }
    world
}

fn assert_slopes(world: &World, adapter: &Adapter, what: &str) {
    let hosted = world.host(span(0, 3));
    let (_, back) = world.train(&hosted, Some(adapter));
    let (direction, slope) = unit(&back.input.to_values());
    let found = change(|step| {
        let input = stepped(&world.input.to_values(), &direction, step * 10.0);
        world.value(&hosted, adapter, &states(input, &world.input))
    }) / 10.0;
    assert!((found / slope - 1.0).abs() < ERROR_MAX, "{what}, input: {found}, not {slope}");
    for (place, gradients) in back.parameters.iter() {
        let has_magnitudes = adapter.config().weight_decomposed;
        let magnitudes = has_magnitudes.then(|| ("magnitudes", gradients.magnitudes()));
        let of_pair = [("A", gradients.a()), ("B", gradients.b())];
        for (matrix, gradient) in of_pair.into_iter().chain(magnitudes) {
            let (direction, slope) = unit(gradient);
            let found = change(|step| {
                let mut moved = adapter.clone();
                let matrices = moved.parameters.matrices.get_mut(&place).unwrap();
                // What is changed like this leaves the norms as they are, which are no part of a gradient.
                let values = match matrix {
                    "A" => &mut matrices.a,
                    "B" => &mut matrices.b,
                    _ => {
                        matrices.computed.forget();
                        &mut matrices.magnitudes
                    }
                };
                *values = stepped(values, &direction, step);
                world.value(&hosted, &moved, &world.input)
            });
            let error = (found / slope - 1.0).abs();
            assert!(error < ERROR_MAX, "{what}, {matrix} of {place:?}: {found}, not {slope}");
        }
    }
    assert_eq!(back.parameters.iter().count(), 3 * model::targets(&world.config).len(), "{what}");
}

#[test]
fn gradients_are_slopes_in_every_family() {
    for family in Family::ALL {
        let world = smooth(family);
        assert_slopes(&world, &world.adapter, &family.to_string());
    }
}

#[test]
fn gradients_are_slopes_with_every_type_of_weights() {
    for weight_type in WeightType::ALL {
        let world = World::new(Family::Qwen3, weight_type);
        assert_slopes(&world, &world.adapter, &weight_type.to_string());
    }
}

/// One of the two sequences has as many tokens as the prompt, and the other more.
#[test]
fn gradients_of_the_prompts_of_blocks_are_slopes() {
    for family in Family::ALL {
        let world = smooth(family);
        let hosted = world.host(span(0, 3));
        let adapter = prompts(&world.config, 7);
        let (_, back) = world.train(&hosted, Some(&adapter));
        assert_eq!(back.parameters.block_prompts.len(), 3, "{family}");
        for (block, gradient) in &back.parameters.block_prompts {
            let (direction, slope) = unit(gradient);
            let found = change(|step| {
                let mut moved = adapter.clone();
                let values = moved.parameters.block_prompts.get_mut(block).unwrap();
                *values = stepped(values, &direction, step);
                world.value(&hosted, &moved, &world.input)
            });
            let error = (found / slope - 1.0).abs();
            assert!(error < ERROR_MAX, "{family}, block {block}: {found}, not {slope}");
        }
    }
}

#[test]
fn gradients_of_magnitudes_are_slopes() {
    for family in Family::ALL {
        for dropout in [0.0, 0.3] {
            let world = smooth(family);
            let what = format!("{family}, dropout {dropout}");
            assert_slopes(&world, &decomposed(&world, dropout), &what);
        }
    }
}

#[test]
fn gradients_are_slopes_under_dropout() {
    let world = World::new(Family::Qwen2, WeightType::F32);
    assert_slopes(&world, &adapter(&world.config, 0.3), "dropout");
}
