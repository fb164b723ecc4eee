//! Sessions with adapters on a GPU beside those of the processor.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use umbel_engine::train::{
    Adapter, AdapterConfig, Parameters, Sequence, TargetModule, TrainError, TrainingPass,
};
use umbel_engine::{Gpu, HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_tests::adapted::scattered;

use super::{Pair, ROOM, relative_error, relative_error_of, same};

/// Tokens of the texts that are learned: no whole number of tiles, and few, since an emulated device takes
/// its time for attention without a cache.
const TRAINED_TOKENS: usize = 25;

/// More ranks than a thread takes of a gradient, and no multiple of them; and few, where kernels take each by
/// itself.
const RANK: usize = 11;
const RANK_SMALL: usize = 3;

/// Tokens of sessions that share passes: four times as many are more than go through the kernels for few.
const SHARED_TOKENS: usize = 24;

/// What an adapter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Matrices,
    /// Beside frozen gates and up projections.
    Some,
    Magnitudes,
    Prompts,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Matrices, Kind::Some, Kind::Magnitudes, Kind::Prompts];

/// An adapter for the blocks of a pair, which changes much.
pub(crate) fn adapter(pair: &Pair, kind: Kind, dropout: f32, seed: u32) -> Result<Adapter> {
    adapter_of_rank(pair, kind, dropout, seed, RANK)
}

fn adapter_of_rank(
    pair: &Pair,
    kind: Kind,
    dropout: f32,
    seed: u32,
    rank: usize,
) -> Result<Adapter> {
    let target_modules = match kind {
        Kind::Matrices | Kind::Magnitudes => TargetModule::ALL.to_vec(),
        Kind::Some => vec![TargetModule::Value, TargetModule::Down],
        Kind::Prompts => Vec::new(),
    };
    let has_matrices = !target_modules.is_empty();
    let config = AdapterConfig {
        rank: if has_matrices { rank } else { 0 },
        alpha: if has_matrices { 0.5 * rank as f32 } else { 0.0 },
        dropout,
        target_modules,
        weight_decomposed: kind == Kind::Magnitudes,
        block_prompt_tokens: if kind == Kind::Prompts { 5 } else { 0 },
        ..AdapterConfig::default()
    };
    let mut adapter = Adapter::blank(config, &pair.config, pair.span)?;
    let values = scattered(adapter.parameters().value_count(), seed, 0.2);
    adapter.write(0, &values)?;
    if kind == Kind::Magnitudes {
        let range = 0..adapter.magnitude_count(pair.span);
        let norms = pair.exact.first_magnitudes(&adapter, range, &|| ())?;
        let mut norms = norms.context("a norm for each row")?;
        // Not all are what they were.
        norms.iter_mut().zip(&values).for_each(|(norm, value)| *norm *= 1.0 + value);
        adapter.set_magnitudes(&norms)?;
    }
    Ok(adapter)
}

/// The norms of frozen rows are those of the processor: the same numbers where the weights are, else near.
pub(crate) fn norms(pair: &Pair, is_exact: bool, allowed: f64) -> Result<()> {
    let adapter = adapter(pair, Kind::Magnitudes, 0.0, 7)?;
    let of = |blocks: &HostedSpan| {
        let all = 0..adapter.magnitude_count(pair.span);
        let norms = blocks.first_magnitudes(&adapter, all, &|| ())?;
        norms.context("a norm for each row")
    };
    let (found, exact) = (of(&pair.blocks)?, of(&pair.exact)?);
    let error = relative_error_of(&found, &exact);
    ensure!(error <= allowed, "norms are {error:.1e} from those of the processor");
    let bits = |norms: Vec<f32>| norms.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    ensure!(!is_exact || bits(found) == bits(exact), "other norms");
    Ok(())
}

