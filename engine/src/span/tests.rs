//! No bit of a token's result depends on what it is computed together with.

mod adapted;
mod batch;
pub(crate) mod model;
mod oracle;
mod prefix;
mod refusal;

use std::num::NonZeroUsize;

use proptest::prelude::*;
use umbel_protocol::DType;
use umbel_shard::{Family, WeightType};

use super::*;
use crate::kv::PAGE_TOKENS;
use crate::kv::arena::KvArena;
use crate::reference::Reference;

const FAMILIES: [Family; 6] = Family::ALL;
const TOKENS: usize = 45;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

struct World {
    config: ModelConfig,
    weights: Weights,
}

impl World {
    fn new(family: Family, weight_type: WeightType) -> Self {
        let config = model::config(family);
        let weights = model::weights(&config, weight_type);
        Self { config, weights }
    }

    fn host(&self, span: Span) -> HostedSpan {
        HostedSpan::load(&self.config, &self.weights, span).unwrap()
    }

    fn host_exactly(&self, span: Span) -> HostedSpan {
        self.host_with(Arithmetic::Exact, span)
    }

    fn host_with(&self, arithmetic: Arithmetic, span: Span) -> HostedSpan {
        HostedSpan::load_with(arithmetic, &self.config, &self.weights, span).unwrap()
    }

    fn open(&self, blocks: Span) -> KvTable {
        KvArena::new(&self.config, blocks, 128).open(blocks, 128).unwrap()
    }

