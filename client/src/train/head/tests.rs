//! Layers against differences, and files that are sound or not.

use std::fs;

use serde_json::json;

use super::*;

fn layer() -> Linear {
    Linear::begin(3, 5, AdamW::default(), 7).unwrap()
}

fn rows(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|place| (place as f32 * 1.7 + seed).sin()).collect()
}

#[test]
fn gradients_of_a_layer_are_slopes() {
    let (input, weights) = (rows(20, 0.3), rows(12, 0.9));
    let value = |layer: &Linear, input: &[f32]| -> f64 {
        let output = layer.forward(input).unwrap();
        output.iter().zip(&weights).map(|(a, b)| f64::from(a * b)).sum()
    };
    let mut layer = layer();
    let of_input = layer.backward(&input, &weights).unwrap();
    // A linear function has the same slope at any distance.
    for place in [0, 7, 19] {
        let mut moved = input.clone();
        moved[place] += 1.0;
        let slope = value(&layer, &moved) - value(&layer, &input);
        assert!((slope - f64::from(of_input[place])).abs() < 1e-5, "{place}: {slope}");
    }
    for place in [0, 14, 15, 17] {
        let mut moved = layer.clone();
        moved.values_mut()[place] += 1.0;
        let slope = value(&moved, &input) - value(&layer, &input);
        assert!((slope - f64::from(layer.gradients()[place])).abs() < 1e-5, "{place}: {slope}");
    }
}

#[test]
fn a_step_is_one_of_all_layers_and_a_gradient_that_is_no_number_is_none() {
    let (mut one, mut two) = (layer(), layer());
    for layer in [&mut one, &mut two] {
        layer.backward(&rows(5, 0.1), &[3.0, 0.0, 4.0]).unwrap();
    }
    let norm = one.gradients().iter().chain(two.gradients()).map(|v| v * v).sum::<f32>().sqrt();
    let found = step(&mut [&mut one, &mut two], 0.1, 1.0).unwrap();
    assert!((found - f64::from(norm)).abs() < 1e-5, "{found}, not {norm}");
    assert_eq!(one.gradients(), [0.0; 18]);
    assert_eq!(one, two);
    let before = one.clone();
    one.backward(&rows(5, 0.1), &[f32::NAN, 0.0, 0.0]).unwrap();
    assert!(matches!(step(&mut [&mut one], 0.1, 1.0), Err(HeadError::Step(_))));
    assert_eq!(one, before, "nothing has changed");
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut layer = layer();
    assert!(matches!(layer.forward(&[0.0; 6]), Err(HeadError::Shape { found: 6, width: 5 })));
    assert!(layer.backward(&[0.0; 5], &[0.0; 4]).is_err());
    assert!(matches!(Linear::begin(0, 5, AdamW::default(), 1), Err(HeadError::Empty)));
    let labels = |labels: &[&str]| {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Classifier::begin(labels, 4, AdamW::default(), 1)
    };
    assert!(matches!(labels(&["one"]), Err(HeadError::Labels)));
    assert!(matches!(labels(&["one", "one"]), Err(HeadError::Labels)));
    assert!(labels(&["one", "two"]).is_ok());
}

#[test]
fn heads_are_read_as_they_were_written_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(matches!(load(folder, AdamW::default()), Err(HeadError::File(_))));
    let labels = vec!["dry".to_owned(), "wet".to_owned()];
    let classifier = Classifier::begin(labels, 4, AdamW::default(), 3).unwrap();
    classifier.save(folder).unwrap();
    let load = |hidden_size| Classifier::load(folder, hidden_size, AdamW::default());
    assert_eq!(load(4).unwrap(), classifier);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "nothing else is left");
    assert!(matches!(load(8), Err(HeadError::Malformed { .. })), "another model's");
    save(folder, &json!({ "labels": ["a", "b", "c"] }), &[("score", classifier.score())]).unwrap();
    assert!(matches!(load(4), Err(HeadError::Malformed { what: "its labels" })));
    save(folder, &json!({ "labels": ["a", "b"] }), &[("other", classifier.score())]).unwrap();
    assert!(matches!(load(4), Err(HeadError::Malformed { what: "its layer" })));
    classifier.save(folder).unwrap();
    let whole = fs::read(folder.join(HEAD_FILE)).unwrap();
    for length in [0, 7, 30, whole.len() - 1] {
        fs::write(folder.join(HEAD_FILE), &whole[..length]).unwrap();
        assert!(matches!(load(4), Err(HeadError::Malformed { .. })), "{length} bytes");
    }
    let mut wild = whole.clone();
    let end = wild.len();
    wild[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.join(HEAD_FILE), wild).unwrap();
    assert!(matches!(load(4), Err(HeadError::Malformed { .. })), "no number");
}
