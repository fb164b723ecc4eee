//! Pages that are kept, against a simple model: what each table has written, and what each page and
//! each table was promised.

use proptest::prelude::*;

use super::*;

const SHAPE: PageShape = PageShape { kv_heads: 1, head_size: 2 };
const BLOCKS: u32 = 2;
const PAGE_BYTES: usize = 2 * PAGE_TOKENS * 2 * 4 * BLOCKS as usize;

fn blocks() -> Span {
    Span::new(3, 3 + BLOCKS).unwrap()
}

fn arena(tokens_max: usize) -> KvArena {
    KvArena::of_pages(blocks(), SHAPE, tokens_max)
}

/// Lets every block of a table hold these values from its position on, one for each token.
fn write(table: &mut KvTable, tokens: &[f32]) {
    let values: Vec<f32> = tokens.iter().flat_map(|token| [*token, -token]).collect();
    let position = table.position();
    table.caches_mut().iter_mut().for_each(|cache| cache.write(position, &values, &values));
    table.advance(tokens.len());
}

/// What a table holds in each block.
fn read(table: &KvTable) -> Vec<f32> {
    let mut all = table.caches().iter().map(|cache| {
        let value = |position: usize| {
            let (keys, values) = cache.floats(position / PAGE_TOKENS);
            let slot = position % PAGE_TOKENS;
            assert_eq!(keys[SHAPE.key(0, slot)], values[SHAPE.value(0, slot).start]);
            keys[slot]
        };
        (0..table.position()).map(value).collect::<Vec<_>>()
    });
    let first = all.next().unwrap();
    assert!(all.all(|other| other == first), "all blocks hold the same here");
    first
}

fn counted(tokens: usize, from: usize) -> Vec<f32> {
    (from..from + tokens).map(|token| token as f32).collect()
}

#[test]
fn only_full_pages_are_kept_and_only_where_they_belong() {
    let arena = arena(320);
    let mut table = arena.open(blocks(), 64).unwrap();
    write(&mut table, &counted(33, 0));
    let kept: Vec<_> = (0..2).map(|page| table.keep(page).unwrap()).collect();
    assert!(table.keep(2).is_none());
    let kept: Vec<_> = kept.iter().collect();
    let mut narrow = arena.open_as(DType::BF16, blocks(), 64).unwrap();
    let mut elsewhere = arena.open(Span::new(3, 4).unwrap(), 64).unwrap();
    let mut short = arena.open(blocks(), 16).unwrap();
    for other in [&mut table, &mut narrow, &mut elsewhere, &mut short] {
        let before = other.position();
        assert_eq!(other.begin_with(&kept), Err(WrongPrefixError { pages: 2 }));
        assert_eq!(other.position(), before);
    }
}

#[test]
fn tables_that_share_pages_take_their_memory_once_and_never_see_what_the_other_writes() {
    let arena = arena(320);
    let mut first = arena.open(blocks(), 64).unwrap();
    write(&mut first, &counted(40, 0));
    let kept: Vec<_> = (0..2).map(|page| first.keep(page).unwrap()).collect();
    let mut second = arena.open(blocks(), 64).unwrap();
    second.begin_with(&kept.iter().collect::<Vec<_>>()).unwrap();
    let page = |table: &KvTable, page: usize| table.caches()[0].floats(page).0.as_ptr();
    assert_eq!((page(&first, 0), page(&first, 1)), (page(&second, 0), page(&second, 1)));
    // Cut into the middle of a page that three hold: it is copied when something is written.
    second.truncate(20).unwrap();
    write(&mut second, &counted(20, 1_000));
    assert_eq!(page(&first, 0), page(&second, 0));
    assert_ne!(page(&first, 1), page(&second, 1));
    assert_eq!(read(&first), counted(40, 0));
    assert_eq!(read(&second), [counted(20, 0), counted(20, 1_000)].concat());
    first.truncate(10).unwrap();
    write(&mut first, &counted(30, 2_000));
    assert_eq!(read(&second), [counted(20, 0), counted(20, 1_000)].concat());
    let mut third = arena.open(blocks(), 64).unwrap();
    third.begin_with(&kept.iter().collect::<Vec<_>>()).unwrap();
    assert_eq!(read(&third), counted(32, 0), "what is kept is what it was");
}

