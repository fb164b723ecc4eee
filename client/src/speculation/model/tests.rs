//! A tiny model that drafts for itself: it must say what it will say.

use std::path::Path;

use umbel_engine::{Device, Sampling};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

use super::*;
use crate::generate::Generate;
use crate::speculation::{Speculate, Speculator};

const PROMPT: [u32; 7] = [5, 17, 99, 140, 3, 201, 77];

fn open(name: &str) -> (Arc<ClientModel>, Arc<LocalModel>) {
    open_with(name, 512)
}

fn open_with(name: &str, kv_tokens: usize) -> (Arc<ClientModel>, Arc<LocalModel>) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints");
    let source = ModelSource::parse(fixtures.join(name).to_str().unwrap()).unwrap();
    let cache = Cache::new(tempfile::tempdir().unwrap().path());
    let shard = Model::open(&source, &cache, PartsNeeded::everything(), &Silent).unwrap();
    let model = Arc::new(ClientModel::from_shard(shard).unwrap());
    let blocks = LocalModel::load(model.shard(), kv_tokens, Device::shared()).unwrap();
    (model, Arc::new(blocks))
}

fn samplings() -> [Sampling; 3] {
    let hot = Sampling { repetition_penalty: 1.2, ..Sampling::with_temperature(0.9, 5) };
    [Sampling::greedy(), Sampling::with_temperature(0.7, 1), hot]
}

fn session(sampling: &Sampling) -> DraftSession {
    let (model, blocks) = open("llama");
    let draft = DraftModel::new(Arc::clone(&model), blocks, &model).unwrap();
    draft.open(64, Sampler::new(sampling.clone()).unwrap()).unwrap()
}

/// What the model says behind `prompt` without any drafts.
async fn said(sampling: &Sampling, prompt: &[u32], count: u32) -> Vec<u32> {
    let (model, blocks) = open("llama");
    let request = Generate {
        max_tokens: count,
        sampling: sampling.clone(),
        ignore_eos: true,
        ..Generate::new(prompt.to_vec())
    };
    let chain = Chain::Local(blocks.open(64).unwrap());
    let mut generation = request.start(model, chain).unwrap();
    generation.finish().await.unwrap();
    generation.tokens()[prompt.len()..].to_vec()
}

#[tokio::test]
async fn its_drafts_are_what_it_would_say_with_the_same_noise() {
    for sampling in samplings() {
        let mut session = session(&sampling);
        let (drafts, _) = session.draft(&PROMPT, 12).await.unwrap();
        assert_eq!(drafts, said(&sampling, &PROMPT, 12).await, "{sampling:?}");
    }
}

#[tokio::test]
async fn its_cache_goes_back_to_where_drafts_went_wrong() {
    for sampling in samplings() {
        let mut session = session(&sampling);
        let (drafts, _) = session.draft(&PROMPT, 8).await.unwrap();
        assert_eq!(session.offer(&PROMPT, 9).unwrap().tokens_max, 9);
        // Three were right; then came another token.
        let text = [&PROMPT[..], &drafts[..3], &[drafts[3] ^ 1]].concat();
        assert_eq!(session.shared(&text), PROMPT.len() + 3);
        let (again, _) = session.draft(&text, 6).await.unwrap();
        assert_eq!(again, said(&sampling, &text, 6).await, "{sampling:?}");
        assert_eq!(&session.cached[..text.len()], &text[..]);
    }
}

#[tokio::test]
async fn beyond_its_room_and_for_tokens_that_it_lacks_it_offers_nothing() {
    let session = session(&Sampling::greedy());
    assert_eq!(session.offer(&[1; 60], 9).unwrap().tokens_max, 4);
    assert_eq!(session.offer(&[1; 64], 9).unwrap().tokens_max, 0);
    assert_eq!(session.offer(&[1; 70], 9).unwrap().tokens_max, 0);
    assert_eq!(session.offer(&[1, 2, 400], 9), None);
}

#[tokio::test]
async fn an_answer_for_which_it_has_no_room_goes_without_it() {
    let ((model, blocks), (small, room)) = (open("llama"), open_with("llama", 64));
    let draft = DraftModel::new(small, room, &model).unwrap();
    let speculate = Speculate::Model(draft);
    let start = || {
        let request = Generate {
            max_tokens: 12,
            ignore_eos: true,
            speculate: speculate.clone(),
            ..Generate::new(PROMPT.to_vec())
        };
        request.start(Arc::clone(&model), Chain::Local(blocks.open(64).unwrap())).unwrap()
    };
    let with = start();
    let sampler = Sampler::new(Sampling::greedy()).unwrap();
    assert!(Speculator::new(&speculate, &[], 64, &sampler).unwrap().model.is_none());
    let mut without = start();
    without.finish().await.unwrap();
    assert_eq!(without.tokens()[PROMPT.len()..], said(&Sampling::greedy(), &PROMPT, 12).await);
    drop(with);
    assert!(Speculator::new(&speculate, &[], 64, &sampler).unwrap().model.is_some());
}

#[test]
fn models_of_the_same_vocabulary_may_draft_for_each_other() {
    let ((draft, blocks), (target, _)) = (open("qwen2"), open("llama"));
    assert!(DraftModel::new(draft, blocks, &target).is_ok());
}
