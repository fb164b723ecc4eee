//! A session that begins with pages of another gives the bits that it would have given alone.

use super::*;
use crate::kv::kept::KeptPage;

/// The pages of the first so many tokens.
fn keep(table: &KvTable, tokens: usize) -> Vec<KeptPage> {
    (0..tokens / PAGE_TOKENS).map(|page| table.keep(page).unwrap()).collect()
}

#[test]
fn a_session_that_takes_a_prefix_over_gives_the_bits_of_one_that_computed_it() {
    let blocks = span(1, 3);
    for family in FAMILIES {
        let world = World::new(family, WeightType::F32);
        let hosted = world.host(span(0, 3));
        let arena = KvArena::new(&world.config, blocks, 1_024);
        let input = model::hidden(TOKENS, 1);
        let other = model::hidden(TOKENS, 2);
        for cache in DType::ALL {
            let open = || arena.open_as(cache, blocks, 64).unwrap();
            let mut alone = open();
            let expected = hidden_bits(&pieces(&hosted, &mut alone, &input, &[7, 20]));
            let kept = keep(&alone, TOKENS);
            let mut sharing = open();
            sharing.begin_with(&kept.iter().collect::<Vec<_>>()).unwrap();
            let rest = input.rows(32..TOKENS).unwrap();
            let found = hidden_bits(&hosted.forward(&mut sharing, &rest).unwrap());
            assert_eq!(found, expected[expected.len() - found.len()..], "{family:?} {cache}");

            // Cut into the middle of what is shared, and on with other tokens: neither notices.
            sharing.truncate(21).unwrap();
            let mut apart = open();
            hosted.forward(&mut apart, &input.rows(0..21).unwrap()).unwrap();
            let branch = other.rows(21..TOKENS).unwrap();
            let expected_branch = hidden_bits(&hosted.forward(&mut apart, &branch).unwrap());
            let found = hidden_bits(&hosted.forward(&mut sharing, &branch).unwrap());
            assert_eq!(found, expected_branch, "{family:?} {cache}");
            alone.truncate(32).unwrap();
            let again = hidden_bits(&hosted.forward(&mut alone, &rest).unwrap());
            assert_eq!(again, expected[expected.len() - again.len()..], "{family:?} {cache}");
        }
    }
}

#[test]
fn sessions_that_share_pages_go_through_one_pass_as_any_others() {
    let blocks = span(0, 3);
    let world = World::new(FAMILIES[0], WeightType::F32);
    let hosted = world.host(blocks);
    let arena = KvArena::new(&world.config, blocks, 1_024);
    let input = model::hidden(TOKENS, 1);
    let mut first = arena.open(blocks, 64).unwrap();
    let expected = hidden_bits(&hosted.forward(&mut first, &input).unwrap());
    let kept = keep(&first, 32);
    let rest = input.rows(32..TOKENS).unwrap();
    first.truncate(32).unwrap();
    let mut second = arena.open(blocks, 64).unwrap();
    second.begin_with(&kept.iter().collect::<Vec<_>>()).unwrap();
    let results = hosted.forward_batch(&mut [(&mut first, &rest), (&mut second, &rest)]);
    for result in results {
        let found = hidden_bits(&result.unwrap());
        assert_eq!(found, expected[expected.len() - found.len()..]);
    }
}