#[derive(Debug, Clone)]
enum Action {
    Open { tokens: usize, pages: usize },
    Write { table: usize, tokens: usize },
    Truncate { table: usize, position: usize },
    Keep { table: usize, page: usize },
    Close { table: usize },
    Drop { kept: usize },
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..150usize, 0..4usize).prop_map(|(tokens, pages)| Action::Open { tokens, pages }),
        (0..5usize, 0..50usize).prop_map(|(table, tokens)| Action::Write { table, tokens }),
        (0..5usize, 0..60usize).prop_map(|(table, position)| Action::Truncate { table, position }),
        (0..5usize, 0..4usize).prop_map(|(table, page)| Action::Keep { table, page }),
        (0..5usize).prop_map(|table| Action::Close { table }),
        (0..8usize).prop_map(|kept| Action::Drop { kept }),
    ]
}

proptest! {
    /// Every page that is kept is charged here, whether a table holds it or not.
    #[test]
    fn the_budget_is_never_exceeded_and_every_table_reads_what_it_wrote(
        actions in proptest::collection::vec(actions(), 0..60),
    ) {
        let arena = arena(320);
        let budget = 320 / PAGE_TOKENS * PAGE_BYTES;
        let mut tables: Vec<(KvTable, Vec<f32>)> = Vec::new();
        let mut kept: Vec<(KeptPage, Vec<f32>)> = Vec::new();
        let mut written = 0;
        for action in actions {
            match action {
                Action::Open { tokens, pages } => {
                    if let Ok(mut table) = arena.open(blocks(), tokens) {
                        let prefix = &kept[..pages.min(kept.len())];
                        let pages: Vec<_> = prefix.iter().map(|(page, _)| page).collect();
                        let fits = pages.len() * PAGE_TOKENS <= tokens;
                        prop_assert_eq!(table.begin_with(&pages).is_ok(), fits);
                        let held = prefix.iter().filter(|_| fits).flat_map(|(_, held)| held.clone());
                        tables.push((table, held.collect()));
                    }
                }
                Action::Write { table, tokens } => {
                    if let Some((table, held)) = tables.get_mut(table) {
                        let tokens = counted(tokens.min(table.free_tokens()), written);
                        written += tokens.len();
                        write(table, &tokens);
                        held.extend(tokens);
                    }
                }
                Action::Truncate { table, position } => {
                    if let Some((table, held)) = tables.get_mut(table) {
                        let position = position.min(table.position());
                        table.truncate(position).unwrap();
                        held.truncate(position);
                    }
                }
                Action::Keep { table, page } => {
                    if let Some((table, held)) = tables.get(table)
                        && let Some(mut page_kept) = table.keep(page)
                        && arena.charge(&mut page_kept)
                    {
                        let tokens = page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS;
                        kept.push((page_kept, held[tokens].to_vec()));
                    }
                }
                Action::Close { table } if table < tables.len() => drop(tables.swap_remove(table)),
                Action::Drop { kept: index } if index < kept.len() => drop(kept.remove(index)),
                Action::Close { .. } | Action::Drop { .. } => {}
            }
            let promised: usize =
                tables.iter().map(|(table, _)| table.capacity().div_ceil(PAGE_TOKENS)).sum();
            let used = (promised + kept.len()) * PAGE_BYTES;
            prop_assert!(used <= budget);
            prop_assert_eq!(arena.free_tokens(), (budget - used) / PAGE_BYTES * PAGE_TOKENS);
            for (table, held) in &tables {
                prop_assert_eq!(&read(table), held);
            }
        }
        tables.clear();
        kept.clear();
        prop_assert_eq!(arena.free_tokens(), 320);
    }
}
