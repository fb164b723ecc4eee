//! A tiny model that is made to say a word.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use umbel_engine::Device;
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use super::*;
use crate::chain::local::LocalModel;

const WORD: u32 = 7;

/// A tiny Llama with two words, which are written as Llama 2 writes them.
fn open() -> (Arc<ClientModel>, Arc<LocalModel>) {
    open_changed(|_| ())
}

/// The same after a change to the file of its weights.
fn open_changed(change: impl FnOnce(&mut [u8])) -> (Arc<ClientModel>, Arc<LocalModel>) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    change(&mut bytes);
    fs::write(weights, bytes).unwrap();
    let decoders = json!([
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ]);
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": { "type": "WordLevel", "unk_token": "<unk>",
            "vocab": { "<unk>": 0, "▁is": 6, "▁Paris": WORD } },
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let source = ModelSource::parse(folder.path().to_str().unwrap()).unwrap();
    let cache = Cache::new(folder.path());
    let shard = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    let model = Arc::new(ClientModel::from_shard(shard).unwrap());
    let blocks = LocalModel::load(model.shard(), 64, Device::shared()).unwrap();
    (model, Arc::new(blocks))
}

/// Leaves no number in a tensor of a file of weights.
fn spoil(weights: &mut [u8], name: &str) {
    let (length, rest) = weights.split_first_chunk_mut().unwrap();
    let size = |bytes: u64| usize::try_from(bytes).unwrap();
    let (header, data) = rest.split_at_mut(size(u64::from_le_bytes(*length)));
    let header: Value = serde_json::from_slice(header).unwrap();
    let offset = |index: usize| size(header[name]["data_offsets"][index].as_u64().unwrap());
    // All bits set are no number, whatever the type.
    data[offset(0)..offset(1)].fill(0xff);
}

/// What is shown of the word, twice, behind another.
async fn said(continues: bool) -> String {
    let (model, blocks) = open();
    let bias = [(WORD, 1e9)].into_iter().collect();
    let request = Generate {
        continues,
        max_tokens: 2,
        adjust: Adjust { bias, ..Adjust::default() },
        ..Generate::new(vec![6])
    };
    let chain = Chain::Local(blocks.open(8).unwrap());
    let mut generation = request.start(model, chain).unwrap();
    let mut text = String::new();
    while let Some(token) = generation.next().await.unwrap() {
        text.push_str(&token.text);
    }
    text
}

#[tokio::test]
async fn a_text_that_goes_on_has_the_space_before_its_next_word() {
    assert!(Generate::new(vec![6]).continues, "unless it is told otherwise");
    assert_eq!(said(true).await, " Paris Paris");
    assert_eq!(said(false).await, "Paris Paris");
}

#[tokio::test]
async fn a_chain_that_answers_what_is_no_number_ends_the_generation_with_an_error() {
    let norm = "model.layers.3.input_layernorm.weight";
    let (model, blocks) = open_changed(|weights| spoil(weights, norm));
    for sampling in [Sampling::greedy(), Sampling::with_temperature(1.0, 3)] {
        let request = Generate { sampling, ..Generate::new(vec![6]) };
        let chain = Chain::Local(blocks.open(8).unwrap());
        let mut generation = request.start(Arc::clone(&model), chain).unwrap();
        // As often as it is asked.
        for _ in 0..2 {
            let failed = generation.next().await.unwrap_err();
            assert!(matches!(failed, GenerateError::NotNumbers(_)), "{failed}");
        }
    }
}
