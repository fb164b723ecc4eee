//! A LoRA against stored results of PEFT: logits, gradients, and one step of AdamW.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use umbel_engine::train::{
    AdamW, Adapter, Backward, Optimizer, PeftFiles, Sequence, TargetModule, TrainingPass,
};
use umbel_engine::{HiddenStates, HostedSpan, KvArena};
use umbel_protocol::Span;

use crate::fixture::{Fixture, largest_difference};
use crate::{BINARY32_ERROR_MAX, span};

/// Of a gradient, beside the largest value of its tensor: sums of some hundred terms in another order.
pub(crate) const GRADIENT_ERROR_MAX: f32 = 1e-4;

/// Of the loss before and after the step.
pub(crate) const LOSS_ERROR_MAX: f64 = 1e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama/lora")
}

/// The model, the adapter as servers of `split` hold it, and the prompt as a microbatch.
pub(crate) struct Training {
    pub(crate) fixture: Fixture,
    pub(crate) hops: Vec<(HostedSpan, Adapter)>,
    sequences: [Sequence; 1],
}

impl Training {
    fn new(split: &[Span]) -> Self {
        Self::of("llama", &folder(), split)
    }

    /// The same of another model with the adapter in `folder`.
    pub(crate) fn of(model: &str, folder: &Path, split: &[Span]) -> Self {
        let fixture = Fixture::open(model, "config.json");
        let files = PeftFiles::read(folder, &fixture.config).unwrap();
        let hop = |&span: &Span| {
            let hosted = HostedSpan::load(&fixture.config, &fixture.weights, span).unwrap();
            (hosted, Adapter::from_peft(&files, &fixture.config, span).unwrap())
        };
        let hops = split.iter().map(hop).collect();
        let sequences = [Sequence { tokens: fixture.prompt.len(), dropout_seed: 0 }];
        Self { fixture, hops, sequences }
    }

    /// What left the last block, and what entered each block of each hop.
    pub(crate) fn forward(&self) -> (HiddenStates, Vec<Vec<HiddenStates>>) {
        let mut hidden = self.fixture.ends().embed(&self.fixture.prompt).unwrap();
        let mut inputs = Vec::new();
        for (hosted, adapter) in &self.hops {
            let pass = self.pass(hosted, adapter).forward(&hidden).unwrap();
            inputs.push(pass.inputs);
            hidden = pass.output;
        }
        (hidden, inputs)
    }

    fn pass<'a>(&'a self, hosted: &'a HostedSpan, adapter: &'a Adapter) -> TrainingPass<'a> {
        TrainingPass::new(hosted, hosted.span(), Some(adapter), &self.sequences).unwrap()
    }

    /// The mean loss of each token by those before it, and the gradients of each hop.
    pub(crate) fn step(&self) -> (f64, Vec<Backward>) {
        let (hidden, inputs) = self.forward();
        let next = self.fixture.prompt[1..].iter().copied().map(Some);
        let targets: Vec<Option<u32>> = next.chain([None]).collect();
        let weight = 1.0 / (targets.len() - 1) as f32;
        let loss = self.fixture.ends().loss(&hidden, &targets, weight).unwrap();
        let mut gradient = loss.gradient;
        let mut results = Vec::new();
        for ((hosted, adapter), inputs) in self.hops.iter().zip(&inputs).rev() {
            let result = self.pass(hosted, adapter).backward(inputs, &gradient).unwrap();
            gradient = result.input.clone();
            results.push(result);
        }
        results.reverse();
        (loss.sum / loss.targets as f64, results)
    }
}

fn stored(name: &str) -> Vec<f32> {
    stored_in(&folder(), name)
}

