//! Adapters that somebody has published.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use umbel_engine::train::{AdapterError, PeftFiles};
use umbel_net::LinkProtocol;
use umbel_protocol::error::in_one_line;
use umbel_protocol::published::{AdapterAnswer, AdapterRequest, PART_BYTES_MAX};
use umbel_protocol::{AdapterId, PeerId};
use umbel_shard::ModelConfig;

use super::shelf;
use crate::swarm::Swarm;
use crate::swarm::exchange::{AskError, Asking};

/// Peers that are asked: one that is there and honest is enough.
const PROVIDERS_ASKED_MAX: usize = 16;

/// Peers from which it is fetched at once, so that one that is slow, or makes itself so, holds up nobody.
const FETCHED_AT_ONCE: usize = 2;

/// How long a peer may take for a part: a megabyte takes 9 seconds at 1 Mbit/s.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// The folder of fetched adapters in the cache.
const CACHE_FOLDER: &str = "adapters";

/// Bytes of fetched adapters that are kept: a hundred of a usual rank. Those used longest ago go first.
const CACHE_BYTES_MAX: u64 = 4 << 30;

/// Where an adapter lies in the cache, if it was fetched.
#[must_use]
pub fn cached_at(cache: &Path, id: AdapterId) -> PathBuf {
    cache.join(CACHE_FOLDER).join(id.to_string())
}

/// The files of an adapter for `model` that were fetched before; `None` where there are none, or they are
/// not what their name says.
#[must_use]
pub fn cached(cache: &Path, id: AdapterId, model: &ModelConfig) -> Option<PeftFiles> {
    let folder = cached_at(cache, id);
    let files = PeftFiles::read(&folder, model).ok().filter(|files| files.id() == id)?;
    shelf::touch(&folder);
    Some(files)
}

/// Fetches an adapter for `model` from whoever provides it, and keeps it in the cache.
///
/// What a peer sends is checked against the name before anything is made of it; where it is something
/// else, or too large for the model, the next peer is asked.
///
/// # Errors
/// [`FetchAdapterError`] where nobody provides it, or none of those who do has sent it.
pub async fn fetch(
    swarm: &Swarm,
    cache: &Path,
    id: AdapterId,
    model: &ModelConfig,
) -> Result<PeftFiles, FetchAdapterError> {
    if let Some(files) = cached(cache, id, model) {
        return Ok(files);
    }
    let providers = swarm.adapter_providers(id).await.into_iter().take(PROVIDERS_ASKED_MAX);
    // Some may be gone, which takes seconds to find out, and none is to wait for that.
    let reached: FuturesUnordered<_> = providers
        .map(|peer| async move { (peer, swarm.open_link(peer, &[], LinkProtocol::Adapter).await) })
        .collect();
    let fetched = reached.map(|(peer, link)| async move {
        let fetched = match link {
            Ok(link) => fetch_on(Asking::on(link), id, model).await,
            Err(error) => Err(AskError::from(error).into()),
        };
        (peer, fetched)
    });
    let mut fetched = pin!(fetched.buffer_unordered(FETCHED_AT_ONCE));
    let mut last = None;
    while let Some((peer, fetched)) = fetched.next().await {
        match fetched {
            Ok(files) => {
                if let Err(error) = files.write(&cached_at(cache, id)) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the adapter is not kept");
                }
                shelf::prune(&cache.join(CACHE_FOLDER), id, CACHE_BYTES_MAX);
                return Ok(files);
            }
            Err(error) => {
                tracing::warn!(%peer, error = in_one_line(&error), "a peer did not send the adapter");
                last = Some((peer, error));
            }
        }
    }
    Err(match last {
        None => FetchAdapterError::NoProvider { id },
        Some((peer, source)) => FetchAdapterError::Providers { id, peer, source: Box::new(source) },
    })
}

async fn fetch_on(
    link: Asking,
    id: AdapterId,
    model: &ModelConfig,
) -> Result<PeftFiles, ProviderError> {
    let mut asked = Asked { link, id };
    let (sizes, mut bytes) = asked.part(0).await?;
    let [config_bytes, weights_bytes] = sizes;
    if config_bytes > PeftFiles::CONFIG_BYTES_MAX {
        return Err(ProviderError::TooLarge { bytes: config_bytes });
    }
    let total = config_bytes.saturating_add(weights_bytes);
    // How large the weights may be follows from the configuration, which mostly comes with the first part.
    let mut checked = false;
    loop {
        let have = bytes.len() as u64;
        if have > total || (have < total && !have.is_multiple_of(PART_BYTES_MAX as u64)) {
            return Err(ProviderError::Mismatch);
        }
        if have >= config_bytes && !checked {
            let config = split(&bytes, config_bytes).0;
            let max = PeftFiles::weights_bytes_max(config, model)?;
            if weights_bytes > max {
                return Err(ProviderError::TooLarge { bytes: weights_bytes });
            }
            checked = true;
        }
        if have == total {
            break;
        }
        let (again, part) = asked.part(have).await?;
        if again != sizes || part.is_empty() {
            return Err(ProviderError::Mismatch);
        }
        bytes.extend_from_slice(&part);
    }
    let (config, weights) = split(&bytes, config_bytes);
    let files = PeftFiles { config: config.to_vec(), weights: weights.to_vec() };
    if files.id() != id {
        return Err(ProviderError::OtherContent);
    }
    Ok(files)
}

fn split(bytes: &[u8], config_bytes: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(config_bytes).unwrap_or(usize::MAX);
    bytes.split_at(at.min(bytes.len()))
}

/// A peer that is asked for one adapter.
struct Asked {
    link: Asking,
    id: AdapterId,
}

impl Asked {
    /// The sizes of the two files, and their bytes from `offset` on.
    async fn part(&mut self, offset: u64) -> Result<([u64; 2], Vec<u8>), ProviderError> {
        let request = AdapterRequest::Part { id: self.id, offset };
        let answer = self.link.ask(request.encode(), PART_TIMEOUT).await?;
        match AdapterAnswer::decode(answer).map_err(AskError::from)? {
            AdapterAnswer::Unknown => Err(ProviderError::Unknown),
            AdapterAnswer::Keeping(_) => Err(ProviderError::Mismatch),
            AdapterAnswer::Part { config_bytes, weights_bytes, bytes } => {
                Ok(([config_bytes, weights_bytes], bytes.to_vec()))
            }
        }
    }
}

/// An adapter that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchAdapterError {
    /// The hash table knows of nobody who has it.
    #[error(
        "nobody in the swarm provides the adapter {id}: whoever has it makes it known with \
         `umbel adapter publish`"
    )]
    NoProvider {
        /// Its name.
        id: AdapterId,
    },
    /// Those who say that they have it did not send it.
    #[error("no peer has sent the adapter {id}; the last one asked was {peer}")]
    Providers {
        /// Its name.
        id: AdapterId,
        /// Who was asked last.
        peer: PeerId,
        /// What was wrong.
        source: Box<ProviderError>,
    },
}

/// A peer that did not send an adapter.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It cannot be reached, or did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It does not have it any more.
    #[error("it has no such adapter")]
    Unknown,
    /// A file of this model's adapters cannot be so large.
    #[error("a file of {bytes} bytes is larger than those of this model's adapters")]
    TooLarge {
        /// How large it says that it is.
        bytes: u64,
    },
    /// Parts that do not fit each other.
    #[error("the parts that it sends do not fit each other")]
    Mismatch,
    /// Something else has this content.
    #[error("what it sent has another name")]
    OtherContent,
    /// It is no adapter for this model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}
