//! The engine against stored results of Hugging Face transformers, through whole checkpoints.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dora;
mod fixture;
mod lora;

use fixture::{Fixture, Run, largest_difference};
use half::bf16;
use umbel_engine::reference::Reference;
use umbel_engine::{Arithmetic, Embedding, Head, HiddenStates, Sampler, Sampling, top_logits};
use umbel_protocol::Span;
use umbel_shard::{Weight, WeightType, Weights};

/// Each checkpoint, with the configuration file to read it by.
const CHECKPOINTS: [(&str, &str); 10] = [
    ("llama", "config.json"),
    ("llama-tied-mha", "config.json"),
    ("llama3-rope", "config.json"),
    ("llama3-rope", "config.transformers4.json"),
    ("mistral", "config.json"),
    ("qwen2", "config.json"),
    ("qwen3", "config.json"),
    ("mixtral", "config.json"),
    ("qwen3-moe", "config.json"),
    ("qwen3-moe-raw", "config.json"),
];

/// What implementations of one model in binary32 may differ by, as the stored results are of about
/// 1: the order of sums in a few hundred terms moves the last 3 of 24 bits in each of 4 blocks.
const BINARY32_ERROR_MAX: f32 = 1e-4;

/// What rounding activations to the 8 bits of bfloat16, as is the custom in that type, may move
/// logits by: 0.02 to 0.18 when measured.
const BFLOAT16_ERROR_MAX: f32 = 0.25;

/// Tokens that rounding leads to other experts than they had, where two are nearly alike, or that attend to
/// such a one: 3 of a prompt's 21 when measured with AVX-512, in one of the three checkpoints with experts.
const STRAYED_MAX: usize = 4;

fn fixtures() -> impl Iterator<Item = (String, Fixture)> {
    CHECKPOINTS.iter().map(|(checkpoint, config)| {
        (format!("{checkpoint} by {config}"), Fixture::open(checkpoint, config))
    })
}

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

#[test]
fn every_block_boundary_has_the_stored_hidden_states() {
    for (name, fixture) in fixtures() {
        let mut hidden = fixture.ends().embed(&fixture.prompt).unwrap();
        for (index, stored) in (0..).zip(&fixture.boundaries) {
            let difference = largest_difference(&hidden.to_values(), stored);
            assert!(difference < BINARY32_ERROR_MAX, "{name}, entering {index}: {difference}");
            if index < fixture.config.block_count {
                hidden = Run::new(&fixture, &[span(index, index + 1)]).step(&hidden);
            }
        }
        let logits = fixture.ends().logits_of_all(&hidden).unwrap().concat();
        let difference = largest_difference(&logits, &fixture.logits);
        assert!(difference < BINARY32_ERROR_MAX, "{name}, logits: {difference}");
    }
}

#[test]
fn the_reference_has_the_stored_results_too() {
    for (name, fixture) in fixtures() {
        let reference = Reference { config: &fixture.config, weights: &fixture.weights };
        let embedded = reference.embed(&fixture.prompt).unwrap();
        let states = reference.boundaries(fixture.all(), &embedded).unwrap();
        assert_eq!(states.len(), fixture.boundaries.len());
        for (state, stored) in states.iter().zip(&fixture.boundaries) {
            let state: Vec<f32> = state.flatten_all().unwrap().to_vec1().unwrap();
            let difference = largest_difference(&state, stored);
            assert!(difference < BINARY32_ERROR_MAX, "{name}: {difference}");
        }
        let logits = reference.logits(states.last().unwrap()).unwrap();
        let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
        let difference = largest_difference(&logits, &fixture.logits);
        assert!(difference < BINARY32_ERROR_MAX, "{name}, logits: {difference}");
    }
}

#[test]
fn greedy_decoding_gives_the_stored_tokens_with_the_same_bits_in_any_split() {
    for (name, fixture) in fixtures() {
        let splits: [&[Span]; 3] = [
            &[span(0, 4)],
            &[span(0, 1), span(1, 4)],
            &[span(0, 1), span(1, 2), span(2, 3), span(3, 4)],
        ];
        let [whole, rest @ ..] = splits.map(|split| generate(&fixture, split));
        assert_eq!(whole.0, fixture.greedy, "{name}");
        assert!(rest.iter().all(|split| split == &whole), "{name}");
    }
}

/// The tokens after the prompt, and the bits of the logits from which each was chosen.
fn generate(fixture: &Fixture, split: &[Span]) -> (Vec<u32>, Vec<Vec<u32>>) {
    let (ends, mut run) = (fixture.ends(), Run::new(fixture, split));
    let sampler = Sampler::new(Sampling::greedy()).unwrap();
    let mut tokens = fixture.prompt.clone();
    let mut bits = Vec::new();
    let mut next = tokens.clone();
    while bits.len() < fixture.greedy.len() {
        let hidden = run.step(&ends.embed(&next).unwrap());
        let mut logits = ends.logits(&hidden).unwrap();
        bits.push(logits.iter().map(|logit| logit.to_bits()).collect());
        let likeliest = top_logits(&logits, 1)[0].0;
        let token = sampler.sample(&mut logits, &tokens).unwrap();
        assert_eq!(token, likeliest);
        tokens.push(token);
        next = vec![token];
    }
    (tokens.split_off(fixture.prompt.len()), bits)
}

