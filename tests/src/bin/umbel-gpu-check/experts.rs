//! Models with experts on a GPU beside the processor.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use umbel_engine::kernel::Arithmetic;
use umbel_engine::train::{
    Adapter, AdapterConfig, Sequence, TargetModule, TrainError, TrainingPass,
};
use umbel_engine::{Gpu, HiddenStates, HostedSpan, KvArena};
use umbel_protocol::{DType, Span};
use umbel_shard::{Experts, Family, Model, ModelConfig, Part, WeightType};
use umbel_tests::adapted::scattered;

use super::{
    NARROW_ERROR_MAX, PLAIN_ERROR_MAX, Pair, ROOM, in_parts, random, relative_error_of,
    rolled_back, same, shared, text, together, usual,
};

/// Of so many tokens one may go through other experts than on the processor, where logits differ in their last
/// digits since matrices are narrow: then its row is another. Among a hundred experts one in ten does, since
/// the last that is chosen and the next are that near.
const TOKENS_OF_ANOTHER_CHOICE: usize = 4;

/// More tokens than go through experts together.
const LONG_TOKENS: usize = 1100;

/// Compares models of every type, of both families, and of odd shapes; one line for each.
pub(crate) fn compare_all(gpu: &Gpu, folder: &Path, types: &[WeightType]) -> Result<()> {
    let usual = sparse(Family::Mixtral, 6, 3);
    for &kind in types {
        let (pair, name) = (pair(gpu, &random(folder, kind, &usual)?, true)?, kind.name());
        // All else is alike for all of them.
        let (_, worst) = in_steps(&pair).with_context(|| format!("experts, {name}"))?;
        println!("experts, {name}: {worst:.1e}");
    }
    for (name, normalized, config) in shapes() {
        let plain = types.contains(&WeightType::F32).then_some(WeightType::F32);
        for kind in plain.into_iter().chain([WeightType::BF16]) {
            compare_random(gpu, folder, kind, (&config, normalized), name)?;
        }
    }
    for (name, config) in long_rows() {
        for kind in [WeightType::F32, WeightType::BF16, WeightType::Q4K] {
            if types.contains(&kind) {
                let (pair, name) =
                    (pair(gpu, &random(folder, kind, &config)?, true)?, format!("{name}, {kind}"));
                let (_, worst) = in_some_steps(&pair, &STEPS[..2]).with_context(|| name.clone())?;
                println!("{name}: {worst:.1e}");
            }
        }
    }
    for kind in [WeightType::F32, WeightType::Q8_0] {
        if types.contains(&kind) {
            let pair = pair(gpu, &random(folder, kind, &long())?, true)?;
            in_slices(&pair).with_context(|| format!("slices of experts, {kind}"))?;
            println!("slices of experts, {kind}");
        }
    }
    Ok(())
}

/// As the usual shape, with so many experts, of which a token goes through some.
pub(crate) fn sparse(family: Family, count: usize, per_token: usize) -> ModelConfig {
    let experts = Some(Experts { count, per_token, normalized: true });
    ModelConfig { family, experts, ..usual() }
}

