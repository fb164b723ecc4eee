//! Magnitudes (DoRA) against stored results of PEFT, of a model with biases and of one without: logits,
//! gradients, the norms with which they begin, and one step of AdamW.

use std::fs;
use std::path::{Path, PathBuf};

use umbel_engine::HostedSpan;
use umbel_engine::train::{AdamW, Optimizer, TargetModule};

use crate::fixture::{Fixture, largest_difference};
use crate::lora::{GRADIENT_ERROR_MAX, LOSS_ERROR_MAX, Training, logits_of_session, stored_in};
use crate::{BINARY32_ERROR_MAX, span};

const MODELS: [&str; 2] = ["llama", "qwen2"];

/// Of a norm, beside it: PEFT sums in binary32.
const NORM_ERROR_MAX: f32 = 1e-6;

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training/dora").join(model)
}

/// The parameter of a module in PEFT.
fn parameter(block: u32, module: TargetModule, name: &str) -> String {
    let parent = match module {
        TargetModule::Gate | TargetModule::Up | TargetModule::Down => "mlp",
        TargetModule::Query | TargetModule::Key | TargetModule::Value | TargetModule::Output => {
            "self_attn"
        }
    };
    let module = module.name();
    format!("base_model.model.model.layers.{block}.{parent}.{module}.lora_{name}.default.weight")
}

#[test]
fn logits_with_magnitudes_are_the_stored_ones() {
    for model in MODELS {
        let training = Training::of(model, &folder(model), &[span(0, 1), span(1, 4)]);
        let (hidden, _) = training.forward();
        let logits = training.fixture.ends().logits_of_all(&hidden).unwrap().concat();
        let difference = largest_difference(&logits, &stored_in(&folder(model), "logits"));
        assert!(difference < BINARY32_ERROR_MAX, "{model}: {difference}");
        let changed = largest_difference(&logits, &training.fixture.logits);
        assert!(changed > 0.01, "{model}: it changes something: {changed}");
    }
}

#[test]
fn a_session_with_magnitudes_has_the_stored_logits() {
    for model in MODELS {
        let fixture = Fixture::open(model, "config.json");
        let logits = logits_of_session(&fixture, &folder(model));
        let difference = largest_difference(&logits, &stored_in(&folder(model), "logits"));
        assert!(difference < BINARY32_ERROR_MAX, "{model}: {difference}");
    }
}

#[test]
fn gradients_with_magnitudes_are_the_stored_ones() {
    for model in MODELS {
        let training = Training::of(model, &folder(model), &[span(0, 3), span(3, 4)]);
        let (_, results) = training.step();
        let mut count = 0;
        let found = results.iter().flat_map(|result| result.parameters.iter());
        for ((block, module), matrices) in found {
            for (name, found) in [
                ("A", matrices.a()),
                ("B", matrices.b()),
                ("magnitude_vector", matrices.magnitudes()),
            ] {
                let name = format!("grad.{}", parameter(block, module, name));
                let expected = stored_in(&folder(model), &name);
                let largest = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
                let error = largest_difference(found, &expected) / largest;
                assert!(error < GRADIENT_ERROR_MAX, "{model} {name}: {error}");
                count += 1;
            }
        }
        assert_eq!(count, 3 * 7 * 4, "every stored gradient was compared");
    }
}

#[test]
fn magnitudes_begin_as_those_of_peft() {
    for model in MODELS {
        let fixture = Fixture::open(model, "config.json");
        let hosted = HostedSpan::load(&fixture.config, &fixture.weights, span(0, 4)).unwrap();
        for block in 0..4 {
            for module in TargetModule::ALL {
                let norms = hosted.row_norms(block, module, &|| ()).unwrap();
                let name = format!("begun.{}", parameter(block, module, "magnitude_vector"));
                let expected = stored_in(&folder(model), &name);
                assert_eq!(norms.len(), expected.len(), "{model} {name}");
                for (norm, expected) in norms.iter().zip(&expected) {
                    let error = (norm / expected - 1.0).abs();
                    assert!(error < NORM_ERROR_MAX, "{model} {name}: {norm}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn the_loss_before_and_after_a_step_with_magnitudes_is_the_stored_one() {
    for model in MODELS {
        let golden = fs::read(folder(model).join("golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let number = |key: &str| golden[key].as_f64().unwrap();
        let settings = AdamW { weight_decay: number("weight_decay"), ..AdamW::default() };
        let mut training = Training::of(model, &folder(model), &[span(0, 2), span(2, 4)]);
        let (loss, results) = training.step();
        assert!((loss - number("loss")).abs() < LOSS_ERROR_MAX, "{model}: {loss}");
        for ((_, adapter), result) in training.hops.iter_mut().zip(&results) {
            let mut optimizer = Optimizer::new(settings, adapter);
            optimizer.step(adapter, &result.parameters, number("lr"), 1.0).unwrap();
        }
        let (after, _) = training.step();
        assert!((after - number("loss_after")).abs() < LOSS_ERROR_MAX, "{model}: {after}");
    }
}
