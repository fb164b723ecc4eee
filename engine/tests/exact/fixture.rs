//! Checkpoints with their stored results, and sessions over them.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use umbel_engine::{Arithmetic, Ends, HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_protocol::Span;
use umbel_shard::{Cache, Model, ModelConfig, ModelSource, Part, PartsNeeded, Silent, Weights};

/// A checkpoint and what transformers computes from it.
pub(crate) struct Fixture {
    pub(crate) config: ModelConfig,
    /// The tensors of every part.
    pub(crate) weights: Weights,
    /// How it is computed.
    pub(crate) arithmetic: Arithmetic,
    /// The ids of the prompt.
    pub(crate) prompt: Vec<u32>,
    /// What enters each block, and what leaves the last one.
    pub(crate) boundaries: Vec<Vec<f32>>,
    /// For every token of the prompt.
    pub(crate) logits: Vec<f32>,
    /// The ids that greedy decoding appends.
    pub(crate) greedy: Vec<u32>,
}

impl Fixture {
    /// Opens a checkpoint of `tests/fixtures` by one of its configuration files.
    pub(crate) fn open(checkpoint: &str, config_file: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints");
        let stored = root.join(checkpoint);
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join(checkpoint);
        fs::create_dir(&folder).unwrap();
        fs::copy(stored.join(config_file), folder.join("config.json")).unwrap();
        fs::copy(stored.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
        let (config, weights) = load(folder, &scratch.path().join("cache"));

        let golden = fs::read(stored.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let (values, _) = golden.tensor(name).unwrap().data().as_chunks();
            values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        };
        let (ids, _) = golden.tensor("input_ids").unwrap().data().as_chunks();
        let ids = ids.iter().map(|&bytes| u32::try_from(i64::from_le_bytes(bytes)).unwrap());
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(stored.join("golden.json")).unwrap()).unwrap();
        let greedy = json["greedy"].as_array().unwrap().iter();
        Self {
            prompt: ids.collect(),
            boundaries: (0..=config.block_count)
                .map(|index| floats(&format!("hidden_states.{index}")))
                .collect(),
            logits: floats("logits"),
            greedy: greedy.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect(),
            config,
            weights,
            arithmetic: Arithmetic::default(),
        }
    }

    /// The two ends of the model.
    pub(crate) fn ends(&self) -> Ends {
        Ends::load_with(self.arithmetic, &self.config, &self.weights).unwrap()
    }

    /// All its blocks.
    pub(crate) fn all(&self) -> Span {
        Span::new(0, self.config.block_count).unwrap()
    }
}

fn load(folder: PathBuf, cache: &Path) -> (ModelConfig, Weights) {
    let source = ModelSource::Folder(folder);
    let cache = Cache::new(cache);
    let model = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    let config = model.config().clone();
    let all = Span::new(0, config.block_count).unwrap();
    let weights = [Part::Embedding, Part::Blocks(all), Part::Head]
        .into_iter()
        .map(|part| model.weights(part).unwrap())
        .fold(Weights::default(), Weights::and);
    (config, weights)
}

/// A session along spans that follow each other.
pub(crate) struct Run {
    hops: Vec<(HostedSpan, KvTable)>,
}

impl Run {
    /// Loads each span by itself, as a server of it would.
    pub(crate) fn new(fixture: &Fixture, split: &[Span]) -> Self {
        let hop = |&span: &Span| {
            let hosted =
                HostedSpan::load_with(fixture.arithmetic, &fixture.config, &fixture.weights, span)
                    .unwrap();
            let arena = KvArena::new(&fixture.config, span, fixture.config.context_tokens);
            (hosted, arena.open(span, fixture.config.context_tokens).unwrap())
        };
        Self { hops: split.iter().map(hop).collect() }
    }

    /// One step through all spans.
    pub(crate) fn step(&mut self, hidden: &HiddenStates) -> HiddenStates {
        let pass = |hidden: HiddenStates, (hosted, table): &mut (HostedSpan, KvTable)| {
            hosted.forward(table, &hidden).unwrap()
        };
        self.hops.iter_mut().fold(hidden.clone(), pass)
    }
}

/// The largest absolute difference of two tensors of one size.
pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would pass over a value that is not a number.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, difference| {
        if difference > most || difference.is_nan() { difference } else { most }
    })
}