    fn reference(&self, blocks: Span, input: &HiddenStates) -> Vec<f32> {
        let reference = Reference { config: &self.config, weights: &self.weights };
        let states = reference.boundaries(blocks, input.tensor()).unwrap();
        states.last().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// Takes `input` through `hosted` in pieces of these sizes, the last one as large as it must be.
fn pieces(
    hosted: &HostedSpan,
    table: &mut KvTable,
    input: &HiddenStates,
    sizes: &[usize],
) -> HiddenStates {
    let mut parts = Vec::new();
    let mut start = 0;
    for size in sizes.iter().copied().chain([usize::MAX]) {
        let end = start + size.min(input.token_count() - start);
        if start < end {
            parts.push(hosted.forward(table, &input.rows(start..end).unwrap()).unwrap());
        }
        start = end;
    }
    HiddenStates::concat(&parts).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn hidden_bits(hidden: &HiddenStates) -> Vec<u32> {
    bits(&hidden.to_values())
}

/// Keys and values of all positions in the cache, block by block.
fn cache_bits(table: &mut KvTable) -> Vec<u32> {
    let (position, shape) = (table.position(), table.shape());
    let mut found = Vec::new();
    for cache in table.caches_mut() {
        for position in 0..position {
            let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            let (keys, values) = cache.floats(page);
            for head in 0..shape.kv_heads {
                let keys = keys[shape.key(head, slot)..].iter().step_by(PAGE_TOKENS);
                found.extend(keys.take(shape.head_size).map(|key| key.to_bits()));
                found.extend(bits(&values[shape.value(head, slot)]));
            }
        }
    }
    found
}

#[test]
fn token_by_token_and_in_one_step_give_the_same_bits() {
    for family in FAMILIES {
        for weight_type in [WeightType::F32, WeightType::BF16, WeightType::Q4_1, WeightType::Q6K] {
            let world = World::new(family, weight_type);
            let (blocks, input) = (span(0, 3), model::hidden(TOKENS, 2));
            let hosted = world.host(blocks);
            let (mut whole, mut single) = (world.open(blocks), world.open(blocks));
            let expected = pieces(&hosted, &mut whole, &input, &[]);
            let found = pieces(&hosted, &mut single, &input, &[1; TOKENS]);
            assert_eq!(hidden_bits(&found), hidden_bits(&expected), "{family} {weight_type}");
            assert_eq!(cache_bits(&mut single), cache_bits(&mut whole), "{family} {weight_type}");
        }
    }
}

#[test]
fn narrow_caches_give_the_same_bits_however_tokens_come() {
    let world = World::new(Family::Qwen3, WeightType::BF16);
    let (blocks, input) = (span(0, 3), model::hidden(TOKENS, 2));
    let hosted = world.host(blocks);
    let open =
        |dtype| KvArena::new(&world.config, blocks, 128).open_as(dtype, blocks, 128).unwrap();
    let exact = pieces(&hosted, &mut open(DType::F32), &input, &[]).to_values();
    let mut errors = Vec::new();
    for dtype in DType::ALL {
        let whole = pieces(&hosted, &mut open(dtype), &input, &[]);
        let single = pieces(&hosted, &mut open(dtype), &input, &[1; TOKENS]);
        assert_eq!(hidden_bits(&whole), hidden_bits(&single), "{dtype}");
        let errors_of = whole.to_values().into_iter().zip(&exact).map(|(a, b)| (a - b).abs());
        errors.push(errors_of.fold(0.0_f32, f32::max));
    }
    // Binary32 changes nothing, and each narrower type more than the one before, but not much.
    assert!(errors[0] == 0.0 && errors.is_sorted() && errors[1] > 0.0, "{errors:?}");
    let largest = exact.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    assert!(errors[3] < 0.05 * largest, "{errors:?} of {largest}");
}

#[test]
fn splitting_the_model_changes_no_bit() {
    let world = World::new(Family::Qwen3, WeightType::Q8_0);
    let input = model::hidden(TOKENS, 3);
    let whole = world.host(span(0, 3));
    let expected = whole.forward(&mut world.open(span(0, 3)), &input).unwrap();
    for cuts in [&[0, 1, 3][..], &[0, 2, 3], &[0, 1, 2, 3]] {
        let mut hidden = input.clone();
        for cut in cuts.windows(2) {
            let blocks = span(cut[0], cut[1]);
            let part = world.host(blocks);
            let from_part = part.forward(&mut world.open(blocks), &hidden).unwrap();
            // A session may also go through some of the blocks of a larger span.
            hidden = whole.forward(&mut world.open(blocks), &hidden).unwrap();
            assert_eq!(hidden_bits(&from_part), hidden_bits(&hidden), "{blocks}");
        }
        assert_eq!(hidden_bits(&hidden), hidden_bits(&expected), "{cuts:?}");
    }
}

#[test]
fn blocks_that_are_held_already_are_shared_and_compute_the_same() {
    let world = World::new(Family::Llama, WeightType::Q8_0);
    let blocks = world.config.block_count;
    let held = world.host(span(0, blocks - 1));
    let beside = span(1, blocks);
    let shared = std::slice::from_ref(&held);
    let shared =
        HostedSpan::load_beside(shared, Arithmetic::Usual, &world.config, &world.weights, beside)
            .unwrap();
    for index in 1..blocks - 1 {
        assert!(Arc::ptr_eq(held.block(index).unwrap(), shared.block(index).unwrap()));
    }
    assert!(held.part(span(blocks - 1, blocks)).is_none());
    let part = held.part(beside).unwrap();
    assert_eq!(part.span(), span(1, blocks - 1));
    drop(held);

    let input = model::hidden(5, 3);
    let mut results = [shared, world.host(beside)].map(|hosted| {
        let mut table = world.open(beside);
        hidden_bits(&hosted.forward(&mut table, &input).unwrap())
    });
    assert_eq!(results[0], results[1]);
    results = [part, world.host(span(1, blocks - 1))].map(|hosted| {
        let mut table = world.open(hosted.span());
        hidden_bits(&hosted.forward(&mut table, &input).unwrap())
    });
    assert_eq!(results[0], results[1]);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for weight_type in [WeightType::F32, WeightType::BF16, WeightType::Q4K] {
        let world = World::new(Family::Mistral, weight_type);
        let (blocks, input) = (span(0, 3), model::hidden(TOKENS, 4));
        let with = |threads| {
            let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            let hosted = world.host(blocks).on(device);
            hidden_bits(&hosted.forward(&mut world.open(blocks), &input).unwrap())
        };
        assert_eq!(with(1), with(2), "{weight_type}");
        assert_eq!(with(1), with(3), "{weight_type}");
    }
}

#[test]
fn a_table_cut_back_continues_as_a_fresh_one_does() {
    for position in [0, 1, 15, 16, 17, 31, 32, 40] {
        let world = World::new(Family::Mistral, WeightType::F32);
        let blocks = span(0, 3);
        let hosted = world.host(blocks);
        let (first, other) = (model::hidden(TOKENS, 5), model::hidden(TOKENS, 6));
        let mut table = world.open(blocks);
        hosted.forward(&mut table, &first).unwrap();
        table.truncate(position).unwrap();
        let found = hosted.forward(&mut table, &other).unwrap();
        let mut fresh = world.open(blocks);
        if position > 0 {
            hosted.forward(&mut fresh, &first.rows(0..position).unwrap()).unwrap();
        }
        let expected = hosted.forward(&mut fresh, &other).unwrap();
        assert_eq!(hidden_bits(&found), hidden_bits(&expected), "{position}");
        assert_eq!(cache_bits(&mut table), cache_bits(&mut fresh), "{position}");
    }
}

#[test]
fn tokens_that_were_cut_off_leave_no_trace_even_where_they_were_not_finite() {
    let world = World::new(Family::Llama, WeightType::F32);
    let blocks = span(0, 3);
    let hosted = world.host(blocks);
    let (first, other) = (model::hidden(20, 8), model::hidden(5, 9));
    let wild = HiddenStates::from_values(vec![f32::NAN; 6 * 256], 256).unwrap();
    let (mut table, mut fresh) = (world.open(blocks), world.open(blocks));
    for table in [&mut table, &mut fresh] {
        hosted.forward(table, &first).unwrap();
    }
    hosted.forward(&mut table, &wild).unwrap();
    table.truncate(20).unwrap();
    let found = hosted.forward(&mut table, &other).unwrap();
    let expected = hosted.forward(&mut fresh, &other).unwrap();
    assert_eq!(hidden_bits(&found), hidden_bits(&expected));
}

#[test]
fn values_that_are_not_finite_stay_with_their_tokens() {
    let world = World::new(Family::Llama, WeightType::Q4_0);
    let blocks = span(0, 3);
    let hosted = world.host(blocks);
    let input = model::hidden(3, 1);
    let wild = HiddenStates::from_values(vec![f32::NAN; 256], 256).unwrap();
    let mixed = HiddenStates::concat(&[input.clone(), wild]).unwrap();
    let found = hosted.forward(&mut world.open(blocks), &mixed).unwrap().rows(0..3).unwrap();
    let expected = hosted.forward(&mut world.open(blocks), &input).unwrap();
    assert_eq!(hidden_bits(&found), hidden_bits(&expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn however_a_prompt_is_cut_no_bit_changes(
        family in proptest::sample::select(&FAMILIES[..]),
        weight_type in proptest::sample::select(
            &[WeightType::F32, WeightType::F16, WeightType::Q5_1, WeightType::Q5K][..],
        ),
        tokens in 1..60usize,
        sizes in proptest::collection::vec(1..20usize, 0..8),
    ) {
        let world = World::new(family, weight_type);
        let (blocks, input) = (span(1, 3), model::hidden(tokens, 7));
        let hosted = world.host(blocks);
        let (mut whole, mut cut) = (world.open(blocks), world.open(blocks));
        let expected = pieces(&hosted, &mut whole, &input, &[]);
        let found = pieces(&hosted, &mut cut, &input, &sizes);
        prop_assert_eq!(hidden_bits(&found), hidden_bits(&expected));
        prop_assert_eq!(cache_bits(&mut cut), cache_bits(&mut whole));
    }
}
