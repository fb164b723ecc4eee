//! Getting blocks into memory.

use umbel_engine::{Device, HostedSpan, KvArena};
use umbel_protocol::Span;
use umbel_protocol::announcement::Throughput;
use umbel_shard::{Model, ModelSource, Part, PartsNeeded};

use crate::compute::Shard;
use crate::config::Config;
use crate::measure;
use crate::progress::Shown;

/// Whatever is needed to load blocks of one model.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) source: ModelSource,
    pub(super) config: Config,
    pub(super) device: Device,
}

/// Blocks in memory, and how fast they are.
pub(super) struct Loaded {
    pub(super) shard: Shard,
    pub(super) throughput: Throughput,
}

impl Loader {
    /// Opens the model; fetches those parts of it that are not on disk.
    pub(super) async fn open(&self, parts: PartsNeeded) -> anyhow::Result<Model> {
        let Self { source, config, .. } = self.clone();
        let open = move || -> anyhow::Result<Model> {
            Ok(Model::open(&source, &config.cache(), parts, &Shown::default())?)
        };
        tokio::task::spawn_blocking(open).await?
    }

    /// Loads blocks, with room for so many tokens, and measures them.
    pub(super) async fn load(&self, span: Span, kv_tokens: usize) -> anyhow::Result<Loaded> {
        let model = self.open(PartsNeeded::span(span)).await?;
        let weights = model.weights(Part::Blocks(span))?;
        let config = model.config().clone();
        let key = measure::Key { model: model.id(), device: self.config.device_name() };
        let folder = self.config.data_dir.join("speed");
        let device = self.device.clone();
        let load = move || -> anyhow::Result<_> {
            let blocks = HostedSpan::load(&config, &weights, span)?.on(device);
            let arena = KvArena::new(&config, span, kv_tokens);
            let throughput = measure::throughput(&blocks, &arena, &key, &folder)?;
            Ok(Loaded { shard: Shard { blocks, arena }, throughput })
        };
        tokio::task::spawn_blocking(load).await?
    }
}
