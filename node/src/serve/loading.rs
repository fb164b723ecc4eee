//! Getting blocks into memory.

use anyhow::bail;
use umbel_engine::{
    Arithmetic, CudaError, Embedding, Gpu, GpuHead, Head, HostedSpan, KvArena, LoadHeadError, heap,
};
use umbel_protocol::announcement::Throughput;
use umbel_protocol::{ModelId, Span};
use umbel_shard::{Model, ModelConfig, ModelSource, Part, PartsNeeded, Weights};

use super::memory;
use crate::compute::{ServedHead, Shard, ShardEnds};
use crate::config::Config;
use crate::device;
use crate::measure;
use crate::progress::Shown;

/// Whatever is needed to load blocks of one model.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) source: ModelSource,
    /// The model that the source was when the server began: it answers to this name.
    pub(super) model: ModelId,
    pub(super) config: Config,
    /// Where the blocks are computed, if not on the processor.
    pub(super) gpu: Option<Gpu>,
    /// Whether the head is to be there too.
    pub(super) head_on_gpu: bool,
    /// Blocks of the model, where the ends that a span touches are loaded with it.
    pub(super) ends_of: Option<u32>,
    /// Bytes a second that its links may take; 0 where that is not limited.
    pub(super) network_rate: u64,
}

/// Blocks in memory, and how fast they are.
pub(super) struct Loaded {
    pub(super) shard: Shard,
    pub(super) throughput: Throughput,
}

/// What a server holds already.
pub(super) struct Held {
    pub(super) spans: Vec<HostedSpan>,
    pub(super) arena: KvArena,
    pub(super) ends: ShardEnds,
}

/// Opens a model; fetches those parts of it that are not on disk.
pub(super) async fn open(
    source: &ModelSource,
    config: &Config,
    parts: PartsNeeded,
) -> anyhow::Result<Model> {
    let (source, cache) = (source.clone(), config.cache());
    let open = move || Model::open(&source, &cache, parts, &Shown::default());
    Ok(tokio::task::spawn_blocking(open).await??)
}

impl Loader {
    /// Opens the model once more; fetches those parts of it that are not on disk.
    ///
    /// # Errors
    /// Also where it is another one by now: a branch goes on, and files are replaced.
    pub(super) async fn open(&self, parts: PartsNeeded) -> anyhow::Result<Model> {
        let model = open(&self.source, &self.config, parts).await?;
        if model.id() != self.model {
            bail!(
                "{} is now another model ({}) than the one that is served ({}): start the server \
                 again to serve that one",
                model.name(),
                model.id(),
                self.model,
            );
        }
        Ok(model)
    }

    /// Loads blocks, with room for so many tokens, and measures them.
    pub(super) async fn load(&self, span: Span, kv_tokens: usize) -> anyhow::Result<Loaded> {
        let nothing = (Vec::new(), ShardEnds::default());
        let arena = move |blocks: &HostedSpan, config: &_| blocks.arena(config, kv_tokens);
        self.load_into(span, arena, nothing).await
    }

    /// Loads blocks beside others: they share the blocks that both have, and the room for tokens.
    ///
    /// # Errors
    /// Also where the system lacks the memory for them.
    pub(super) async fn load_beside(&self, span: Span, held: Held) -> anyhow::Result<Loaded> {
        let Held { spans, arena, ends } = held;
        self.load_into(span, move |_, _| Ok(arena.beside(span)), (spans, ends)).await
    }

    /// What computes, by name.
    fn device_name(&self) -> String {
        match (&self.gpu, self.config.arithmetic) {
            (Some(gpu), _) => device::file_name(gpu),
            (None, Arithmetic::Usual) => self.config.device_name(),
            (None, other) => format!("{}-{other}", self.config.device_name()),
        }
    }

    /// What blocks of `span` need, and the ends that they touch where those are held.
    fn parts(&self, span: Span) -> PartsNeeded {
        PartsNeeded {
            embedding: self.ends_of.is_some() && span.start() == 0,
            head: self.ends_of == Some(span.end()),
            ..PartsNeeded::span(span)
        }
    }

