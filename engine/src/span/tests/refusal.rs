//! What cannot be loaded or computed is refused, and nothing changes.

use super::*;

#[test]
fn a_pass_that_cannot_be_is_refused_and_leaves_the_table_as_it_was() {
    let world = World::new(Family::Llama, WeightType::F32);
    let hosted = world.host(span(1, 3));
    let mut elsewhere = world.open(span(0, 2));
    let refused = hosted.forward(&mut elsewhere, &model::hidden(1, 1)).unwrap_err();
    assert!(matches!(refused, ForwardError::NotHosted { .. }));

    let mut table = world.open(span(1, 3));
    let narrow = HiddenStates::from_values(vec![0.0; 8], 8).unwrap();
    let refused = hosted.forward(&mut table, &narrow).unwrap_err();
    assert!(matches!(refused, ForwardError::WrongHiddenSize { expected: 256, found: 8 }));

    hosted.forward(&mut table, &model::hidden(120, 1)).unwrap();
    let refused = hosted.forward(&mut table, &model::hidden(9, 1)).unwrap_err();
    assert!(matches!(refused, ForwardError::TableFull { tokens: 9, position: 120, capacity: 128 }));
    assert_eq!(table.position(), 120);
    hosted.forward(&mut table, &model::hidden(8, 1)).unwrap();
    assert_eq!(table.free_tokens(), 0);
}

#[test]
fn a_checkpoint_without_a_tensor_or_with_another_shape_is_refused() {
    let world = World::new(Family::Qwen2, WeightType::F32);
    let name = "model.layers.1.self_attn.k_proj.bias";
    let tensors = || world.weights.iter().map(|(name, weight)| (name.to_owned(), weight.clone()));
    let without: Weights = tensors().filter(|(tensor, _)| tensor != name).collect();
    assert!(HostedSpan::load(&world.config, &without, span(0, 1)).is_ok());
    let refused = HostedSpan::load(&world.config, &without, span(0, 2)).unwrap_err();
    assert!(refused.to_string().contains(name), "{refused}");

    let wider = ModelConfig { intermediate_size: 768, ..world.config.clone() };
    let refused = HostedSpan::load(&wider, &world.weights, span(0, 1)).unwrap_err();
    assert!(matches!(refused, LoadSpanError::Tensor(LoadTensorError::Shape { .. })), "{refused}");

    let refused = HostedSpan::load(&world.config, &world.weights, span(2, 4)).unwrap_err();
    assert_eq!(refused, LoadSpanError::NoSuchBlocks { span: span(2, 4), block_count: 3 });
}
