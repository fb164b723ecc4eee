//! Against candle's automatic differentiation of the reference.

use candle_core::Var;
use umbel_shard::Weight;

use super::*;
use crate::reference::{Reference, widen};

/// Rounding of binary32 over three blocks and back, beside the whole gradient.
pub(super) const ERROR_MAX: f64 = 2e-5;

/// Output and input's gradient of the blocks, each sequence by itself.
pub(super) fn reference(world: &World, weights: &Weights) -> [Vec<f32>; 2] {
    let reference = Reference { config: &world.config, weights };
    let (mut outputs, mut gradients) = (Vec::new(), Vec::new());
    let mut start = 0;
    for sequence in &world.sequences {
        let rows = start..start + sequence.tokens;
        start = rows.end;
        let rows_of = |states: &HiddenStates| states.rows(rows.clone()).unwrap();
        let input = Var::from_tensor(rows_of(&world.input).tensor()).unwrap();
        let boundaries = reference.boundaries(span(0, 3), &input).unwrap();
        let output = boundaries.last().unwrap();
        let value = (output * rows_of(&world.gradient).tensor()).unwrap().sum_all().unwrap();
        let found = value.backward().unwrap();
        let values = |tensor: &candle_core::Tensor| -> Vec<f32> {
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        outputs.extend(values(output));
        gradients.extend(values(found.get(&input).unwrap()));
    }
    [outputs, gradients]
}

#[test]
fn every_family_and_weight_type_has_the_gradients_of_the_reference() {
    for family in Family::ALL {
        for weight_type in WeightType::ALL {
            let world = World::new(family, weight_type);
            let (output, back) = world.train(&world.host(span(0, 3)), None);
            let [outputs, gradients] = reference(&world, &world.weights);
            let error = relative_error(&output.to_values(), &outputs);
            assert!(error < ERROR_MAX, "{family} {weight_type}, output: {error}");
            let error = relative_error(&back.input.to_values(), &gradients);
            assert!(error < ERROR_MAX, "{family} {weight_type}, gradient: {error}");
            assert_eq!(back.parameters, Parameters::default(), "nothing frozen has a gradient");
        }
    }
}

/// `W + scale B A` in the place of each matrix.
fn merged(world: &World) -> Weights {
    let merge = |(name, weight): (&str, &Weight)| {
        let mut values: Vec<f32> = widen(weight).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let place = world.adapter.parameters().iter().find(|((block, module), _)| {
            name.starts_with(&format!("model.layers.{block}."))
                && name.ends_with(&format!("{}.weight", module.name()))
        });
        if let Some((_, matrices)) = place {
            let columns = weight.columns();
            for (row, b) in values.chunks_exact_mut(columns).zip(matrices.b.chunks_exact(3)) {
                for (factor, a) in b.iter().zip(matrices.a.chunks_exact(columns)) {
                    let factor = factor * world.adapter.config().scale();
                    row.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
                }
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = weight.shape().to_vec();
        (name.to_owned(), Weight::new(WeightType::F32, shape, bytes).unwrap())
    };
    world.weights.iter().map(merge).collect()
}

#[test]
fn an_adapter_is_what_its_product_is_added_to_the_weights() {
    for family in Family::ALL {
        let world = World::new(family, WeightType::F32);
        let (output, back) = world.train(&world.host(span(0, 3)), Some(&world.adapter));
        let [outputs, gradients] = reference(&world, &merged(&world));
        let error = relative_error(&output.to_values(), &outputs);
        assert!(error < ERROR_MAX, "{family}, output: {error}");
        let error = relative_error(&back.input.to_values(), &gradients);
        assert!(error < ERROR_MAX, "{family}, gradient: {error}");
    }
}

#[test]
fn training_computes_what_a_session_does() {
    use crate::kv::arena::KvArena;
    for (family, weight_type) in [
        (Family::Qwen3, WeightType::F32),
        (Family::Mistral, WeightType::Q4K),
        (Family::Mixtral, WeightType::F32),
        (Family::Qwen3Moe, WeightType::Q4K),
    ] {
        let mut world = World::new(family, weight_type);
        world.sequences = vec![Sequence { tokens: TOKENS, dropout_seed: 0 }];
        let (config, weights) = (&world.config, &world.weights);
        let careful = Arithmetic::Careful;
        let hosted = HostedSpan::load_with(careful, config, weights, span(0, 3)).unwrap();
        let output = world.pass(&hosted, None).forward(&world.input).unwrap().output;
        let mut table = KvArena::new(&world.config, span(0, 3), 64).open(span(0, 3), 64).unwrap();
        let answered = hosted.forward(&mut table, &world.input).unwrap();
        let error = relative_error(&output.to_values(), &answered.to_values());
        assert!(error < ERROR_MAX * 10.0, "{family} {weight_type}: {error}");
    }
}
