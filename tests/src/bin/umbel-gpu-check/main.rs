//! Compares blocks on a GPU with the same blocks on the processor, and a GPU with itself.
//!
//! ```text
//! umbel-gpu-check [--types TYPE,…] [CHECKPOINT_FOLDER …]
//! umbel-gpu-check --refused
//! ```
//!
//! It makes small models of every weight type, or of those that are named, and of odd shapes, and takes
//! the checkpoints it is given; of odd shapes those in binary32 where that is among the types; and the
//! same with experts. Each is computed by the processor in exact arithmetic and by the GPU: all tokens at once,
//! in steps of several sizes, among other sessions, after a rollback, and behind a prefix that
//! another session has filled; some of them also with keys and values in 8 bits; and gradients go back through the blocks.
//! Rows of thousands of columns and a text of over a thousand tokens go through them too. The GPU must be near
//! the processor, and must give the same bits each time. Tests run it over the emulated driver; `tests/gpu/run.sh` over a real one.

#![allow(clippy::print_stdout, reason = "a program for developers prints what it found")]

mod adapters;
mod experts;
mod head;
mod refused;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use umbel_engine::kernel::Arithmetic;
use umbel_engine::train::{Sequence, TrainingPass};
use umbel_engine::{Gpu, HiddenStates, HostedSpan, KvArena, KvTable, PAGE_TOKENS};
use umbel_protocol::{DType, Span};
use umbel_shard::gguf::write::GgufWriter;
use umbel_shard::{
    Cache, Family, Model, ModelConfig, ModelSource, Part, PartsNeeded, Silent, WeightType,
};

/// Tokens of a text: more than go through the kernels for few tokens, and no whole number of tiles.
const TOKENS: usize = 71;

/// As [`TOKENS`], with more splits of its context than one block of threads joins.
const LONG_TOKENS: usize = 1100;

/// Types of which the cells differ in size, and so the rings of the kernels in depth.
const LONG_TYPES: [WeightType; 3] = [WeightType::BF16, WeightType::Q4K, WeightType::Q8_0];

/// How far results may be from the exact ones, relative to them: where products are of bfloat16, and
/// where they are of binary32.
const NARROW_ERROR_MAX: f64 = 2e-2;
const PLAIN_ERROR_MAX: f64 = 1e-5;

/// As [`PLAIN_ERROR_MAX`] with keys and values in 8 bits: of values that differ in their last bit, few
/// are rounded to neighbouring integers.
const PLAIN_BYTES_ERROR_MAX: f64 = 1e-3;

/// Gradients pass every rounding of the activations twice, forward and again on the way back.
const GRADIENT_ERROR_FACTOR: f64 = 2.0;

/// Room for tokens in the caches of both.
const ROOM: usize = 2048;

fn main() -> ExitCode {
    umbel_tests::exit_code(run())
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut types = WeightType::ALL.to_vec();
    if arguments.next_if(|word| word == "--types").is_some() {
        let list = arguments.next().context("--types has a list")?;
        types = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
    }
    let gpu = Gpu::open(0)?;
    eprintln!("{}", gpu.name());
    let folder = TempDir::new()?;
    if arguments.next_if(|word| word == "--refused").is_some() {
        refused::compare(&gpu, &random(folder.path(), WeightType::BF16, &usual())?)?;
        // Of one block, so that some passes have no kernel that is refused.
        let windows = vec![None];
        let sparse = ModelConfig {
            block_count: 1,
            attention_windows: windows,
            ..experts::sparse(Family::Mixtral, 6, 3)
        };
        return refused::compare(&gpu, &random(folder.path(), WeightType::Q8_0, &sparse)?);
    }
    for &kind in &types {
        let model = random(folder.path(), kind, &usual())?;
        // Adapters go other ways over numbers and, below, in binary32, in bfloat16 and with biases.
        let adapted = kind == WeightType::Q4K;
        if adapted {
            in_between(&Pair::load(&gpu, &model, DType::F32)?).context("within a training")?;
        }
        compare(&gpu, &model, kind.name(), (DType::F32, adapted))?;
        if matches!(kind, WeightType::F32 | WeightType::BF16) {
            compare(&gpu, &model, kind.name(), (DType::Q8, false))?;
        }
    }
    let model = random(folder.path(), WeightType::BF16, &usual())?;
    starved(&gpu, &model).context("without memory")?;
    for (name, config) in odd_shapes() {
        // What is in binary32 has the same kernels on devices of all capabilities.
        let plain = types.contains(&WeightType::F32).then_some(WeightType::F32);
        for kind in plain.into_iter().chain([WeightType::BF16]) {
            let model = random(folder.path(), kind, &config)?;
            for cache in [DType::F32, DType::Q8] {
                let tried = [("odd", WeightType::F32), ("biases", WeightType::BF16)];
                let adapted = cache == DType::F32 && tried.contains(&(name, kind));
                compare(&gpu, &model, &format!("{name}, {kind}"), (cache, adapted))?;
            }
        }
    }
    for kind in types.iter().filter(|kind| LONG_TYPES.contains(kind)) {
        let model = random(folder.path(), *kind, &long_rows())?;
        through(&gpu, &model, TOKENS, &format!("long rows, {kind}"))?;
    }
    let model = random(folder.path(), WeightType::BF16, &few_heads())?;
    through(&gpu, &model, LONG_TOKENS, "a long text")?;
    experts::compare_all(&gpu, folder.path(), &types)?;
    for checkpoint in arguments {
        let model = open(&checkpoint)?;
        match model.config().experts {
            None => compare(&gpu, &model, &checkpoint, (DType::F32, false))?,
            Some(_) => experts::compare(&gpu, &model, &checkpoint)?,
        }
    }
    Ok(())
}