/// More experts than tokens, all of them, one of them, more than a warp has lanes; rows that fill no cell.
fn shapes() -> [(&'static str, bool, ModelConfig); 5] {
    let odd = |config| ModelConfig {
        hidden_size: 72,
        intermediate_size: 100,
        head_count: 5,
        kv_head_count: 1,
        head_size: 18,
        ..config
    };
    [
        ("more experts than tokens", true, odd(sparse(Family::Qwen3Moe, 100, 5))),
        ("weights of all experts", false, odd(sparse(Family::Qwen3Moe, 7, 2))),
        ("every expert", true, odd(sparse(Family::Mixtral, 37, 37))),
        ("one expert", false, odd(sparse(Family::Mixtral, 5, 1))),
        ("many experts", true, odd(sparse(Family::Qwen3Moe, 40, 33))),
    ]
}

/// Rows that fill the rings of the kernels more than once, as those of the models that are served do: of the
/// norm, the router and the first products, and of the last one.
fn long_rows() -> [(&'static str, ModelConfig); 2] {
    const LONG: usize = 4352;
    let few = ModelConfig { head_count: 4, ..long() };
    let (of_first, of_last) = ((LONG, 256), (256, LONG));
    let shape = |(hidden_size, intermediate_size)| ModelConfig {
        hidden_size,
        intermediate_size,
        experts: Some(Experts { count: 5, per_token: 2, normalized: true }),
        ..few.clone()
    };
    [("long hidden states to experts", shape(of_first)), ("long rows of experts", shape(of_last))]
}

/// Few heads, since a text is long.
fn long() -> ModelConfig {
    ModelConfig {
        head_count: 2,
        kv_head_count: 1,
        block_count: 1,
        attention_windows: vec![None],
        ..sparse(Family::Mixtral, 12, 2)
    }
}

fn compare_random(
    gpu: &Gpu,
    folder: &Path,
    kind: WeightType,
    (config, normalized): (&ModelConfig, bool),
    name: &str,
) -> Result<()> {
    let name = format!("experts, {name}, {kind}");
    compare_pair(&pair(gpu, &random(folder, kind, config)?, normalized)?, &name)
}

/// A model with experts, as it is.
pub(crate) fn compare(gpu: &Gpu, model: &Model, name: &str) -> Result<()> {
    compare_pair(&Pair::load(gpu, model, DType::F32)?, name)
}

/// As `Pair::load`, with the weights of experts over the chosen ones or over all, for which GGUF files have
/// no word.
fn pair(gpu: &Gpu, model: &Model, normalized: bool) -> Result<Pair> {
    let mut pair = Pair::load(gpu, model, DType::F32)?;
    let experts = pair.config.experts.as_mut().context("it has experts")?;
    if experts.normalized != normalized {
        experts.normalized = normalized;
        let (config, span) = (&pair.config, pair.span);
        let weights = model.weights(Part::Blocks(span))?;
        pair.exact = HostedSpan::load_with(Arithmetic::Exact, config, &weights, span)?;
        pair.blocks = HostedSpan::load_on(gpu, &[], config, &weights, span)?;
        pair.arena = pair.blocks.arena(config, ROOM)?;
    }
    Ok(pair)
}

fn compare_pair(pair: &Pair, name: &str) -> Result<()> {
    let (whole, worst) = in_steps(pair).with_context(|| name.to_owned())?;
    println!("{name}: {worst:.1e}");
    together(pair, &whole).with_context(|| format!("{name}, among others"))?;
    rolled_back(pair, &whole).with_context(|| format!("{name}, after a rollback"))?;
    shared(pair, &whole).with_context(|| format!("{name}, behind a prefix"))?;
    in_parts(pair, &whole).with_context(|| format!("{name}, in two spans"))?;
    hostile(pair, &whole).with_context(|| format!("{name}, beside what is no number"))?;
    adapted(pair, &whole).with_context(|| format!("{name}, adapted"))?;
    untrained(pair).with_context(|| format!("{name}, in training"))
}

/// One token, some of several tiles, and more than are few.
const STEPS: [&[usize]; 4] = [&[1, 1, 1, 1, 1, 1, 70], &[9, 62], &[64, 1, 6], &[33, 17, 21]];

/// What leaves the blocks, which is near what the processor finds and the same in steps of any size.
fn in_steps(pair: &Pair) -> Result<(HiddenStates, f64)> {
    in_some_steps(pair, &STEPS)
}

/// As `in_steps`, of fewer sizes: the longer rows are, the longer an emulated device takes.
fn in_some_steps(pair: &Pair, sizes: &[&[usize]]) -> Result<(HiddenStates, f64)> {
    let text = pair.text(1)?;
    let whole = pair.in_steps(&text, &[usize::MAX / 2])?;
    let worst = near(pair, (&text, &whole), None)?;
    for &steps in sizes {
        let found = pair.in_steps(&text, steps)?;
        ensure!(same(&found, &whole), "steps of {steps:?} give other bits");
    }
    Ok((whole, worst))
}

/// The error of the row that is furthest from the processor's, but for those of another choice. Each block is
/// compared by itself, since tokens behind one of another choice attend to it in the next. In the end there is
/// what leaves all blocks together, which is `whole`.
fn near(
    pair: &Pair,
    (text, whole): (&HiddenStates, &HiddenStates),
    adapter: Option<&Arc<Adapter>>,
) -> Result<f64> {
    let (mut hidden, mut worst) = (text.clone(), 0.0);
    for index in pair.span.blocks() {
        let span = Span::new(index, index + 1)?;
        let through = |blocks: &HostedSpan| {
            let part = blocks.part(span).context("the block is there")?;
            let arena = part.arena(&pair.config, ROOM)?;
            let mut table = arena.open(span, text.token_count())?;
            if let Some(adapter) = adapter {
                part.adapt(&mut table, Arc::clone(adapter))?;
            }
            anyhow::Ok(part.forward(&mut table, &hidden)?)
        };
        let (found, exact) = (through(&pair.blocks)?, through(&pair.exact)?);
        worst = error_of_tokens(pair, &found, &exact)?.max(worst);
        hidden = found;
    }
    ensure!(same(&hidden, whole), "blocks by themselves give other bits");
    Ok(worst)
}

/// As `near`, of what leaves one block.
fn error_of_tokens(pair: &Pair, found: &HiddenStates, exact: &HiddenStates) -> Result<f64> {
    let plain = pair.arena.shared_pages().is_some_and(|pages| pages.native == DType::F32);
    let experts = pair.config.experts.context("it has experts")?;
    let has_choice = experts.per_token < experts.count;
    let (allowed, others) = match plain {
        true => (PLAIN_ERROR_MAX, 0),
        false if !has_choice => (NARROW_ERROR_MAX, 0),
        false => (NARROW_ERROR_MAX, found.token_count() / TOKENS_OF_ANOTHER_CHOICE),
    };
    let size = pair.config.hidden_size;
    let (found, exact) = (found.to_values(), exact.to_values());
    let rows = found.chunks(size).zip(exact.chunks(size));
    let mut errors: Vec<_> = rows.map(|(found, exact)| relative_error_of(found, exact)).collect();
    ensure!(errors.iter().all(|error| error.is_finite()), "some are no numbers");
    errors.sort_by(f64::total_cmp);
    let worst = errors[errors.len() - 1 - others];
    ensure!(worst <= allowed, "a token is {worst:.1e} from the processor's");
    Ok(worst)
}

/// A text that goes through experts in several parts gives what it gives in any others.
fn in_slices(pair: &Pair) -> Result<()> {
    let text = text(pair.config.hidden_size, LONG_TOKENS, 1)?;
    let open = |arena: &KvArena| arena.open(pair.span, LONG_TOKENS);
    let whole = pair.blocks.forward(&mut open(&pair.arena)?, &text)?;
    near(pair, (&text, &whole), None)?;
    for steps in [[LONG_TOKENS - 1, 1], [LONG_TOKENS - 300, 130]] {
        let found = pair.from(&mut open(&pair.arena)?, &text, &steps)?;
        ensure!(same(&found, &whole), "steps of {steps:?} give other bits");
    }
    Ok(())
}

/// Hidden states that are no numbers, or none that can be squared, harm nobody but who sent them.
fn hostile(pair: &Pair, whole: &HiddenStates) -> Result<()> {
    const TOKENS: usize = 12;
    let (size, text) = (pair.config.hidden_size, pair.text(1)?);
    let of = |value: &dyn Fn(usize) -> f32| {
        HiddenStates::from_values((0..TOKENS * size).map(value).collect(), size)
    };
    let negative = f32::from_bits(0xffff_ffff);
    let texts = [
        of(&|_| f32::NAN)?,
        of(&|_| negative)?,
        of(&|_| f32::from_bits(0x7fff_ffff))?,
        of(&|_| f32::NEG_INFINITY)?,
        of(&|at| if at % 3 == 0 { f32::INFINITY } else { f32::MAX })?,
        of(&|at| if at % size == at / size { f32::NAN } else { 1.0 })?,
    ];
    for hostile in &texts {
        for end in [1, TOKENS] {
            let (mut of_hostile, mut table) = (pair.table()?, pair.table()?);
            let (bad, good) = (hostile.rows(0..end)?, text.rows(0..TOKENS)?);
            let batch = &mut [(&mut of_hostile, &bad), (&mut table, &good)];
            let results = pair.blocks.forward_batch(batch);
            let [bad, good] = <[_; 2]>::try_from(results).ok().context("two results")?;
            ensure!(bad?.token_count() == end, "as many rows as came");
            ensure!(same(&good?, &whole.rows(0..TOKENS)?), "other bits beside it");
        }
        // Alone, and where nothing but it chooses.
        let mut table = pair.table()?;
        pair.blocks.forward(&mut table, &hostile.rows(0..1)?)?;
        pair.blocks.forward(&mut table, &hostile.rows(1..TOKENS)?)?;
    }
    Ok(())
}

/// Adapters add to attention, and to nothing that the model does not have.
fn adapted(pair: &Pair, plain: &HiddenStates) -> Result<()> {
    use TargetModule::{Gate, Key, Output, Query, Value};
    let text = pair.text(1)?;
    for weight_decomposed in [false, true] {
        let config = AdapterConfig {
            rank: 3,
            alpha: 1.5,
            target_modules: vec![Query, Key, Value, Output],
            weight_decomposed,
            ..AdapterConfig::default()
        };
        let mut adapter = Adapter::blank(config, &pair.config, pair.span)?;
        let values = scattered(adapter.parameters().value_count(), 7, 0.2);
        adapter.write(0, &values)?;
        if weight_decomposed {
            let all = 0..adapter.magnitude_count(pair.span);
            let norms = pair.exact.first_magnitudes(&adapter, all.clone(), &|| ())?;
            adapter.set_magnitudes(&norms.context("a norm for each row")?)?;
            let of_gpu = pair.blocks.first_magnitudes(&adapter, all, &|| ())?;
            ensure!(of_gpu.is_some(), "the GPU has a norm for each row");
        }
        let adapter = Arc::new(adapter);
        let through = |steps: &[usize]| {
            let mut table = pair.table()?;
            pair.blocks.adapt(&mut table, Arc::clone(&adapter))?;
            pair.from(&mut table, &text, steps)
        };
        let whole = through(&[usize::MAX / 2])?;
        near(pair, (&text, &whole), Some(&adapter))?;
        ensure!(!same(&whole, plain), "it changes nothing");
        ensure!(same(&through(&[1, 9, 61])?, &whole), "steps give other bits");
    }
    let refused = pair.blocks.row_norms(0, Gate, &|| ());
    ensure!(refused == Err(TrainError::Experts { block: 0, module: Gate }), "{refused:?}");
    Ok(())
}

/// Gradients through experts are the processor's to compute, and who asks is told so at once.
fn untrained(pair: &Pair) -> Result<()> {
    let sequences = [Sequence { tokens: 3, dropout_seed: 0 }];
    let refused = TrainingPass::new(&pair.blocks, pair.span, None, &sequences).err();
    ensure!(refused == Some(TrainError::ExpertsOnGpu), "{refused:?}");
    ensure!(pair.blocks.can_train() == Err(TrainError::ExpertsOnGpu), "it seems to be possible");
    pair.exact.can_train().context("on the processor")
}
