//! The head of a model on a GPU beside that of the processor.

use anyhow::{Result, ensure};
use umbel_engine::kernel::Arithmetic;
use umbel_engine::{EndsError, Gpu, GpuHead, Head, LoadHeadError};
use umbel_shard::{Model, Part};

use super::{relative_error_of, text};

/// Rows: more than are multiplied together.
const ROWS: usize = 71;

/// Logits are near those of the processor, and those of a row are the same bits whatever rows are beside
/// it.
pub(crate) fn compare(gpu: &Gpu, model: &Model, allowed: f64) -> Result<()> {
    let (config, weights) = (model.config(), model.weights(Part::Head)?);
    let exact = Head::load_with(Arithmetic::Exact, config, &weights)?;
    let head = load(gpu, model)?;
    let rows = text(config.hidden_size, ROWS, 5)?;
    let whole = head.logits_of_all(&rows)?;
    let flat = |rows: Vec<Vec<f32>>| rows.concat();
    let error = relative_error_of(&flat(whole.clone()), &flat(exact.logits_of_all(&rows)?));
    ensure!(error <= allowed, "logits are {error:.1e} from those of the processor");

    let parts = [0..1, 1..9, 9..70, 70..71];
    let parts = parts.map(|part| rows.rows(part)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let foreign = text(config.hidden_size + 1, 1, 6)?;
    let mut batch = parts.clone();
    batch.insert(2, foreign);
    let mut found = head.logits_of_each(&batch);
    let refused = found.remove(2).err();
    ensure!(
        matches!(refused, Some(EndsError::WrongHiddenSize { .. })),
        "rows of another model are refused alone"
    );
    let together = found.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    ensure!(same(&together, &whole), "several sessions have other bits");
    let alone = parts.iter().map(|part| head.logits_of_all(part)).collect::<Result<Vec<_>, _>>()?;
    ensure!(same(&alone.concat(), &whole), "other bits alone");
    Ok(())
}

pub(crate) fn load(gpu: &Gpu, model: &Model) -> Result<GpuHead> {
    Ok(GpuHead::load(gpu, model.config(), &model.weights(Part::Head)?)?)
}

/// Without memory there is no head, and an error that says so.
pub(crate) fn starved(gpu: &Gpu, model: &Model) -> Result<()> {
    let refused = GpuHead::load(gpu, model.config(), &model.weights(Part::Head)?).err();
    let Some(LoadHeadError::Gpu(error)) = refused else {
        anyhow::bail!("there was memory after all: {refused:?}")
    };
    ensure!(error.is_out_of_memory(), "{error}");
    Ok(())
}

fn same(one: &[Vec<f32>], other: &[Vec<f32>]) -> bool {
    let bits =
        |rows: &[Vec<f32>]| -> Vec<u32> { rows.concat().into_iter().map(f32::to_bits).collect() };
    bits(one) == bits(other)
}