/// Rows of whole blocks of every type.
fn usual() -> ModelConfig {
    ModelConfig {
        hidden_size: 256,
        intermediate_size: 256,
        head_count: 4,
        kv_head_count: 2,
        head_size: 64,
        context_tokens: ROOM,
        ..ModelConfig::llama(2)
    }
}

/// Rows that fill the rings of the kernels for few tokens and for many more than once, in parts of which
/// the last is shorter: 136 cells, of which the parts have 36, 36, 36 and 28.
fn long_rows() -> ModelConfig {
    ModelConfig {
        intermediate_size: 4352,
        block_count: 1,
        attention_windows: vec![None],
        ..usual()
    }
}

/// Few heads, since a text is long.
fn few_heads() -> ModelConfig {
    ModelConfig {
        head_count: 2,
        kv_head_count: 1,
        block_count: 1,
        attention_windows: vec![None],
        ..usual()
    }
}

/// Shapes that fill no tile, no cell and no pair of heads.
fn odd_shapes() -> [(&'static str, ModelConfig); 6] {
    let odd = ModelConfig {
        hidden_size: 72,
        intermediate_size: 100,
        head_count: 5,
        kv_head_count: 1,
        head_size: 18,
        ..usual()
    };
    let biases = ModelConfig {
        family: Family::Qwen2,
        attention_bias: true,
        kv_head_count: 5,
        ..odd.clone()
    };
    let window = ModelConfig {
        family: Family::Mistral,
        attention_windows: vec![Some(37), Some(37)],
        head_size: 96,
        ..odd.clone()
    };
    let norms = ModelConfig {
        family: Family::Qwen3,
        head_count: 3,
        kv_head_count: 3,
        head_size: 128,
        ..odd.clone()
    };
    let large = ModelConfig { head_count: 4, kv_head_count: 2, head_size: 256, ..odd.clone() };
    let uneven = ModelConfig {
        family: Family::Qwen3,
        head_count: 3,
        kv_head_count: 1,
        head_size: 150,
        ..odd.clone()
    };
    [
        ("odd", odd),
        ("biases", biases),
        ("window", window),
        ("norms", norms),
        ("large heads", large),
        ("uneven heads", uneven),
    ]
}

fn random(folder: &Path, kind: WeightType, config: &ModelConfig) -> Result<Model> {
    let path = folder.join(format!("{}-{kind}.gguf", config.hidden_size));
    let file = GgufWriter::random_model(config, kind, 1).context("a random model")?;
    std::fs::write(&path, file.to_bytes())?;
    open(path.to_str().context("paths are text here")?)
}

fn open(path: &str) -> Result<Model> {
    let folder = std::env::temp_dir().join("umbel-gpu-check");
    let parts = PartsNeeded { tokenizer: false, ..PartsNeeded::everything() };
    Ok(Model::open(&ModelSource::parse(path)?, &Cache::new(folder), parts, &Silent)?)
}

/// A model on the processor and on the GPU.
struct Pair {
    config: ModelConfig,
    span: Span,
    exact: HostedSpan,
    blocks: HostedSpan,
    arena: KvArena,
    /// How sessions ask for keys and values to be kept.
    cache: DType,
}

impl Pair {
    fn load(gpu: &Gpu, model: &Model, cache: DType) -> Result<Self> {
        let config = model.config().clone();
        let span = Span::new(0, config.block_count)?;
        let weights = model.weights(Part::Blocks(span))?;
        let exact = HostedSpan::load_with(Arithmetic::Exact, &config, &weights, span)?;
        let blocks = HostedSpan::load_on(gpu, &[], &config, &weights, span)?;
        let arena = blocks.arena(&config, ROOM)?;
        Ok(Self { config, span, exact, blocks, arena, cache })
    }

    fn table(&self) -> Result<KvTable> {
        self.table_of(self.cache)
    }

    fn table_of(&self, cache: DType) -> Result<KvTable> {
        Ok(self.arena.open_as(cache, self.span, self.tokens() + 2 * PAGE_TOKENS)?)
    }

    /// How many tokens a text has.
    fn tokens(&self) -> usize {
        TOKENS.min(self.config.context_tokens - 2 * PAGE_TOKENS)
    }

    /// Hidden states as they might be, which a seed makes.
    fn text(&self, seed: u64) -> Result<HiddenStates> {
        text(self.config.hidden_size, self.tokens(), seed)
    }

    /// What leaves the blocks when `text` goes through in steps of these sizes, over and over.
    fn in_steps(&self, text: &HiddenStates, steps: &[usize]) -> Result<HiddenStates> {
        let mut table = self.table()?;
        self.from(&mut table, text, steps)
    }

    /// As `in_steps`, from where a table stands.
    fn from(
        &self,
        table: &mut KvTable,
        text: &HiddenStates,
        steps: &[usize],
    ) -> Result<HiddenStates> {
        let (mut parts, mut steps) = (Vec::new(), steps.iter().cycle());
        while table.position() < text.token_count() {
            let start = table.position();
            let step = *steps.next().context("there is a step")?;
            let rows = text.rows(start..text.token_count().min(start + step))?;
            parts.push(self.blocks.forward(table, &rows)?);
        }
        Ok(HiddenStates::concat(&parts)?)
    }
}

/// Hidden states as they might be, which a seed makes.
fn text(hidden_size: usize, tokens: usize, seed: u64) -> Result<HiddenStates> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    let values = (0..tokens * hidden_size).map(|_| next()).collect();
    Ok(HiddenStates::from_values(values, hidden_size)?)
}

