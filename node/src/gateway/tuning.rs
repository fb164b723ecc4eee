//! Adapters that are learned for those who ask over HTTP: `/v1/files` and `/v1/fine_tuning/jobs`, as
//! OpenAI has them, over the trainer of `umbel train`.
//!
//! What is kept lies in a folder: files with their lines, jobs with their adapters. Each belongs to the
//! key that sent it, and nobody else sees it or is answered with it.

mod files;
mod jobs;
mod store;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::sync::{Semaphore, oneshot, watch};

use super::Gateway;
use super::error::ApiError;
use super::keys::Holder;
use crate::args::ChainArguments;
use crate::config::Config;
pub(super) use jobs::delete_model;
use store::{JobRecord, Status, Store};

/// Jobs that wait: each takes minutes at least, so that the last of more would wait for hours.
const JOBS_WAITING_MAX: usize = 16;

/// Largest file: a hundred thousand short conversations.
const FILE_BYTES_MAX: usize = 64 << 20;

/// Files that are taken in at once: each is in memory until it is whole.
const UPLOADS_MAX: usize = 4;

/// What stands around a file in the body that brings it.
const AROUND_BYTES_MAX: usize = 64 << 10;

/// With what adapters are learned.
#[derive(Debug, Clone)]
pub(crate) struct Trains {
    /// The model, as `umbel train` names it.
    pub(crate) model: String,
    /// Where the gateway has its answers computed, and so what it learns.
    pub(crate) chain: ChainArguments,
    /// Where models are, and how it is computed.
    pub(crate) config: Config,
}

/// Files, jobs, and the adapters that came of them.
pub(crate) struct Tuning {
    store: Store,
    /// Tells the worker that jobs may wait, and by its end that there is no gateway any more.
    begun: watch::Sender<()>,
    uploads: Semaphore,
    /// The job under way, and how it is ended.
    running: Mutex<Option<(String, oneshot::Sender<()>)>>,
}

impl Tuning {
    /// Takes up what lies in a folder, and works on jobs from now on.
    ///
    /// # Errors
    /// Where the folder cannot be made or read.
    pub(crate) fn start(folder: &Path, trains: Trains) -> anyhow::Result<Arc<Self>> {
        let store = Store::open(folder);
        let store = store.with_context(|| format!("--fine-tuning {}", folder.display()))?;
        let (begun, jobs) = watch::channel(());
        let tuning = Arc::new(Self {
            store,
            begun,
            uploads: Semaphore::new(UPLOADS_MAX),
            running: Mutex::new(None),
        });
        tokio::spawn(worker::work(Arc::downgrade(&tuning), jobs, trains));
        Ok(tuning)
    }

    /// The folder of the adapter that this model of a holder's is.
    pub(super) fn adapter(&self, model: &str, holder: &Holder) -> Option<PathBuf> {
        Some(self.store.adapter_of(&self.learned(model, holder)?.id))
    }

    /// The job of a holder's that this model has come of.
    fn learned(&self, model: &str, holder: &Holder) -> Option<JobRecord> {
        self.store.jobs(holder.name()).into_iter().find(|job| {
            job.status == Status::Succeeded && job.fine_tuned_model.as_deref() == Some(model)
        })
    }

    /// The models that a holder has, and since when.
    pub(super) fn models(&self, holder: &Holder) -> Vec<(String, u64)> {
        let jobs = self.store.jobs(holder.name()).into_iter();
        let done = jobs.filter(|job| job.status == Status::Succeeded);
        done.filter_map(|job| Some((job.fine_tuned_model?, job.finished_at?))).collect()
    }

    /// Ends a job that is under way.
    fn stop(&self, id: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, stop)) = running.take_if(|(running, _)| running == id) {
            // It may have ended by itself.
            let _ended = stop.send(());
        }
    }
}

/// What can be asked.
pub(super) fn router() -> Router<Arc<Gateway>> {
    let upload = DefaultBodyLimit::max(FILE_BYTES_MAX + AROUND_BYTES_MAX);
    Router::new()
        .route("/v1/files", get(files::list).post(files::upload).layer(upload))
        .route("/v1/files/{id}", get(files::one).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/fine_tuning/jobs", get(jobs::list).post(jobs::create))
        .route("/v1/fine_tuning/jobs/{id}", get(jobs::one))
        .route("/v1/fine_tuning/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/fine_tuning/jobs/{id}/events", get(jobs::events))
}

/// What there is of it in a gateway.
fn tuning(gateway: &Gateway) -> Result<&Arc<Tuning>, ApiError> {
    gateway.tuning.as_ref().ok_or_else(|| {
        let message = "this gateway learns nothing: it was started without --fine-tuning DIR";
        ApiError::refused(axum::http::StatusCode::NOT_FOUND, message)
    })
}
