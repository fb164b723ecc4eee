//! How much fits into the memory of this machine, and what of it goes back.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use umbel_engine::{Gpu, GpuHead, heap};
use umbel_protocol::Span;
use umbel_shard::manifest::ManifestTensor;
use umbel_shard::{Model, budget};

use crate::driver::Load;
use crate::memory::Memory;

/// How much of the free memory a server takes: the rest is for the system's own ups and downs.
const SHARE: f64 = 0.8;

/// One part in so many of the free memory is for journals: the results that a next hop may need once
/// more are small beside weights and KV cache.
const JOURNAL_PART: u64 = 16;

/// One part in so many of what may be taken is for the adapters that others train here, which have a
/// hundredth of the values of the blocks: what the system keeps for its ups and downs has room for it.
const TRAINING_PART: u64 = 8;

/// One part in so many of what may be taken is for the adapters with which others ask: they have neither
/// optimizers nor gradients, and the system's reserve has room for them beside those that are trained.
const ADAPTERS_PART: u64 = 16;

/// Tokens of KV cache without a wish, in contexts of the model: four conversations at full length.
const CONTEXTS: usize = 4;

/// Most tokens of KV cache without a wish, for models with enormous contexts.
const KV_TOKENS_DEFAULT_MAX: usize = 32_768;

/// How long the engine may take to let go of blocks: a pass of a long prompt.
const FREED_WITHIN: Duration = Duration::from_secs(5);

/// Fewest tokens of KV cache that make a server useful.
const KV_TOKENS_MIN: usize = 256;

/// How long after steps were computed or sessions ended what they left goes back to the system.
/// Seldom enough that a busy server does not notice it: the buffers of a long prompt, some 100 MB,
/// take some 30 ms to be had again.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(10);

/// Gives freed memory back while there is something to give, until the driver is gone.
pub(super) async fn give_back(mut load: watch::Receiver<Load>) {
    while load.changed().await.is_ok() {
        tokio::time::sleep(GIVE_BACK_AFTER).await;
        load.mark_unchanged();
        let given = tokio::task::spawn_blocking(heap::give_back).await;
        given.expect("the allocator does not panic");
    }
}

/// Memory that the system could give to this process now.
fn available_bytes() -> anyhow::Result<u64> {
    let memory = Memory::now().context(
        "the free memory cannot be told: give --block-count, --kv-tokens and --memory-bytes",
    )?;
    Ok(memory.available)
}

/// As much of it as a server takes.
fn free_bytes() -> anyhow::Result<u64> {
    Ok(share_of(available_bytes()?, SHARE))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a number of bytes"
)]
fn share_of(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share) as u64
}

/// How much of a GPU's free memory a server takes: the driver's own grows with the kernels it compiles.
const GPU_SHARE: f64 = 0.94;

/// What a pass of a long prompt computes in, beside weights and cache.
pub(crate) const GPU_WORKSPACE_BYTES: u64 = 768 << 20;

/// What may be taken of a GPU's memory: as much as was said, or a share of what is free now.
pub(super) fn allowed_bytes_of(gpu: &Gpu, said: Option<u64>) -> anyhow::Result<u64> {
    if let Some(said) = said {
        return Ok(said);
    }
    let (free, _) = gpu.memory()?;
    Ok(share_of(free as u64, GPU_SHARE).saturating_sub(GPU_WORKSPACE_BYTES))
}

/// One part in so many of a GPU's memory is the most that the head of a model may take: blocks, which
/// all tokens go through, come first.
const GPU_HEAD_PART: u64 = 2;

/// One part in so many of a GPU's memory is for the adapters with which others ask, and nothing else's:
/// of 24 GB four adapters of rank 16 on all matrices of a model of 8 billion weights, 168 MB each.
const GPU_ADAPTERS_PART: u64 = 32;

/// Bytes of a GPU's memory for the adapters with which others ask.
pub(super) const fn adapter_bytes_of_gpu(allowed_bytes: u64) -> u64 {
    allowed_bytes / GPU_ADAPTERS_PART
}