fn compare(gpu: &Gpu, model: &Model, name: &str, (cache, adapted): (DType, bool)) -> Result<()> {
    let pair = Pair::load(gpu, model, cache)?;
    let name = &if cache == DType::Q8 { format!("{name}, 8 bits kept") } else { name.to_owned() };
    let text = pair.text(1)?;
    let whole = pair.in_steps(&text, &[usize::MAX / 2])?;
    let mut exact_table =
        KvArena::new(&pair.config, pair.span, ROOM).open_as(cache, pair.span, pair.tokens())?;
    let exact = pair.exact.forward(&mut exact_table, &text)?;
    let error = relative_error(&whole, &exact);
    let plain = pair.arena.shared_pages().is_some_and(|pages| pages.native == DType::F32);
    let allowed = match (plain, cache) {
        (true, DType::Q8) => PLAIN_BYTES_ERROR_MAX,
        (true, _) => PLAIN_ERROR_MAX,
        (false, _) => NARROW_ERROR_MAX,
    };
    println!("{name}: {error:.1e}");
    if error.is_nan() || error > allowed {
        bail!(
            "{name}: results are {error:.1e} from those of the processor, of which {allowed:.0e} is allowed"
        );
    }
    for steps in [&[1, 1, 1, 1, 1, 1, 70][..], &[7, 1, 65], &[64, 1, 1]] {
        let found = pair.in_steps(&text, steps)?;
        ensure!(same(&found, &whole), "{name}: steps of {steps:?} give other bits");
    }
    together(&pair, &whole).with_context(|| format!("{name}, among others"))?;
    rolled_back(&pair, &whole).with_context(|| format!("{name}, after a rollback"))?;
    shared(&pair, &whole).with_context(|| format!("{name}, behind a prefix"))?;
    in_parts(&pair, &whole).with_context(|| format!("{name}, in two spans"))?;
    if cache == DType::F32 {
        head::compare(gpu, model, allowed).with_context(|| format!("{name}, the head"))?;
        gradients(&pair, allowed).with_context(|| format!("{name}, gradients"))?;
    }
    if adapted {
        adapters::compare(&pair, &whole, allowed).with_context(|| format!("{name}, adapted"))?;
        let is_exact = name != WeightType::Q4K.name();
        adapters::norms(&pair, is_exact, allowed).with_context(|| format!("{name}, norms"))?;
        adapters::gradients(&pair, allowed * GRADIENT_ERROR_FACTOR)
            .with_context(|| format!("{name}, gradients of adapters"))?;
    }
    Ok(())
}

