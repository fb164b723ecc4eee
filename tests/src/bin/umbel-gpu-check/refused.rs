//! Kernels that cannot be started.

use anyhow::{Context as _, Result, ensure};
use umbel_engine::{Gpu, HiddenStates};
use umbel_protocol::DType;
use umbel_shard::Model;

use super::{Pair, head};

/// Where now and then a kernel cannot be started, its pass fails alone, and those behind it have the values
/// that they have anyway. Only an emulated device refuses so.
pub(crate) fn compare(gpu: &Gpu, model: &Model) -> Result<()> {
    let (pair, head) = (Pair::load(gpu, model, DType::F32)?, head::load(gpu, model)?);
    let texts = [pair.text(1)?, pair.text(2)?];
    // Tables of passes that failed are kept: a device is waited for before memory is freed.
    let mut tables = Vec::new();
    by_turns(&texts, |text| {
        let mut table = pair.table()?;
        let found = pair.blocks.forward(&mut table, text);
        tables.push(table);
        Ok(found.ok().map(|found| found.to_values()))
    })
    .context("passes")?;
    by_turns(&texts, |text| Ok(head.logits_of_all(text).ok().map(|logits| logits.concat())))
        .context("logits")
}

/// Works on two texts by turns, and now and then for nothing.
fn by_turns(
    texts: &[HiddenStates; 2],
    mut work: impl FnMut(&HiddenStates) -> Result<Option<Vec<f32>>>,
) -> Result<()> {
    const TURNS: usize = 16;
    let (mut first, mut refused) = ([None, None], 0);
    for turn in 0..TURNS {
        let Some(found) = work(&texts[turn % 2])? else {
            refused += 1;
            continue;
        };
        let first = first[turn % 2].get_or_insert_with(|| found.clone());
        ensure!(*first == found, "turn {turn} has other values");
    }
    ensure!((1..TURNS).contains(&refused), "{refused} of {TURNS} turns were refused");
    Ok(())
}