/// What the head of a model takes of a GPU's memory; `None` where that is too large a part of what may
/// be taken.
pub(super) fn head_bytes_of_gpu(model: &Model, allowed_bytes: u64) -> Option<u64> {
    let bytes = head_bytes(model);
    (bytes <= allowed_bytes / GPU_HEAD_PART).then_some(bytes)
}

/// Whether a GPU that has its blocks and caches has room for the head, and for passes beside it.
pub(super) fn has_room_for_head(gpu: &Gpu, model: &Model) -> anyhow::Result<bool> {
    let (free, _) = gpu.memory()?;
    Ok(free as u64 >= head_bytes(model).saturating_add(GPU_WORKSPACE_BYTES))
}

fn head_bytes(model: &Model) -> u64 {
    let weights = Gpu::weight_bytes(model.manifest().head());
    weights.saturating_add(GpuHead::room_bytes(model.config()) as u64)
}

/// Bytes of results that are kept for the failure of next hops.
pub(super) fn journal_bytes() -> anyhow::Result<usize> {
    Ok(usize::try_from(free_bytes()? / JOURNAL_PART).unwrap_or(usize::MAX))
}

/// Bytes of what others train here.
pub(super) const fn training_bytes(allowed_bytes: u64) -> u64 {
    allowed_bytes / TRAINING_PART
}

/// Bytes of the adapters with which others ask.
pub(super) const fn adapter_bytes(allowed_bytes: u64) -> u64 {
    allowed_bytes / ADAPTERS_PART
}

/// What may be taken: as much as was said, or a share of what is free now.
pub(super) fn allowed_bytes(said: Option<u64>) -> anyhow::Result<u64> {
    said.map_or_else(free_bytes, Ok)
}

/// Bytes of the ends of a model; a matrix that they share counts once.
pub(super) fn ends_bytes(model: &Model, embedding: bool, head: bool) -> u64 {
    let manifest = model.manifest();
    match (embedding, head) {
        (false, false) => 0,
        (true, false) => bytes_of(manifest.embedding()),
        (false, true) => bytes_of(manifest.head()),
        (true, true) => manifest.ends_bytes(),
    }
}

fn bytes_of(tensors: &[ManifestTensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes).sum()
}

/// Waits until the system has so much memory: blocks that were given up just now may not be gone
/// yet.
///
/// # Errors
/// Where it does not have it in time: others have taken it since this server chose its blocks.
pub(super) async fn wait_for(bytes: u64) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + FREED_WITHIN;
    loop {
        let available = available_bytes()?;
        if available >= bytes {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "the blocks take {} MB and the system has {} MB left",
                bytes / 1_000_000,
                available / 1_000_000
            );
        }
        tokio::time::sleep(FREED_WITHIN / 10).await;
    }
}

/// How large the blocks of a model are where they are to lie.
pub(super) struct BlockSizes<'a> {
    model: &'a Model,
    /// What the weights of each take there.
    bytes: Vec<u64>,
    /// What the keys and values of a token take there in one block.
    token_bytes: u64,
    /// The number of the GPU where that is.
    gpu: Option<usize>,
}

impl<'a> BlockSizes<'a> {
    pub(super) fn new(model: &'a Model, gpu: Option<&Gpu>) -> Self {
        let (manifest, config) = (model.manifest(), model.config());
        let Some(gpu) = gpu else {
            let token_bytes = config.kv_token_bytes_per_block();
            return Self { model, bytes: manifest.blocks_bytes(), token_bytes, gpu: None };
        };
        let blocks = || (0..config.block_count).map(move |index| manifest.block(index));
        let bytes = blocks().map(|block| block.map_or(0, Gpu::weight_bytes)).collect();
        let token_bytes = blocks().flatten().map(|block| Gpu::kv_token_bytes(config, block)).max();
        let token_bytes = token_bytes.unwrap_or(config.kv_token_bytes_per_block());
        Self { model, bytes, token_bytes, gpu: Some(gpu.ordinal()) }
    }

    pub(super) const fn model(&self) -> &Model {
        self.model
    }

