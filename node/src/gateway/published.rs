//! Adapters that somebody has published, as model names: `MODEL@ID`.
//!
//! The name says of which model the adapter is, `@` is in no name of a model, and clients pass it on as it
//! is, in bodies and in paths.
//!
//! An adapter is fetched once, in a task that goes on when those who wait for it have gone, and is kept in
//! the cache on disk; the values of those used last are in memory too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use umbel_client::NamedAdapter;
use umbel_client::adapter::fetch::{self, FetchAdapterError};
use umbel_engine::train::AdapterError;
use umbel_protocol::AdapterId;

use super::error::ApiError;
use crate::commands::session::{Blocks, Opened};

/// Adapters that are fetched at once; whoever asks for one more comes back later. Each is in memory as it
/// comes.
const FETCHES_MAX: usize = 4;

/// How long a request waits for an adapter that is being fetched: 25 MB at 10 Mbit/s take 20 s.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Bytes of the values that are kept in memory: those of a dozen adapters of a usual rank.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// What comes of fetching one.
type Fetched = Result<NamedAdapter, Arc<PublishedError>>;

/// Those that were asked for.
pub(super) struct Published {
    cache: PathBuf,
    fetches: Arc<Semaphore>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    under_way: BTreeMap<AdapterId, Shared<BoxFuture<'static, Fetched>>>,
    /// The one that was used last is the last.
    kept: Vec<NamedAdapter>,
}

impl Published {
    pub(super) fn new(cache: &Path) -> Self {
        let fetches = Arc::new(Semaphore::new(FETCHES_MAX));
        Self { cache: cache.to_owned(), fetches, known: Arc::default() }
    }

    /// The adapter of this id, fetched if need be.
    pub(super) async fn adapter(
        &self,
        opened: &Opened,
        id: AdapterId,
    ) -> Result<NamedAdapter, ApiError> {
        let fetched = {
            let mut known = lock(&self.known);
            if let Some(adapter) = known.used(id) {
                return Ok(adapter);
            }
            match known.under_way.get(&id) {
                Some(fetching) => fetching.clone(),
                None => self.begin(&mut known, opened, id)?,
            }
        };
        match tokio::time::timeout(WAIT_MAX, fetched).await {
            Ok(Ok(adapter)) => Ok(adapter),
            Ok(Err(error)) => Err(error.answer()),
            Err(_) => Err(ApiError::refused(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the adapter {id} is still being fetched: come back later"),
            )),
        }
    }

    fn begin(
        &self,
        known: &mut Known,
        opened: &Opened,
        id: AdapterId,
    ) -> Result<Shared<BoxFuture<'static, Fetched>>, ApiError> {
        let fetches = Arc::clone(&self.fetches).try_acquire_owned();
        let turn = fetches.map_err(|_| ApiError::busy(FETCHES_MAX, "requests"))?;
        let (all, model) = (Arc::clone(&self.known), Arc::clone(&opened.model));
        let swarm = match &opened.blocks {
            Blocks::Swarm(swarm, _) => Some(Arc::clone(swarm)),
            Blocks::Local(..) => None,
        };
        let cache = self.cache.clone();
        let fetching = async move {
            let files = match swarm {
                Some(swarm) => fetch::fetch(&swarm, &cache, id, model.config()).await?,
                None => fetch::cached(&cache, id, model.config())
                    .ok_or(PublishedError::NotFetched { id })?,
            };
            let read = move || NamedAdapter::new(&files, model.config());
            let read = tokio::task::spawn_blocking(read).await;
            Ok(read.expect("reading an adapter does not panic")?)
        };
        let task = tokio::spawn(async move {
            let fetched: Result<NamedAdapter, PublishedError> = fetching.await;
            let mut known = lock(&all);
            known.under_way.remove(&id);
            if let Ok(adapter) = &fetched {
                known.keep(adapter.clone(), KEPT_BYTES_MAX);
            }
            drop(turn);
            fetched.map_err(Arc::new)
        });
        let fetching = task.map(|fetched| fetched.expect("fetching does not panic")).boxed();
        let fetching = fetching.shared();
        known.under_way.insert(id, fetching.clone());
        Ok(fetching)
    }
}

impl Known {
    /// One that is in memory, which now is the last that was used.
    fn used(&mut self, id: AdapterId) -> Option<NamedAdapter> {
        let place = self.kept.iter().position(|kept| kept.id() == id)?;
        let adapter = self.kept.remove(place);
        self.kept.push(adapter.clone());
        Some(adapter)
    }

    /// Keeps one, and as many of those used last as there is room for.
    fn keep(&mut self, adapter: NamedAdapter, bytes_max: usize) {
        self.kept.push(adapter);
        let mut room = bytes_max;
        let fits = |kept: &NamedAdapter| {
            let left = room.checked_sub(kept.bytes());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let stay = self.kept.iter().rev().map(fits).take_while(|fits| *fits).count();
        self.kept.drain(..self.kept.len() - stay);
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No adapter of this id for this model.
#[derive(Debug, thiserror::Error)]
enum PublishedError {
    /// There is no swarm to fetch it from.
    #[error(
        "the adapter {id} was not fetched before, and this gateway is in no swarm that may have it"
    )]
    NotFetched {
        /// Which.
        id: AdapterId,
    },
    /// Nobody has sent it.
    #[error(transparent)]
    Fetch(#[from] FetchAdapterError),
    /// It is of another model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl PublishedError {
    fn answer(&self) -> ApiError {
        match self {
            Self::NotFetched { .. } | Self::Fetch(FetchAdapterError::NoProvider { .. }) => {
                ApiError::no_model(self.to_string())
            }
            Self::Adapter(error) => ApiError::no_model(format!(
                "the adapter is none of the model that is served: {error}"
            )),
            Self::Fetch(error @ FetchAdapterError::Providers { .. }) => ApiError::not_sent(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use umbel_engine::train::PeftFiles;
    use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};

    use super::*;

    fn adapter(number: u8) -> NamedAdapter {
        let llama =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
        let source = ModelSource::parse(llama.to_str().unwrap()).unwrap();
        let cache = Cache::new(tempfile::tempdir().unwrap().path());
        let model = Model::open(&source, &cache, PartsNeeded::nothing(), &Silent).unwrap();
        let mut files = PeftFiles::read(&llama.join("lora"), model.config()).unwrap();
        // Blanks change the name and nothing else.
        files.config.extend(std::iter::repeat_n(b' ', number.into()));
        NamedAdapter::new(&files, model.config()).unwrap()
    }

    #[test]
    fn those_used_last_stay_in_memory_and_no_more_than_there_is_room_for() {
        let adapters: Vec<_> = (1..=3).map(adapter).collect();
        let each = adapters[0].bytes();
        assert!(each > 0);
        let mut known = Known::default();
        known.keep(adapters[0].clone(), 2 * each);
        known.keep(adapters[1].clone(), 2 * each);
        assert!(known.used(adapters[0].id()).is_some());
        known.keep(adapters[2].clone(), 2 * each);
        let ids: Vec<_> = known.kept.iter().map(NamedAdapter::id).collect();
        assert_eq!(ids, [adapters[0].id(), adapters[2].id()]);
        known.keep(adapters[1].clone(), each - 1);
        assert!(known.kept.is_empty(), "there is no room for one");
    }
}