/// As `compare`, of a text of `tokens` in few ways.
fn through(gpu: &Gpu, model: &Model, tokens: usize, name: &str) -> Result<()> {
    let pair = Pair::load(gpu, model, DType::F32)?;
    let text = text(pair.config.hidden_size, tokens, 1)?;
    let open = |arena: &KvArena| arena.open(pair.span, tokens);
    let whole = pair.blocks.forward(&mut open(&pair.arena)?, &text)?;
    let arena = KvArena::new(&pair.config, pair.span, ROOM);
    let exact = pair.exact.forward(&mut open(&arena)?, &text)?;
    let error = relative_error(&whole, &exact);
    println!("{name}: {error:.1e}");
    ensure!(error <= NARROW_ERROR_MAX, "{name}: {error:.1e} from the processor's");
    for steps in [[tokens - 1, 1], [tokens - 40, 9]] {
        let found = pair.from(&mut open(&pair.arena)?, &text, &steps)?;
        ensure!(same(&found, &whole), "{name}: steps of {steps:?} give other bits");
    }
    Ok(())
}

/// Sessions of different lengths share passes.
fn together(pair: &Pair, whole: &HiddenStates) -> Result<()> {
    let texts = [pair.text(1)?, pair.text(2)?, pair.text(3)?];
    // One of them keeps its keys and values in another way.
    let other = if pair.cache == DType::Q8 { DType::F32 } else { DType::Q8 };
    let mut tables = [pair.table()?, pair.table()?, pair.table_of(other)?];
    let mut parts = Vec::new();
    let cuts = [[0, 20, 3], [66, 23, 4], [67, 24, 69], [pair.tokens(), 30, 70]];
    for cut in cuts.windows(2) {
        let clamp = |place: usize| place.min(pair.tokens());
        let mut rows = Vec::new();
        for ((text, table), end) in texts.iter().zip(&mut tables).zip(cut[1]) {
            let (start, end) = (table.position(), clamp(end).max(table.position() + 1));
            rows.push((table, text.rows(start..end)?));
        }
        let mut batch: Vec<_> =
            rows.iter_mut().map(|(table, rows)| (&mut **table, &*rows)).collect();
        let mut results = pair.blocks.forward_batch(&mut batch).into_iter();
        parts.push(results.next().context("the first session has a result")??);
        results.try_for_each(|result| result.map(drop))?;
    }
    ensure!(same(&HiddenStates::concat(&parts)?, whole), "other bits");
    Ok(())
}

/// What was computed for tokens that were taken back leaves no trace.
fn rolled_back(pair: &Pair, whole: &HiddenStates) -> Result<()> {
    let (text, other) = (pair.text(1)?, pair.text(2)?);
    let mut table = pair.table()?;
    pair.blocks.forward(&mut table, &text.rows(0..37)?)?;
    pair.blocks.forward(&mut table, &other.rows(37..60)?)?;
    table.truncate(37)?;
    let found = pair.from(&mut table, &text, &[25])?;
    ensure!(same(&found, &whole.rows(37..whole.token_count())?), "other bits");
    Ok(())
}

