//! Sessions that share a pass get, bit for bit, what each would get alone.

use std::sync::Arc;

use super::*;
use crate::train::Adapter;

/// What a session does in one pass.
struct Turn {
    session: usize,
    input: HiddenStates,
    /// Where its cache is cut back to before.
    cut: Option<usize>,
}

fn turn(session: usize, tokens: usize, seed: u64) -> Turn {
    Turn { session, input: model::hidden(tokens, seed), cut: None }
}

fn cut_back(session: usize, cut: usize, tokens: usize, seed: u64) -> Turn {
    Turn { cut: Some(cut), ..turn(session, tokens, seed) }
}

/// Takes the turns of each pass together, and returns the results of each session in order.
fn together(hosted: &HostedSpan, tables: &mut [KvTable], passes: &[Vec<Turn>]) -> Vec<Vec<u32>> {
    let mut results = vec![Vec::new(); tables.len()];
    for turns in passes {
        let mut inputs: Vec<Option<&Turn>> = (0..tables.len()).map(|_| None).collect();
        for turn in turns {
            inputs[turn.session] = Some(turn);
        }
        let mut batch = Vec::new();
        for (table, turn) in tables.iter_mut().zip(&inputs) {
            let Some(turn) = turn else { continue };
            if let Some(cut) = turn.cut {
                table.truncate(cut).unwrap();
            }
            batch.push((table, &turn.input));
        }
        let sessions = inputs.iter().flatten().map(|turn| turn.session);
        for (session, result) in sessions.zip(hosted.forward_batch(&mut batch)) {
            results[session].extend(hidden_bits(&result.unwrap()));
        }
    }
    results
}

/// The same turns, each in a pass of its own.
fn alone(hosted: &HostedSpan, tables: &mut [KvTable], passes: &[Vec<Turn>]) -> Vec<Vec<u32>> {
    let mut results = vec![Vec::new(); tables.len()];
    for turn in passes.iter().flatten() {
        let table = &mut tables[turn.session];
        if let Some(cut) = turn.cut {
            table.truncate(cut).unwrap();
        }
        let result = hosted.forward(table, &turn.input).unwrap();
        results[turn.session].extend(hidden_bits(&result));
    }
    results
}

/// Prompts beside single tokens, guesses that are checked and taken back, and a session that pauses.
fn passes() -> Vec<Vec<Turn>> {
    vec![
        vec![turn(0, 17, 1), turn(2, 1, 2)],
        vec![turn(0, 1, 3), turn(1, 40, 4), turn(2, 1, 5)],
        vec![turn(0, 1, 6), turn(1, 1, 7), turn(2, 33, 8), turn(3, 16, 9)],
        vec![cut_back(0, 15, 4, 10), turn(1, 1, 11), turn(3, 1, 12)],
        vec![cut_back(0, 17, 1, 13), cut_back(1, 0, 20, 14), turn(2, 1, 15), cut_back(3, 3, 5, 16)],
    ]
}

fn assert_the_same(world: &World, blocks: &[Span; 4], what: &str) {
    assert_the_same_with(world, blocks, [None; 4], what);
}

/// The same, where sessions have adapters.
pub(super) fn assert_the_same_with(
    world: &World,
    blocks: &[Span; 4],
    adapters: [Option<&Arc<Adapter>>; 4],
    what: &str,
) {
    let hosted = world.host(span(0, 3));
    let open = || -> Vec<_> {
        let open = |(&blocks, adapter): (&Span, Option<&Arc<Adapter>>)| {
            let mut table = world.open(blocks);
            if let Some(adapter) = adapter {
                hosted.adapt(&mut table, Arc::clone(adapter)).unwrap();
            }
            table
        };
        blocks.iter().zip(adapters).map(open).collect()
    };
    let (mut shared, mut own) = (open(), open());
    let passes = passes();
    let found = together(&hosted, &mut shared, &passes);
    let expected = alone(&hosted, &mut own, &passes);
    assert_eq!(found, expected, "{what}");
    for (shared, own) in shared.iter_mut().zip(&mut own) {
        assert_eq!(cache_bits(shared), cache_bits(own), "{what}");
    }
}