    async fn load_into(
        &self,
        span: Span,
        arena: impl FnOnce(&HostedSpan, &ModelConfig) -> Result<KvArena, CudaError> + Send + 'static,
        (held, held_ends): (Vec<HostedSpan>, ShardEnds),
    ) -> anyhow::Result<Loaded> {
        let parts = self.parts(span);
        let model = self.open(parts).await?;
        let missing =
            span.blocks().filter(|block| !held.iter().any(|of| of.span().contains(*block)));
        let missing = missing.map(|block| model.manifest().block_bytes(block)).sum::<u64>();
        let missing_ends = memory::ends_bytes(
            &model,
            parts.embedding && held_ends.embedding.is_none(),
            parts.head && held_ends.head.is_none(),
        );
        match &self.gpu {
            None => memory::wait_for(missing + missing_ends).await?,
            // The device says itself when it is full.
            Some(_) => memory::wait_for(missing_ends).await?,
        }
        let mut weights = model.weights(Part::Blocks(span))?;
        if parts.embedding {
            weights = weights.and(model.weights(Part::Embedding)?);
        }
        if parts.head {
            weights = weights.and(model.weights(Part::Head)?);
        }
        let config = model.config().clone();
        let key = measure::Key { model: model.id(), device: self.device_name() };
        let folder = self.config.data_dir.join("speed");
        let (gpu, arithmetic) = (self.gpu.clone(), self.config.arithmetic);
        let network_bytes_per_second = self.network_rate;
        let head = HeadPlace { gpu: gpu.clone().filter(|_| self.head_on_gpu), arithmetic };
        let load = move || -> anyhow::Result<_> {
            let blocks = match &gpu {
                Some(gpu) => HostedSpan::load_on(gpu, &held, &config, &weights, span)?,
                None => HostedSpan::load_beside(&held, arithmetic, &config, &weights, span)?,
            };
            // Sessions open in the other one meanwhile, and are promised all of its room.
            let trial = blocks.arena(&config, measure::TOKENS)?;
            let measured = measure::throughput(&blocks, &trial, &key, &folder)?;
            let throughput = Throughput { network_bytes_per_second, ..measured };
            drop(trial);
            // What packing and measuring took is of no use any more.
            heap::give_back();
            let arena = arena(&blocks, &config)?;
            let ends = ShardEnds {
                embedding: match held_ends.embedding.filter(|_| parts.embedding) {
                    None if parts.embedding => Some(Embedding::load(&config, &weights)?),
                    held => held,
                },
                head: match held_ends.head.filter(|_| parts.head) {
                    // Behind the caches, which have a right to the device's memory.
                    None if parts.head => Some(head.load(&model, &weights)?),
                    held => held,
                },
            };
            Ok(Loaded { shard: Shard { blocks, arena, ends }, throughput })
        };
        tokio::task::spawn_blocking(load).await?
    }
}

/// Where a head is to be.
struct HeadPlace {
    /// If there is room.
    gpu: Option<Gpu>,
    arithmetic: Arithmetic,
}

impl HeadPlace {
    /// The head of a model, on the GPU if it has the room.
    fn load(self, model: &Model, weights: &Weights) -> anyhow::Result<ServedHead> {
        let Self { gpu, arithmetic } = self;
        if let Some(gpu) = &gpu {
            let head = if memory::has_room_for_head(gpu, model)? {
                GpuHead::load(gpu, model.config(), weights).map(Some)
            } else {
                Ok(None)
            };
            match head {
                Ok(Some(head)) => {
                    tracing::info!("the GPU draws the tokens of thin sessions");
                    return Ok(ServedHead::Gpu(head));
                }
                Ok(None) => {}
                Err(LoadHeadError::Gpu(error)) if error.is_out_of_memory() => {}
                Err(error) => return Err(error.into()),
            }
            tracing::warn!(
                "the GPU has no room for the model's head beside blocks and caches: the processor \
                 draws the tokens of thin sessions"
            );
        }
        Ok(ServedHead::Processor(Head::load_with(arithmetic, model.config(), weights)?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn another_model_at_the_same_place_is_not_served_under_the_name_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
        let copies = ["config.json", "model.safetensors"].map(|file| folder.path().join(file));
        for copy in &copies {
            fs::copy(fixture.join(copy.file_name().unwrap()), copy).unwrap();
        }
        let config = Config {
            cache_dir: folder.path().join("cache"),
            data_dir: folder.path().join("data"),
            hub: umbel_shard::HubConfig::default(),
            threads: None,
            instructions: None,
            arithmetic: Arithmetic::Usual,
            log: None,
        };
        let source = ModelSource::parse(folder.path().to_str().unwrap()).unwrap();
        let first = open(&source, &config, PartsNeeded::nothing()).await.unwrap();
        let loader = Loader {
            source,
            model: first.id(),
            config,
            gpu: None,
            head_on_gpu: false,
            ends_of: None,
            network_rate: 0,
        };
        loader.load(Span::new(0, 1).unwrap(), 16).await.unwrap();

        let mut weights = fs::read(&copies[1]).unwrap();
        *weights.last_mut().unwrap() ^= 1;
        fs::write(&copies[1], weights).unwrap();
        let refused = loader.load(Span::new(1, 2).unwrap(), 16).await.err().unwrap().to_string();
        assert!(refused.contains(&first.id().to_string()), "{refused}");
        assert!(refused.contains("start the server again"), "{refused}");
    }
}