/// A session begins with pages of another, and writes into none that others hold.
fn shared(pair: &Pair, whole: &HiddenStates) -> Result<()> {
    let (text, other) = (pair.text(1)?, pair.text(2)?);
    let mut first = pair.table()?;
    pair.blocks.forward(&mut first, &text.rows(0..40)?)?;
    let kept: Vec<_> = (0..2).filter_map(|index| first.keep(index)).collect();
    ensure!(kept.len() == 2, "full pages can be kept");
    let mut second = pair.table()?;
    second.begin_with(&kept.iter().collect::<Vec<_>>())?;
    ensure!(second.position() == 2 * PAGE_TOKENS, "the prefix is there");
    // The second goes elsewhere from the middle of a shared page on, and the first does not notice.
    second.truncate(20)?;
    pair.blocks.forward(&mut second, &other.rows(20..50)?)?;
    let found = pair.from(&mut first, &text, &[30])?;
    ensure!(same(&found, &whole.rows(40..whole.token_count())?), "the first has other bits");
    let mut third = pair.table()?;
    third.begin_with(&kept.iter().collect::<Vec<_>>())?;
    let found = pair.from(&mut third, &text, &[30])?;
    ensure!(same(&found, &whole.rows(32..whole.token_count())?), "the third has other bits");
    Ok(())
}

/// Where the device has no memory for the pass of a long text, that one fails alone, and goes on when
/// there is memory again.
fn starved(gpu: &Gpu, model: &Model) -> Result<()> {
    let pair = &Pair::load(gpu, model, DType::F32)?;
    let text = pair.text(1)?;
    adapters::shared(gpu, pair)?;
    let adapter = Arc::new(adapters::large(pair)?);
    let whole = pair.in_steps(&text, &[usize::MAX / 2])?;
    let long = HiddenStates::concat(&vec![text.clone(); 12])?;
    let (mut of_long, mut of_short) =
        (pair.arena.open(pair.span, long.token_count())?, pair.table()?);
    let (mut of_adapted, mut hoard) = (pair.table()?, Vec::new());
    let mut fill = || {
        for tokens in [1 << 22, 1 << 18, 1 << 14, 1 << 10, 1 << 6] {
            while let Ok(arena) = pair.blocks.arena(&pair.config, tokens) {
                hoard.push(arena);
            }
        }
    };
    fill();
    let batch = &mut [(&mut of_long, &long), (&mut of_short, &text)];
    let results = pair.blocks.forward_batch(batch);
    let [long_result, short_result] = &results[..] else { bail!("a result is missing") };
    let error = long_result.as_ref().err().context("there was memory after all")?;
    println!("without memory: {error}: {}", std::error::Error::source(error).context("no reason")?);
    ensure!(
        short_result.as_ref().is_ok_and(|short| same(short, &whole)),
        "the short one failed too"
    );
    // Whoever lacked memory for the graph of a pass has given that of others up.
    fill();
    head::starved(gpu, model)?;
    adapters::starved(&pair.blocks, &mut of_adapted, &adapter)?;
    // A graph of steps of one token takes memory, without which they go on.
    let found = pair.in_steps(&text.rows(0..4)?, &[1])?;
    ensure!(same(&found, &whole.rows(0..4)?), "steps without a graph give other bits");
    // With a little more there is a graph, and no memory where it is to run.
    drop(hoard.pop());
    while let Ok(arena) = pair.blocks.arena(&pair.config, PAGE_TOKENS) {
        hoard.push(arena);
    }
    hoard.truncate(hoard.len().saturating_sub(2));
    let found = pair.in_steps(&text.rows(0..4)?, &[1])?;
    ensure!(
        same(&found, &whole.rows(0..4)?),
        "steps beside a graph that cannot run give other bits"
    );
    drop(hoard);
    let found = pair.blocks.forward(&mut of_long, &long)?;
    ensure!(same(&found.rows(0..text.token_count())?, &whole), "other bits");
    Ok(())
}

/// A span behind another gives what both give together.
fn in_parts(pair: &Pair, whole: &HiddenStates) -> Result<()> {
    let blocks = pair.config.block_count;
    let mut hidden = pair.text(1)?;
    for (start, end) in [(0, 1), (1, blocks)] {
        let span = Span::new(start, end)?;
        let part = pair.blocks.part(span).context("the blocks are there")?;
        let arena = part.arena(&pair.config, ROOM)?;
        let mut table = arena.open_as(pair.cache, span, pair.tokens())?;
        hidden = part.forward(&mut table, &hidden)?;
    }
    ensure!(same(&hidden, whole), "other bits");
    Ok(())
}

