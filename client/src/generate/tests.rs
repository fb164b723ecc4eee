//! A tiny model that is made to say a word.

use std::fs;
use std::path::Path;

use serde_json::json;
use umbel_engine::Device;
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use super::*;
use crate::chain::local::LocalModel;

const WORD: u32 = 7;

/// A tiny Llama with two words, which are written as Llama 2 writes them.
fn open() -> (Arc<ClientModel>, Arc<LocalModel>) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
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
