//! The accounting against a simple model: a list of what each open session was promised.

use proptest::prelude::*;

use super::*;
use crate::kv::table::BlockCache;

const KV_HEADS: usize = 2;
const HEAD_SIZE: usize = 4;
const HOSTED: (u32, u32) = (3, 9);
const CONTEXT_TOKENS: usize = 400;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn arena(tokens_max: usize) -> KvArena {
    let page = PageShape { kv_heads: KV_HEADS, head_size: HEAD_SIZE };
    KvArena::of_pages(span(HOSTED.0, HOSTED.1), page, tokens_max)
}

/// What a pass does to a table: keys and values for every block, then the new position.
fn fill(table: &mut KvTable, tokens: usize) {
    let values = vec![1.0; tokens * KV_HEADS * HEAD_SIZE];
    let position = table.position();
    table.caches_mut().iter_mut().for_each(|cache| cache.write(position, &values, &values));
    table.advance(tokens);
}

fn page_addresses(table: &mut KvTable) -> Vec<*const f32> {
    let pages = 0..table.position().div_ceil(PAGE_TOKENS);
    let caches = table.caches_mut().iter();
    let of_page = |cache: &BlockCache, page| {
        let (keys, values) = cache.floats(page);
        [keys.as_ptr(), values.as_ptr()]
    };
    caches.flat_map(|cache| pages.clone().flat_map(|page| of_page(cache, page))).collect()
}

#[derive(Debug, Clone)]
enum Action {
    Open { start: u32, blocks: u32, tokens: usize },
    Fill { session: usize, tokens: usize },
    Truncate { session: usize, position: usize },
    Close { session: usize },
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        (HOSTED.0..HOSTED.1, 1..7u32, 0..200usize)
            .prop_map(|(start, blocks, tokens)| { Action::Open { start, blocks, tokens } }),
        (0..8usize, 0..60usize).prop_map(|(session, tokens)| Action::Fill { session, tokens }),
        (0..8usize, 0..90usize)
            .prop_map(|(session, position)| Action::Truncate { session, position }),
        (0..8usize).prop_map(|session| Action::Close { session }),
    ]
}

fn pages_of(blocks: Span, tokens: usize) -> usize {
    tokens.div_ceil(16) * blocks.blocks().count()
}

proptest! {
    #[test]
    fn the_arena_counts_as_a_list_of_promises_does(
        tokens_max in 0..500usize,
        actions in proptest::collection::vec(actions(), 0..60),
    ) {
        let arena = arena(tokens_max);
        let budget = pages_of(arena.hosted(), tokens_max);
        let mut tables: Vec<KvTable> = Vec::new();
        for action in actions {
            match action {
                Action::Open { start, blocks, tokens } => {
                    let blocks = span(start, start + blocks);
                    let promised: usize =
                        tables.iter().map(|table| pages_of(table.blocks(), table.capacity())).sum();
                    let fits = promised + pages_of(blocks, tokens) <= budget;
                    match arena.open(blocks, tokens) {
                        Ok(table) => {
                            prop_assert!(fits && arena.hosted().covers(blocks));
                            tables.push(table);
                        }
                        Err(OpenTableError::NotHosted { .. }) => {
                            prop_assert!(!arena.hosted().covers(blocks));
                        }
                        Err(OpenTableError::Full { free_tokens, .. }) => {
                            prop_assert!(!fits && free_tokens < tokens);
                            let most = arena.open(blocks, free_tokens.min(CONTEXT_TOKENS));
                            prop_assert!(most.is_ok());
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Action::Fill { session, tokens } => {
                    if let Some(table) = tables.get_mut(session) {
                        fill(table, tokens.min(table.free_tokens()));
                    }
                }
                Action::Truncate { session, position } => {
                    if let Some(table) = tables.get_mut(session) {
                        let reached = table.position();
                        prop_assert_eq!(table.truncate(position).is_ok(), position <= reached);
                        prop_assert_eq!(table.position(), position.min(reached));
                    }
                }
                Action::Close { session } if session < tables.len() => {
                    drop(tables.swap_remove(session));
                }
                Action::Close { .. } => {}
            }
            let page_bytes = 2 * KV_HEADS * PAGE_TOKENS * HEAD_SIZE * 4;
            let allocated: usize = tables.iter().map(KvTable::allocated_bytes).sum();
            prop_assert!(allocated <= budget * page_bytes);
            for table in &tables {
                let held = pages_of(table.blocks(), table.position()) * page_bytes;
                prop_assert_eq!(table.allocated_bytes(), held);
            }
            let mut pages: Vec<_> = tables.iter_mut().flat_map(page_addresses).collect();
            let count = pages.len();
            pages.sort_unstable();
            pages.dedup();
            prop_assert_eq!(pages.len(), count);
        }
        tables.clear();
        prop_assert_eq!(arena.free_tokens(), tokens_max.div_ceil(16) * 16);
    }
}

#[test]
fn an_arena_beside_another_gives_out_the_same_room() {
    let arena = arena(64);
    let beside = arena.beside(span(0, 12));
    let table = beside.open(span(0, 12), 16).unwrap();
    // 12 of 24 pages.
    assert_eq!((arena.free_tokens(), beside.free_tokens()), (32, 16));
    assert!(matches!(arena.open(arena.hosted(), 48), Err(OpenTableError::Full { .. })));
    drop(table);
    assert_eq!(arena.free_tokens(), 64);
}

#[test]
fn a_session_longer_than_the_context_is_refused() {
    let refused = arena(10_000).open(span(3, 4), CONTEXT_TOKENS + 1).unwrap_err();
    assert_eq!(refused, OpenTableError::TooLong { tokens: 401, context_tokens: 400 });
}

#[test]
fn narrow_tables_take_less_of_the_budget() {
    let arena = arena(400);
    // A head of 4 values takes 16 bytes, 8, or 6 with a scale of its own.
    for (dtype, tokens) in
        [(DType::F32, 96), (DType::F16, 192), (DType::BF16, 192), (DType::Q8, 256)]
    {
        let rest = arena.open(span(3, 9), 400 - 96).unwrap();
        let refused = arena.open_as(dtype, span(3, 9), tokens + 1).unwrap_err();
        assert_eq!(refused, OpenTableError::Full { tokens: tokens + 1, free_tokens: tokens });
        let mut table = arena.open_as(dtype, span(3, 9), tokens).unwrap();
        fill(&mut table, tokens);
        drop((table, rest));
        assert_eq!(arena.free_tokens(), 400);
    }
}

#[test]
fn an_open_table_that_holds_nothing_has_no_memory() {
    let arena = arena(400);
    let mut table = arena.open(span(3, 9), 400).unwrap();
    assert_eq!((table.allocated_bytes(), arena.free_tokens()), (0, 0));
    fill(&mut table, 1);
    assert!(table.allocated_bytes() > 0);
    assert_eq!(table.truncate(2), Err(crate::TruncateError { position: 1, asked: 2 }));
    table.truncate(0).unwrap();
    assert_eq!(table.allocated_bytes(), 0);
}