/// Gradients go through the blocks as they do on the processor, and a sequence's do not depend on the one
/// beside it.
fn gradients(pair: &Pair, allowed: f64) -> Result<()> {
    let cut = pair.tokens() / 3;
    let sequence = |tokens| Sequence { tokens, dropout_seed: 0 };
    let both = [sequence(cut), sequence(pair.tokens() - cut)];
    let (text, gradient) = (pair.text(1)?, pair.text(4)?);
    let through = |blocks: &HostedSpan, sequences: &[Sequence], rows: Range<usize>| {
        let pass = TrainingPass::new(blocks, pair.span, None, sequences)?;
        let forward = pass.forward(&text.rows(rows.clone())?)?;
        let backward = pass.backward(&forward.inputs, &gradient.rows(rows)?)?;
        anyhow::Ok((forward.output, backward.input))
    };
    let (output, found) = through(&pair.blocks, &both, 0..pair.tokens())?;
    let (exact_output, exact) = through(&pair.exact, &both, 0..pair.tokens())?;
    let errors = [relative_error(&output, &exact_output), relative_error(&found, &exact)];
    let allowed = allowed * GRADIENT_ERROR_FACTOR;
    ensure!(errors.iter().all(|error| *error <= allowed), "{errors:?}, and {allowed} is allowed");
    let (alone, of_alone) = through(&pair.blocks, &both[1..], cut..pair.tokens())?;
    let rest = cut..pair.tokens();
    ensure!(same(&alone, &output.rows(rest.clone())?), "other bits alone");
    ensure!(same(&of_alone, &found.rows(rest)?), "other gradients alone");
    Ok(())
}

/// Sessions go on between the parts of a training, and neither changes a bit of the other. Each product
/// with a matrix, and attention, is such a part.
fn in_between(pair: &Pair) -> Result<()> {
    // Onward: queries with keys and values, attention, output, gates, down, and the end of the block. Back:
    // the first four again, what comes back through each, twice through attention, and the end.
    const PARTS_MIN: u32 = 6 + 4 + 4 + 2 + 1;
    let (text, gradient) = (pair.text(1)?, pair.text(4)?);
    let sequences = [Sequence { tokens: pair.tokens(), dropout_seed: 0 }];
    let through = |pause: &dyn Fn()| {
        let pass = TrainingPass::new(&pair.blocks, pair.span, None, &sequences)?.pausing(pause);
        let forward = pass.forward(&text)?;
        let backward = pass.backward(&forward.inputs, &gradient)?;
        anyhow::Ok([forward.output, backward.input])
    };
    let alone = through(&|| ())?;
    let whole = pair.in_steps(&text, &[usize::MAX / 2])?;
    let (parts, session) = (Cell::new(0), RefCell::new((pair.table()?, Vec::new())));
    // First as many tokens as use the memory that products of many share, then one at a time.
    let step = || {
        parts.set(parts.get() + 1);
        let (table, found) = &mut *session.borrow_mut();
        let start = table.position();
        let end = if start == 0 { pair.tokens() - 4 } else { start + 1 };
        if end <= pair.tokens() {
            let rows = text.rows(start..end).map_err(anyhow::Error::from);
            found.push(rows.and_then(|rows| Ok(pair.blocks.forward(table, &rows)?)));
        }
    };
    let beside = through(&step)?;
    ensure!(parts.get() >= PARTS_MIN * pair.config.block_count, "only {} parts", parts.get());
    let found = session.into_inner().1.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(same(&HiddenStates::concat(&found)?, &whole), "the session has other bits");
    for (beside, alone) in beside.iter().zip(&alone) {
        ensure!(same(beside, alone), "the training has other bits");
    }
    Ok(())
}

fn same(one: &HiddenStates, other: &HiddenStates) -> bool {
    let bits = |of: &HiddenStates| of.to_values().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    bits(one) == bits(other)
}

/// The norm of the difference by that of the expected.
fn relative_error(found: &HiddenStates, expected: &HiddenStates) -> f64 {
    relative_error_of(&found.to_values(), &expected.to_values())
}

/// The same of values.
fn relative_error_of(found: &[f32], expected: &[f32]) -> f64 {
    let square =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let differences = found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let difference = square(&mut differences.into_iter());
    (difference / square(&mut expected.iter().map(|value| f64::from(*value)))).sqrt()
}
