//! Guessing tokens changes how many trips an answer takes, and nothing else of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use serde_json::Value;
use umbel_client::{
    Chain, ClientModel, Device, DraftModel, DraftModelError, Drafts, FinishReason, Generate,
    LocalModel, Sampling, Speculate,
};
use umbel_coordinator::random::Random;
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};
use umbel_tests::faults::{Fault, Place, Replicated};
use umbel_tests::swarm::{cache, checkpoint, report, serve, umbel};
use umbel_tests::workload::Workload;

/// Tokens for which a session of these tests has room.
const ROOM: u32 = 128;

/// A model with all its blocks.
struct Opened {
    model: Arc<ClientModel>,
    blocks: Arc<LocalModel>,
}

/// All that one can see of an answer, but its time.
#[derive(Debug, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    texts: Vec<String>,
    /// Bits of the logits, with their tokens.
    top_logits: Vec<Vec<(u32, u32)>>,
    finish: Option<FinishReason>,
}

impl Opened {
    fn open(name: &str) -> Self {
        let source = ModelSource::parse(name).unwrap();
        let model = Model::open(&source, &Cache::new(cache()), PartsNeeded::everything(), &Silent);
        let model = Arc::new(ClientModel::from_shard(model.unwrap()).unwrap());
        let blocks = LocalModel::load(model.shard(), 1024, Device::shared()).unwrap();
        Self { model, blocks: Arc::new(blocks) }
    }

    fn fixture(name: &str) -> Self {
        Self::open(&checkpoint(name))
    }

    fn drafts_for(&self, target: &Self) -> Result<Speculate, DraftModelError> {
        let blocks = Arc::clone(&self.blocks);
        DraftModel::new(Arc::clone(&self.model), blocks, &target.model).map(Speculate::Model)
    }

    async fn answer(&self, request: &Generate, speculate: &Speculate) -> (Answer, Drafts) {
        self.answer_within(request, speculate, ROOM).await
    }

    async fn answer_within(
        &self,
        request: &Generate,
        speculate: &Speculate,
        room: u32,
    ) -> (Answer, Drafts) {
        let chain = Chain::Local(self.blocks.open(room).unwrap());
        let request = Generate { speculate: speculate.clone(), top_logits: 3, ..request.clone() };
        let mut generation = request.start(Arc::clone(&self.model), chain).unwrap();
        let (mut texts, mut top_logits) = (Vec::new(), Vec::new());
        while let Some(token) = generation.next().await.unwrap() {
            assert_eq!(generation.tokens().last(), Some(&token.id));
            texts.push(token.text);
            let bits = |(token, logit): (u32, f32)| (token, logit.to_bits());
            top_logits.push(token.top_logits.into_iter().map(bits).collect());
        }
        assert!(generation.next().await.unwrap().is_none(), "an answer ends once");
        let tokens = generation.tokens().to_vec();
        let answer = Answer { tokens, texts, top_logits, finish: generation.finish_reason() };
        (answer, generation.drafts())
    }
}

/// A prompt that says everything twice, so that there is something to guess.
fn prompt() -> Vec<u32> {
    let once = [5, 17, 99, 140, 3, 201, 77, 8, 44];
    [once, once].concat()
}