#[test]
fn mixed_rows_of_several_sessions_give_the_bits_of_each_alone() {
    for family in FAMILIES {
        for weight_type in [WeightType::F32, WeightType::BF16, WeightType::Q4_1, WeightType::Q6K] {
            let world = World::new(family, weight_type);
            assert_the_same(&world, &[span(0, 3); 4], &format!("{family} {weight_type}"));
        }
    }
}

#[test]
fn sessions_of_other_blocks_share_those_that_they_have_in_common() {
    for family in FAMILIES {
        let world = World::new(family, WeightType::Q8_0);
        let blocks = [span(0, 2), span(1, 3), span(0, 3), span(2, 3)];
        assert_the_same(&world, &blocks, &family.to_string());
        // Two sessions that never meet, and one that meets both.
        let blocks = [span(0, 1), span(2, 3), span(0, 3), span(1, 2)];
        assert_the_same(&world, &blocks, &family.to_string());
    }
}

#[test]
fn what_is_wrong_with_one_session_leaves_the_others_as_they_were() {
    let world = World::new(Family::Llama, WeightType::F32);
    let hosted = world.host(span(1, 3));
    let (mut good, mut full, mut elsewhere) =
        (world.open(span(1, 3)), world.open(span(1, 3)), world.open(span(0, 2)));
    let mut wild = world.open(span(1, 3));
    let prompt = model::hidden(120, 1);
    hosted.forward(&mut full, &prompt).unwrap();
    let (input, long) = (model::hidden(3, 2), model::hidden(9, 3));
    let not_finite = HiddenStates::from_values(vec![f32::NAN; 2 * 256], 256).unwrap();
    let mut batch = [
        (&mut full, &long),
        (&mut good, &input),
        (&mut elsewhere, &input),
        (&mut wild, &not_finite),
    ];
    let results = hosted.forward_batch(&mut batch);
    assert!(matches!(results[0], Err(ForwardError::TableFull { tokens: 9, .. })));
    assert!(matches!(results[2], Err(ForwardError::NotHosted { .. })));
    assert!(results[3].as_ref().unwrap().to_values().iter().all(|value| value.is_nan()));
    let alone = hosted.forward(&mut world.open(span(1, 3)), &input).unwrap();
    assert_eq!(hidden_bits(results[1].as_ref().unwrap()), hidden_bits(&alone));
    assert_eq!((full.position(), good.position(), elsewhere.position()), (120, 3, 0));
    assert!(hosted.forward_batch(&mut []).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whoever_shares_the_passes_no_bit_changes(
        family in proptest::sample::select(&FAMILIES[..]),
        weight_type in proptest::sample::select(
            &[WeightType::F32, WeightType::F16, WeightType::Q5_1, WeightType::Q5K][..],
        ),
        threads in 1..4usize,
        steps in proptest::collection::vec(
            proptest::collection::btree_map(0..4usize, (1..12usize, 0..30usize), 1..4), 1..6,
        ),
    ) {
        let world = World::new(family, weight_type);
        let device = Device::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
        let hosted = world.host(span(0, 3)).on(device);
        let blocks = [span(0, 3), span(0, 3), span(0, 2), span(1, 3)];
        let mut ends = [0; 4];
        let mut passes = Vec::new();
        for (seed, step) in (0..).zip(&steps) {
            let turns = step.iter().map(|(&session, &(tokens, cut))| {
                let cut = cut.min(ends[session]);
                ends[session] = cut + tokens;
                cut_back(session, cut, tokens, 100 * seed + session as u64)
            });
            passes.push(turns.collect::<Vec<_>>());
        }
        let open = || -> Vec<_> { blocks.iter().map(|&blocks| world.open(blocks)).collect() };
        let (mut shared, mut own) = (open(), open());
        let found = together(&hosted, &mut shared, &passes);
        let expected = alone(&hosted, &mut own, &passes);
        prop_assert_eq!(found, expected);
    }
}