    /// How many fit, with the KV cache that was asked for or a default one.
    pub(super) fn that_fit(&self, kv_tokens: Option<u32>, free_bytes: u64) -> anyhow::Result<u32> {
        let tokens = wanted(self.model, kv_tokens);
        let count = self.count_with(tokens, free_bytes);
        if count == 0 {
            let (place, instead) = self.gpu.map_or_else(Default::default, |ordinal| {
                let instead = "; --device cpu serves from the processor's memory";
                (format!(" of GPU {ordinal}'s free memory"), instead)
            });
            bail!(
                "not one block fits into {} MB{place}: its weights take {} MB, and its KV cache of {tokens} \
                 tokens {} MB (--kv-tokens asks for another one{instead})",
                megabytes(free_bytes),
                megabytes(self.bytes.first().copied().unwrap_or(0)),
                megabytes(self.token_bytes.saturating_mul(tokens as u64))
            );
        }
        Ok(count)
    }

    /// Refuses where not one block fits: of blocks that were chosen already with the smallest cache, since
    /// theirs is as large as there is room.
    pub(super) fn check_one(
        &self,
        is_chosen: bool,
        kv_tokens: Option<u32>,
        free_bytes: u64,
    ) -> anyhow::Result<()> {
        let fits =
            is_chosen && kv_tokens.is_none() && self.count_with(KV_TOKENS_MIN, free_bytes) > 0;
        if fits { Ok(()) } else { self.that_fit(kv_tokens, free_bytes).map(drop) }
    }

    fn count_with(&self, tokens: usize, free_bytes: u64) -> u32 {
        budget::blocks_that_fit(&self.bytes, self.token_bytes, tokens as u64, free_bytes)
    }

    /// For how many tokens there is room beside these.
    pub(super) fn kv_tokens(&self, blocks: Span, wished: Option<u32>, free_bytes: u64) -> usize {
        if let Some(tokens) = wished {
            return tokens as usize;
        }
        let left = free_bytes.saturating_sub(self.weight_bytes(blocks));
        let room = left / self.token_bytes(blocks.block_count()).max(1);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        wanted(self.model, None).min(room).max(KV_TOKENS_MIN)
    }

    /// Refuses blocks that take more than they may, with room for so many tokens.
    pub(super) fn check(
        &self,
        blocks: Span,
        kv_tokens: usize,
        allowed_bytes: u64,
    ) -> anyhow::Result<()> {
        let weights = self.weight_bytes(blocks);
        let cache = self.token_bytes(blocks.block_count()).saturating_mul(kv_tokens as u64);
        if weights.saturating_add(cache) > allowed_bytes {
            bail!(
                "the weights of blocks {blocks} take {} MB and their KV cache of {kv_tokens} tokens {} MB, \
                 and --memory-bytes leaves {} MB for both: serve fewer blocks, or ask for a smaller cache \
                 with --kv-tokens",
                megabytes(weights),
                megabytes(cache),
                megabytes(allowed_bytes)
            );
        }
        Ok(())
    }

    /// Most that a server of `block_count` may hold at once while it moves.
    pub(super) fn held_max(&self, block_count: u32, kv_tokens: usize, allowed_bytes: u64) -> u32 {
        let kv_bytes = self.token_bytes(block_count).saturating_mul(kv_tokens as u64);
        budget::blocks_held_max(&self.bytes, block_count, kv_bytes, allowed_bytes)
    }

    fn weight_bytes(&self, blocks: Span) -> u64 {
        let of_block = |block| usize::try_from(block).ok().and_then(|at| self.bytes.get(at));
        blocks.blocks().filter_map(of_block).sum()
    }

    /// What a token takes in the cache of so many blocks.
    fn token_bytes(&self, block_count: u32) -> u64 {
        self.token_bytes * u64::from(block_count)
    }
}

fn wanted(model: &Model, wished: Option<u32>) -> usize {
    let default = (CONTEXTS * model.config().context_tokens).min(KV_TOKENS_DEFAULT_MAX);
    wished.map_or(default.max(KV_TOKENS_MIN), |tokens| tokens as usize)
}

/// For people, who tell what is too large from what is too small by one digit behind the point.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}