/// As a server of the one end or the other holds it.
#[test]
fn each_end_by_itself_has_the_bits_of_both() {
    for (name, fixture) in fixtures() {
        let (ends, config) = (fixture.ends(), &fixture.config);
        let embedding = Embedding::load(config, &fixture.weights).unwrap();
        let entering = embedding.embed(&fixture.prompt).unwrap();
        assert_eq!(entering.to_wire(), ends.embed(&fixture.prompt).unwrap().to_wire(), "{name}");
        if fixture.arithmetic != Arithmetic::default() {
            continue;
        }
        let head = Head::load(config, &fixture.weights).unwrap();
        // Rows of several sessions at once, as a pass of a server has them.
        let rows: Vec<_> =
            (0..entering.token_count()).map(|at| entering.rows(at..at + 1).unwrap()).collect();
        let sampling = Sampling { repetition_penalty: 1.3, ..Sampling::with_temperature(0.9, 7) };
        let sampler = Sampler::new(sampling).unwrap();
        for (at, (row, logits)) in rows.iter().zip(head.logits_of_each(&rows)).enumerate() {
            let (mut here, mut there) = (logits.unwrap().remove(0), ends.logits(row).unwrap());
            let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&here), bits(&there), "{name}, row {at}");
            let text = &fixture.prompt[..=at];
            let drawn = sampler.sample_at(text.len() as u64, &mut here, text);
            assert_eq!(drawn, sampler.sample(&mut there, text), "{name}, row {at}");
        }
    }
}

#[test]
fn a_prompt_in_chunks_has_the_bits_of_the_prompt_in_one_step() {
    for (name, fixture) in fixtures() {
        let embedded = fixture.ends().embed(&fixture.prompt).unwrap();
        let in_chunks = |size: usize| {
            let mut run = Run::new(&fixture, &[fixture.all()]);
            let starts = (0..embedded.token_count()).step_by(size);
            let parts: Vec<HiddenStates> = starts
                .map(|start| start..embedded.token_count().min(start + size))
                .map(|chunk| run.step(&embedded.rows(chunk).unwrap()))
                .collect();
            HiddenStates::concat(&parts).unwrap().to_wire()
        };
        let whole = in_chunks(usize::MAX / 2);
        for size in [1, 3, 7, 16] {
            assert_eq!(in_chunks(size), whole, "{name}, {size} tokens a step");
        }
    }
}

#[test]
fn brain_floats_are_computed_as_the_reference_computes_them() {
    for (name, mut fixture) in fixtures() {
        fixture.weights = to_bf16(&fixture.weights);
        let embedded = fixture.ends().embed(&fixture.prompt).unwrap();
        let logits_in = |fixture: &Fixture| {
            let found = Run::new(fixture, &[fixture.all()]).step(&embedded);
            fixture.ends().logits_of_all(&found).unwrap().concat()
        };
        let usual = logits_in(&fixture);
        fixture.arithmetic = Arithmetic::Exact;
        let logits = logits_in(&fixture);
        let reference = Reference { config: &fixture.config, weights: &fixture.weights };
        let expected = reference.boundaries(fixture.all(), embedded.tensor()).unwrap();
        let expected = reference.logits(expected.last().unwrap()).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let difference = largest_difference(&logits, &expected);
        assert!(difference < BINARY32_ERROR_MAX, "{name}: {difference}");
        let vocabulary = fixture.config.vocabulary_size;
        let rows = usual.chunks(vocabulary).zip(expected.chunks(vocabulary));
        let mut differences: Vec<f32> =
            rows.map(|(usual, expected)| largest_difference(usual, expected)).collect();
        differences.sort_by(f32::total_cmp);
        let strayed = if fixture.config.experts.is_some() { STRAYED_MAX } else { 0 };
        let difference = differences[differences.len() - 1 - strayed];
        assert!(difference < BFLOAT16_ERROR_MAX, "{name}, activations rounded: {difference}");
        // The type itself, with 8 bits of precision, must show: else it was not what was computed.
        assert!(
            largest_difference(&logits, &fixture.logits) > 100.0 * BINARY32_ERROR_MAX,
            "{name}"
        );
    }
}

fn to_bf16(weights: &Weights) -> Weights {
    let narrow = |weight: &Weight| {
        assert_eq!(weight.weight_type(), WeightType::F32);
        let (values, _) = weight.bytes().as_chunks();
        let values = values.iter().map(|&bytes| bf16::from_f32(f32::from_le_bytes(bytes)));
        let bytes: Vec<u8> = values.flat_map(bf16::to_le_bytes).collect();
        Weight::new(WeightType::BF16, weight.shape().to_vec(), bytes).unwrap()
    };
    weights.iter().map(|(name, weight)| (name.to_owned(), narrow(weight))).collect()
}

#[test]
fn ids_and_hidden_states_of_another_model_are_refused() {
    let fixture = Fixture::open("llama", "config.json");
    let ends = fixture.ends();
    for ids in [&[][..], &[3, 288], &[u32::MAX]] {
        assert!(ends.embed(ids).is_err(), "{ids:?}");
    }
    let narrow = HiddenStates::from_values(vec![0.0; 32], 32).unwrap();
    assert!(ends.logits(&narrow).is_err());
}