/// Greedy and sampled, with every filter and penalty.
fn samplings() -> Vec<Sampling> {
    let mut samplings = vec![Sampling::greedy()];
    samplings.push(Sampling { repetition_penalty: 1.3, ..Sampling::greedy() });
    for seed in 0..4 {
        samplings.push(Sampling::with_temperature(0.2, seed));
        samplings.push(Sampling {
            top_k: 20,
            top_p: 0.9,
            min_p: 0.01,
            repetition_penalty: 1.2,
            ..Sampling::with_temperature(0.8, seed)
        });
    }
    samplings
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_gives_the_same_answer_with_every_kind_of_drafts() {
    let other = Opened::fixture("llama-tied-mha");
    for name in ["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "mixtral", "qwen3-moe"] {
        let opened = Opened::fixture(name);
        let (itself, other) =
            (opened.drafts_for(&opened).unwrap(), other.drafts_for(&opened).unwrap());
        let kinds = [Speculate::Auto, Speculate::Prompt, itself, other];
        let mut sums = [Drafts::default(); 4];
        for sampling in samplings() {
            let request = Generate { max_tokens: 32, sampling, ..Generate::new(prompt()) };
            let (plain, none) = opened.answer(&request, &Speculate::Off).await;
            assert_eq!(none, Drafts::default());
            // Not quite what comes: drafts go wrong at each fifth token.
            let wrong = |(index, token): (usize, &u32)| token ^ u32::from(index % 5 == 4);
            let expected = plain.tokens.iter().enumerate().map(wrong).collect();
            let request = Generate { expected, ..request };
            for (kind, sum) in kinds.iter().zip(&mut sums) {
                let (answer, drafts) = opened.answer(&request, kind).await;
                assert_eq!(answer, plain, "{name}, {:?}, {kind:?}", request.sampling);
                let new = (answer.tokens.len() - prompt().len()) as u64;
                // The first token comes with the prompt; a step gives its right drafts and one.
                let cut = (drafts.steps + drafts.accepted + 1).checked_sub(new);
                assert!(cut.is_some_and(|cut| cut <= 8), "{name}, {kind:?}: {drafts:?} of {new}");
                sum.drafted += drafts.drafted;
                sum.accepted += drafts.accepted;
                sum.steps += drafts.steps;
            }
        }
        let [_, from_prompt, from_itself, from_other] = sums;
        assert!(from_prompt.accepted > 0 && from_prompt.accepted < from_prompt.drafted, "{sums:?}");
        assert!(from_prompt.accepted > 50, "{sums:?}");
        assert!(from_itself.accepted > 0 && from_other.drafted > 0, "{sums:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_drafts_for_itself_changes_nothing() {
    let opened = Opened::fixture("llama");
    let itself = opened.drafts_for(&opened).unwrap();
    for sampling in samplings() {
        // A prompt without repetition, and a temperature at which none comes up.
        let request = Generate { max_tokens: 40, sampling, ..Generate::new(vec![5, 17, 99]) };
        let (plain, _) = opened.answer(&request, &Speculate::Off).await;
        let (answer, _) = opened.answer(&request, &itself).await;
        assert_eq!(answer, plain);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_cut_a_run_of_right_drafts_where_they_would_cut_single_tokens() {
    let opened = Opened::fixture("llama");
    let itself = opened.drafts_for(&opened).unwrap();
    let whole = Generate { max_tokens: 40, ..Generate::new(prompt()) };
    let (Answer { tokens: likely, .. }, _) = opened.answer(&whole, &Speculate::Off).await;
    for max_tokens in 0..14 {
        let request = Generate { max_tokens, ..Generate::new(prompt()) };
        let request = Generate { expected: likely.clone(), ..request };
        let (plain, _) = opened.answer(&request, &Speculate::Off).await;
        for kind in [&Speculate::Prompt, &Speculate::Auto, &itself] {
            assert_eq!(opened.answer(&request, kind).await.0, plain, "{max_tokens}, {kind:?}");
        }
    }
    // The room of the chain ends the answer.
    for room in 19..34 {
        let request = Generate { expected: likely.clone(), ..Generate::new(prompt()) };
        let (plain, _) = opened.answer_within(&request, &Speculate::Off, room).await;
        assert_eq!((plain.tokens.len(), plain.finish), (room as usize, Some(FinishReason::Length)));
        for kind in [&Speculate::Prompt, &Speculate::Auto, &itself] {
            assert_eq!(opened.answer_within(&request, kind, room).await.0, plain, "{room}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_of_an_answer_that_ended_within_a_run_serves_the_next() {
    let opened = Opened::fixture("llama");
    let next = |tokens: &[u32]| [tokens, &[9, 9, 30]].concat();
    for max_tokens in 1..12 {
        let mut cached = (Chain::Local(opened.blocks.open(ROOM).unwrap()), Vec::new());
        let mut tokens = prompt();
        for _ in 0..3 {
            let request = Generate { max_tokens, ..Generate::new(tokens.clone()) };
            let (plain, _) = opened.answer(&request, &Speculate::Off).await;
            let (speculate, expected) = (Speculate::Prompt, plain.tokens.clone());
            let request = Generate { speculate, expected, ..request };
            let model = Arc::clone(&opened.model);
            let mut generation = request.resume(model, cached.0, &cached.1).unwrap();
            // One that is left early, too.
            for _ in 0..max_tokens.div_ceil(2) {
                generation.next().await.unwrap();
            }
            let early = generation.tokens().to_vec();
            assert!(plain.tokens.starts_with(&early));
            cached = generation.into_chain();
            assert!(early.starts_with(&cached.1));
            tokens = next(&early);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_ends_at_the_same_place() {
    let opened = Opened::open("smollm2-135m");
    let texts = [
        ("one two three one two three one two three one two", vec!["three one".to_owned()]),
        ("The capital of France is", vec!["The".to_owned()]),
        ("a, b, c, d, a, b, c, d, a, b, c, d, a,", vec!["d, a, b".to_owned(), "zz".to_owned()]),
    ];
    let mut accepted = 0;
    for (text, stop) in texts {
        for seed in [None, Some(3)] {
            let sampling =
                seed.map_or_else(Sampling::greedy, |seed| Sampling::with_temperature(0.4, seed));
            let prompt = opened.model.encode(text).unwrap();
            let request =
                Generate { max_tokens: 20, stop: stop.clone(), sampling, ..Generate::new(prompt) };
            let (plain, _) = opened.answer(&request, &Speculate::Off).await;
            for kind in [Speculate::Prompt, Speculate::Auto] {
                let (answer, drafts) = opened.answer(&request, &kind).await;
                assert_eq!(answer, plain, "{text}");
                accepted += drafts.accepted;
            }
        }
    }
    assert!(accepted > 10, "{accepted} drafts were right");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_text_within_a_run_ends_it() {
    let opened = Opened::open("smollm2-135m");
    // The model sees how two answers end, and ends the third in the same way.
    let turn = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\nYes, of course I do.\
                <|im_end|>\n";
    let text = format!("{turn}{turn}<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n");
    let prompt = opened.model.encode(&text).unwrap();
    for ignore_eos in [false, true] {
        let request = Generate { max_tokens: 24, ignore_eos, ..Generate::new(prompt.clone()) };
        let (plain, _) = opened.answer_within(&request, &Speculate::Off, 256).await;
        assert_eq!(plain.finish == Some(FinishReason::Stop), !ignore_eos, "{:?}", plain.texts);
        let (answer, drafts) = opened.answer_within(&request, &Speculate::Prompt, 256).await;
        assert_eq!(answer, plain);
        assert!(drafts.accepted > 3, "{drafts:?}");
    }
}

#[test]
fn a_draft_model_with_other_tokens_is_refused() {
    let (real, fixture) = (Opened::open("smollm2-135m"), Opened::fixture("llama"));
    let refused = fixture.drafts_for(&real).unwrap_err();
    assert_eq!(refused, DraftModelError::OneTokenizer);
    let folder = checkpoint("llama");
    let asked = ["generate", "--local", "--prompt", "a", "--speculate", &folder];
    let asked = umbel(&asked);
    assert!(!asked.status.success());
    assert!(asked.stderr.contains("cannot draft for this model"), "{}", asked.stderr);
    let unknown = umbel(&["generate", "--local", "--prompt", "a", "--speculate", "sometimes"]);
    assert!(!unknown.status.success());
    assert!(unknown.stderr.contains("auto, off, prompt, or a model"), "{}", unknown.stderr);
}

#[test]
fn over_a_swarm_an_answer_takes_fewer_trips_and_is_the_same() {
    let first = serve(&["--blocks", "0..12"]);
    let second = serve(&["--blocks", "12..30", "--join", first.address()]);
    let prompt = "red, green, blue, black, red, green, blue, black, red,";
    let ask = |place: &[&str], how: &[&str]| -> Value {
        let arguments = ["generate", "--prompt", prompt, "--json", "--max-tokens", "24"];
        let more = ["--ignore-eos", "--top-logits", "4"];
        report(&umbel(&[&arguments, &more[..], place, how].concat()))
    };
    let swarm = ["--join", first.address()];
    for sampling in [&[][..], &["--temperature", "0.3", "--seed", "6"]] {
        let how = |speculate| [&["--speculate", speculate], sampling].concat();
        let plain = ask(&["--local"], &how("off"));
        assert_eq!(plain["speculation"]["drafted"], 0);
        for speculate in ["auto", "prompt", "smollm2-135m"] {
            let guessed = ask(&swarm, &how(speculate));
            for field in ["token_ids", "top_logits", "text", "finish_reason"] {
                assert_eq!(guessed[field], plain[field], "{speculate}");
            }
            let counts = &guessed["speculation"];
            let steps = counts["steps"].as_u64().unwrap();
            assert_eq!(steps + 1, guessed["timings"]["steps"].as_array().unwrap().len() as u64);
            assert_eq!(steps + counts["accepted"].as_u64().unwrap(), 23, "{counts}");
            if speculate == "prompt" {
                assert!(steps < 12, "{counts}");
            }
        }
    }
    for server in [&first, &second] {
        server.assert_no_errors();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_die_while_drafts_are_checked_change_no_token() {
    let mut swarm =
        Replicated::start("smollm2-135m", &["0..10", "10..20", "20..30"]).await.unwrap();
    let prompt = swarm.model().encode(&"red, green, blue, black, white; ".repeat(4)).unwrap();
    let workload = Workload { prompt, tokens: 40, prefill_chunk: 16, standby: false };
    let expected = swarm.undisturbed(&workload).await.unwrap();
    swarm.speculate(Speculate::Prompt);
    let faults = [
        Fault::Kill(Place::First),
        Fault::Kill(Place::Middle),
        Fault::Kill(Place::Last),
        Fault::KillTwo,
    ];
    for (seed, fault) in (0..).zip(faults) {
        let workload = Workload { standby: seed % 2 == 1, ..workload.clone() };
        let outcome = swarm.run(&workload, fault, &mut Random::new(seed)).await;
        let outcome = outcome.unwrap_or_else(|error| panic!("seed {seed}, {fault}: {error:#}"));
        assert_eq!(outcome.tokens, expected, "seed {seed}, {fault}");
        assert!(outcome.failures >= 1, "seed {seed}, {fault}: nothing failed");
        assert!(outcome.drafts.accepted > 0, "seed {seed}, {fault}: {:?}", outcome.drafts);
        swarm.restore().await.unwrap();
    }
}