/// Every kind of adapter gives what it does on the processor, with the same bits each time, and sessions
/// beside it are as they were.
pub(crate) fn compare(pair: &Pair, plain: &HiddenStates, allowed: f64) -> Result<()> {
    let text = pair.text(1)?;
    for kind in KINDS {
        let of = |seed| anyhow::Ok(Arc::new(adapter_of_rank(pair, kind, 0.0, seed, RANK_SMALL)?));
        let (first, second) = (of(7)?, of(8)?);
        let exact = {
            let arena = KvArena::new(&pair.config, pair.span, ROOM);
            let mut table = arena.open_as(pair.cache, pair.span, pair.tokens())?;
            pair.exact.adapt(&mut table, Arc::clone(&first))?;
            pair.exact.forward(&mut table, &text)?
        };
        let whole = in_steps(pair, &first, &text, &[usize::MAX / 2])?;
        let error = relative_error(&whole, &exact);
        ensure!(error <= allowed, "{kind:?}: {error:.1e}, and {allowed:.0e} is allowed");
        let changed = relative_error(&whole, plain);
        ensure!(changed > 4.0 * error, "{kind:?} changes {changed:.1e}, which is not much");
        for steps in [&[1, 1, 1, 1, 1, 1, 70][..], &[64, 3]] {
            let found = in_steps(pair, &first, &text, steps)?;
            ensure!(same(&found, &whole), "{kind:?}: steps of {steps:?} give other bits");
        }
        together(pair, [&first, &second], [plain, &whole]).with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

fn adapted(pair: &Pair, adapter: &Arc<Adapter>) -> Result<KvTable> {
    let mut table = pair.table()?;
    pair.blocks.adapt(&mut table, Arc::clone(adapter))?;
    Ok(table)
}

fn in_steps(
    pair: &Pair,
    adapter: &Arc<Adapter>,
    text: &HiddenStates,
    steps: &[usize],
) -> Result<HiddenStates> {
    pair.from(&mut adapted(pair, adapter)?, text, steps)
}

/// Two sessions with an adapter, one with another and one without share passes.
fn together(
    pair: &Pair,
    [first, second]: [&Arc<Adapter>; 2],
    [plain, whole]: [&HiddenStates; 2],
) -> Result<()> {
    let text = pair.text(1)?;
    let mut tables =
        [pair.table()?, adapted(pair, first)?, adapted(pair, second)?, adapted(pair, first)?];
    let mut results = [const { Vec::new() }; 4];
    let end = SHARED_TOKENS.min(pair.tokens());
    for range in [0..end - 5, end - 5..end - 4, end - 4..end] {
        let rows = text.rows(range)?;
        let mut batch: Vec<_> = tables.iter_mut().map(|table| (table, &rows)).collect();
        let parts = pair.blocks.forward_batch(&mut batch);
        for (results, part) in results.iter_mut().zip(parts) {
            results.push(part?);
        }
    }
    let results = results.map(|parts| HiddenStates::concat(&parts));
    let [of_none, of_first, of_second, again] = results;
    let (plain, whole) = (&plain.rows(0..end)?, &whole.rows(0..end)?);
    ensure!(same(&of_none?, plain), "a session without an adapter has other bits beside it");
    ensure!(same(&of_first?, whole) && same(&again?, whole), "other bits among others");
    ensure!(!same(&of_second?, whole), "another adapter is another");
    Ok(())
}

/// Gradients of adapters are those that the processor finds, with inputs that are dropped and without, and
/// a sequence's do not depend on the one beside it.
pub(crate) fn gradients(pair: &Pair, allowed: f64) -> Result<()> {
    let (cut, all) = (TRAINED_TOKENS / 3, 0..TRAINED_TOKENS);
    let sequence = |tokens, dropout_seed| Sequence { tokens, dropout_seed };
    let both = [sequence(cut, 3), sequence(TRAINED_TOKENS - cut, 4)];
    let (text, gradient) = (pair.text(1)?, pair.text(4)?);
    for (kind, dropout) in [
        (Kind::Matrices, 0.25),
        (Kind::Some, 0.0),
        (Kind::Magnitudes, 0.0),
        (Kind::Magnitudes, 0.25),
        (Kind::Prompts, 0.0),
    ] {
        let adapter = adapter(pair, kind, dropout, 7)?;
        let through = |blocks: &HostedSpan, sequences: &[Sequence], rows: Range<usize>| {
            let pass = TrainingPass::new(blocks, pair.span, Some(&adapter), sequences)?;
            let forward = pass.forward(&text.rows(rows.clone())?)?;
            let backward = pass.backward(&forward.inputs, &gradient.rows(rows)?)?;
            anyhow::Ok((forward.output, backward))
        };
        let (output, found) = through(&pair.blocks, &both, all.clone())?;
        let (exact_output, exact) = through(&pair.exact, &both, all.clone())?;
        let mut errors = vec![
            relative_error(&output, &exact_output),
            relative_error(&found.input, &exact.input),
        ];
        let (found_all, exact_all) = (rows(&found.parameters), rows(&exact.parameters));
        ensure!(found_all.len() == exact_all.len(), "{kind:?}: gradients are missing");
        for (found, exact) in found_all.iter().zip(&exact_all) {
            ensure!(found.len() == exact.len(), "{kind:?}: gradients are missing");
            errors.push(relative_error_of(found, exact));
        }
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let sound = errors.iter().all(|error| *error <= allowed);
        ensure!(sound, "{kind:?}, {dropout}: {worst:.1e}, and {allowed:.0e} is allowed");
        let rest = cut..TRAINED_TOKENS;
        let (alone, of_alone) = through(&pair.blocks, &both[1..], rest.clone())?;
        ensure!(same(&alone, &output.rows(rest.clone())?), "{kind:?}: other bits alone");
        ensure!(same(&of_alone.input, &found.input.rows(rest)?), "{kind:?}: other gradients alone");
    }
    Ok(())
}

/// The gradients of each matrix, of magnitudes and of prompts.
fn rows(parameters: &Parameters) -> Vec<Vec<f32>> {
    let pairs = parameters.iter().flat_map(|(_, pair)| [pair.a(), pair.b(), pair.magnitudes()]);
    let prompts = (0..2).filter_map(|block| parameters.prompt_of(block));
    pairs.chain(prompts).filter(|row| !row.is_empty()).map(<[f32]>::to_vec).collect()
}

/// An adapter is on the device once for all its sessions, and as long as there is one. It is a large one:
/// a driver hands out its memory by the megabyte.
pub(crate) fn shared(gpu: &Gpu, pair: &Pair) -> Result<()> {
    let adapter = Arc::new(large(pair)?);
    let (of_one, of_two) = (pair.table()?, pair.table()?);
    let free = || Ok::<_, anyhow::Error>(gpu.memory()?.0);
    let before = free()?;
    let mut tables = [of_one, of_two];
    pair.blocks.adapt(&mut tables[0], Arc::clone(&adapter))?;
    let with_one = free()?;
    pair.blocks.adapt(&mut tables[1], Arc::clone(&adapter))?;
    ensure!(with_one < before && free()? == with_one, "it is there once");
    let [of_one, of_two] = tables;
    drop(of_one);
    let with_last = free()?;
    ensure!(with_last < before, "the other session has it still");
    drop(of_two);
    ensure!(free()? > with_last, "it went with the last session");
    let mut third = pair.table()?;
    pair.blocks.adapt(&mut third, Arc::clone(&adapter))?;
    ensure!(free()? < before, "it is there again");
    Ok(())
}

/// An adapter that takes megabytes.
pub(crate) fn large(pair: &Pair) -> Result<Adapter> {
    let config =
        AdapterConfig { rank: 256, ..adapter(pair, Kind::Matrices, 0.0, 7)?.config().clone() };
    Ok(Adapter::begin(config, &pair.config, pair.span, 1)?)
}

/// Without memory no session gets an adapter, and an error says so.
pub(crate) fn starved(
    blocks: &HostedSpan,
    table: &mut KvTable,
    adapter: &Arc<Adapter>,
) -> Result<()> {
    let refused = blocks.adapt(table, Arc::clone(adapter)).err();
    let Some(TrainError::Gpu(error)) = refused else {
        anyhow::bail!("there was memory after all: {refused:?}")
    };
    ensure!(error.is_out_of_memory(), "{error}");
    Ok(())
}