pub(crate) fn stored_in(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(folder.join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (values, _) = tensors.tensor(name).unwrap().data().as_chunks();
    values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
fn logits_with_an_adapter_are_the_stored_ones() {
    let training = Training::new(&[span(0, 4)]);
    let (hidden, _) = training.forward();
    let logits = training.fixture.ends().logits_of_all(&hidden).unwrap().concat();
    let difference = largest_difference(&logits, &stored("logits"));
    assert!(difference < BINARY32_ERROR_MAX, "{difference}");
    assert!(largest_difference(&logits, &training.fixture.logits) > 0.01, "it changes something");
}

/// The logits of a fixture's prompt in a session with the adapter in a folder.
pub(crate) fn logits_of_session(fixture: &Fixture, folder: &Path) -> Vec<f32> {
    let files = PeftFiles::read(folder, &fixture.config).unwrap();
    let hosted = HostedSpan::load(&fixture.config, &fixture.weights, span(0, 4)).unwrap();
    let adapter = Adapter::from_peft(&files, &fixture.config, span(0, 4)).unwrap();
    let mut table = KvArena::new(&fixture.config, span(0, 4), 64).open(span(0, 4), 64).unwrap();
    hosted.adapt(&mut table, Arc::new(adapter)).unwrap();
    let hidden = fixture.ends().embed(&fixture.prompt).unwrap();
    let mut logits = Vec::new();
    // The prompt in two steps, and its last token alone.
    let (half, last) = (fixture.prompt.len() / 2, fixture.prompt.len() - 1);
    for rows in [0..half, half..last, last..last + 1] {
        let output = hosted.forward(&mut table, &hidden.rows(rows).unwrap()).unwrap();
        logits.extend(fixture.ends().logits_of_all(&output).unwrap().concat());
    }
    logits
}

#[test]
fn a_session_with_an_adapter_has_the_stored_logits() {
    let fixture = Fixture::open("llama", "config.json");
    let difference = largest_difference(&logits_of_session(&fixture, &folder()), &stored("logits"));
    assert!(difference < BINARY32_ERROR_MAX, "{difference}");
}

#[test]
fn gradients_are_the_stored_ones() {
    let training = Training::new(&[span(0, 1), span(1, 4)]);
    let (_, results) = training.step();
    let mut count = 0;
    for ((block, module), matrices) in results.iter().flat_map(|result| result.parameters.iter()) {
        for (matrix, found) in [("A", matrices.a()), ("B", matrices.b())] {
            let name = format!(
                "grad.base_model.model.model.layers.{block}.self_attn.{}.lora_{matrix}.default.weight",
                module.name()
            );
            let expected = stored(&name);
            let largest = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
            let error = largest_difference(found, &expected) / largest;
            assert!(error < GRADIENT_ERROR_MAX, "{name}: {error}");
            count += 1;
        }
    }
    assert_eq!(count, 16, "every stored gradient was compared");
}

#[test]
fn the_loss_before_and_after_a_step_is_the_stored_one() {
    let golden = fs::read(folder().join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let number = |key: &str| golden[key].as_f64().unwrap();
    let betas = golden["betas"].as_array().unwrap();
    let settings = AdamW {
        beta1: betas[0].as_f64().unwrap(),
        beta2: betas[1].as_f64().unwrap(),
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
    };
    let mut training = Training::new(&[span(0, 2), span(2, 4)]);
    let (loss, results) = training.step();
    assert!((loss - number("loss")).abs() < LOSS_ERROR_MAX, "{loss}");
    for ((_, adapter), result) in training.hops.iter_mut().zip(&results) {
        let mut optimizer = Optimizer::new(settings, adapter);
        optimizer.step(adapter, &result.parameters, number("lr"), 1.0).unwrap();
    }
    let (after, _) = training.step();
    assert!((after - number("loss_after")).abs() < LOSS_ERROR_MAX, "{after}");
}

#[test]
fn a_split_changes_no_bit_of_a_gradient() {
    let whole = Training::new(&[span(0, 4)]).step();
    let parts = Training::new(&[span(0, 1), span(1, 3), span(3, 4)]).step();
    assert_eq!(whole.0.to_bits(), parts.0.to_bits());
    let bits = |results: &[Backward]| -> Vec<u32> {
        let all = results.iter().flat_map(|result| result.parameters.iter());
        let values = all.flat_map(|(_, matrices)| [matrices.a(), matrices.b()].concat());
        let input = results[0].input.to_values();
        values.chain(input).map(f32::to_bits).collect()
    };
    assert_eq!(bits(&whole.1), bits(&parts.1));
}

#[test]
fn an_adapter_that_is_written_and_read_is_the_same() {
    let config = Fixture::open("llama", "config.json").config;
    let files = PeftFiles::read(&folder(), &config).unwrap();
    let adapter = Adapter::from_peft(&files, &config, span(0, 4)).unwrap();
    assert_eq!(adapter.config().target_modules, [TargetModule::Query, TargetModule::Value]);
    let scratch = tempfile::tempdir().unwrap();
    adapter.to_peft().write(&scratch.path().join("adapter")).unwrap();
    let files = PeftFiles::read(&scratch.path().join("adapter"), &config).unwrap();
    // Another implementation reads the tensors as well.
    assert_eq!(SafeTensors::deserialize(&files.weights).unwrap().len(), 16);
    assert_eq!(Adapter::from_peft(&files, &config, span(0, 4)).unwrap(), adapter);
}
