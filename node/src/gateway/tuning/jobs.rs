//! `/v1/fine_tuning/jobs`: what is learned, one after the other.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::keys::Holder;
use super::super::{Gateway, body, reply};
use super::files::{self, not_kept, whole_list};
use super::store::{Begun, FileRecord, JobLimits, JobRecord, Purpose, Status};
use super::{JOBS_WAITING_MAX, Tuning, tuning};
use crate::commands::train::metrics::History;

/// Jobs that one key may have: those that wait, those under way, those whose adapters are kept, and of the
/// others the newest.
const JOBS_MAX: usize = 100;

/// The longest suffix, as OpenAI has it.
const SUFFIX_CHARS_MAX: usize = 64;

/// What `umbel train` does without being told.
const EPOCHS: u64 = 3;
const BATCH: u16 = 8;

/// As OpenAI's reference has it; what is not built is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobRequest {
    model: String,
    training_file: String,
    validation_file: Option<String>,
    suffix: Option<String>,
    seed: Option<u64>,
    hyperparameters: Option<Hyperparameters>,
    method: Option<Method>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hyperparameters {
    n_epochs: Option<Number>,
    batch_size: Option<Number>,
    learning_rate_multiplier: Option<Number>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
    supervised: Option<Supervised>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Supervised {
    hyperparameters: Option<Hyperparameters>,
}

/// A number, or `auto`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Number {
    Given(f64),
    Named(String),
}

impl Number {
    /// The number, or `otherwise` where it is left to the gateway.
    fn or(of: Option<&Self>, otherwise: f64, param: &str) -> Result<f64, ApiError> {
        match of {
            None => Ok(otherwise),
            Some(Self::Given(number)) => Ok(*number),
            Some(Self::Named(name)) if name == "auto" => Ok(otherwise),
            Some(Self::Named(_)) => {
                Err(ApiError::invalid(param, format!("{param} is a number or \"auto\"")))
            }
        }
    }
}

/// A whole number within bounds.
fn whole(number: f64, max: u16, param: &str) -> Result<u16, ApiError> {
    if number.fract() != 0.0 || number < 1.0 || number > f64::from(max) {
        return Err(ApiError::invalid(param, format!("{param} is from 1 to {max}")));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is whole and within bounds"
    )]
    Ok(number as u16)
}

pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let tuning = tuning(&gateway)?;
    let request: JobRequest = body::json(body).await?;
    gateway.check_model(&request.model)?;
    let job = job(tuning, request, &holder)?;
    begin(tuning, job.clone()).await?;
    Ok(Json(object(&job)))
}

/// Has a job learned, if it may be. Whoever asked may be gone before this is done: what is kept by then is
/// learned all the same.
pub(super) async fn begin(tuning: &Arc<Tuning>, job: JobRecord) -> Result<(), ApiError> {
    let keeper = Arc::clone(tuning);
    let keep = move || {
        let limits = JobLimits { of_owner: JOBS_MAX, waiting: JOBS_WAITING_MAX };
        let begun = keeper.store.begin_job(job, limits).map_err(not_kept)?;
        keeper.begun.send_replace(());
        Ok(begun)
    };
    match super::super::apart(keep).await? {
        Begun::Queued => Ok(()),
        Begun::QueueFull => Err(ApiError::busy(JOBS_WAITING_MAX, "jobs")),
        Begun::OwnerFull => {
            let message = format!(
                "you have {JOBS_MAX} models and jobs that are not over: delete a model, by DELETE \
                 /v1/models/NAME"
            );
            Err(ApiError::refused(StatusCode::BAD_REQUEST, message))
        }
    }
}

fn job(tuning: &Tuning, request: JobRequest, holder: &Holder) -> Result<JobRecord, ApiError> {
    let file = |id: String, param: &str| {
        let is_text = |file: &FileRecord| file.purpose == Purpose::FineTune;
        let file = files::find(tuning, &id, holder).ok().filter(is_text);
        let unknown = || ApiError::invalid(param, format!("you have no file {id:?} of texts"));
        file.map(|file| file.id).ok_or_else(unknown)
    };
    let training_file = file(request.training_file, "training_file")?;
    let validation_file = request.validation_file.map(|id| file(id, "validation_file"));
    let mut learned = request.hyperparameters;
    if let Some(Method { kind, supervised }) = request.method {
        if kind != "supervised" {
            return Err(ApiError::unsupported("method", &format!("the method {kind:?}")));
        }
        learned = supervised.unwrap_or_default().hyperparameters.or(learned);
    }
    let learned = learned.unwrap_or_default();
    let number =
        |of: &Option<Number>, otherwise: f64, param| Number::or(of.as_ref(), otherwise, param);
    let epochs = number(&learned.n_epochs, EPOCHS as f64, "n_epochs")?;
    let batch = number(&learned.batch_size, f64::from(BATCH), "batch_size")?;
    let rate = number(&learned.learning_rate_multiplier, 1.0, "learning_rate_multiplier")?;
    if !rate.is_finite() || rate <= 0.0 || rate > 100.0 {
        let message = "learning_rate_multiplier is above 0, and 100 at most";
        return Err(ApiError::invalid("learning_rate_multiplier", message));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(suffix) = &request.suffix
        && (suffix.is_empty() || suffix.len() > SUFFIX_CHARS_MAX || !suffix.chars().all(plain))
    {
        let message = format!("a suffix is 1 to {SUFFIX_CHARS_MAX} letters, digits, -, _ or .");
        return Err(ApiError::invalid("suffix", message));
    }
    Ok(JobRecord {
        id: reply::id("ftjob-"),
        owner: holder.name().to_owned(),
        model: request.model,
        training_file,
        validation_file: validation_file.transpose()?,
        result_file: None,
        suffix: request.suffix,
        epochs: whole(epochs, 1_000, "n_epochs")?.into(),
        batch: whole(batch, 4_096, "batch_size")?,
        learning_rate_multiplier: rate,
        seed: request.seed.unwrap_or(0),
        status: Status::Queued,
        created_at: reply::unix_seconds(),
        finished_at: None,
        error: None,
        fine_tuned_model: None,
    })
}

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
) -> Result<Json<Value>, ApiError> {
    let jobs = tuning(&gateway)?.store.jobs(holder.name());
    Ok(whole_list(jobs.iter().map(object).collect()))
}

pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(&find(tuning(&gateway)?, &id, &holder)?)))
}

pub(super) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let tuning = tuning(&gateway)?;
    let id = find(tuning, &id, &holder)?.id;
    if !tuning.store.change(&id, |job| job.status = Status::Cancelled) {
        return Err(ApiError::refused(StatusCode::BAD_REQUEST, "the job is over already"));
    }
    tuning.stop(&id);
    Ok(Json(object(&find(tuning, &id, &holder)?)))
}

/// `DELETE /v1/models/NAME` of a model that was learned here: its adapter goes, and the job stays.
pub(in super::super) async fn delete_model(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let tuning = tuning(&gateway)?;
    let unknown = || ApiError::no_model(format!("you have had no model {name:?} learned"));
    let job = tuning.learned(&name, &holder).ok_or_else(unknown)?;
    let keeper = Arc::clone(tuning);
    let forget = move || keeper.store.forget_adapter(&job.id).map_err(not_kept);
    super::super::apart(forget).await?;
    Ok(Json(json!({ "id": name, "object": "model", "deleted": true })))
}

/// The losses so far, the newest first.
pub(super) async fn events(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let tuning = tuning(&gateway)?;
    let job = find(tuning, &id, &holder)?;
    let folder = tuning.store.adapter_of(&job.id);
    // There is none before the first step.
    let read = move || Ok(History::read(&folder, u64::MAX).unwrap_or_default());
    let history = super::super::apart(read).await?;
    let mut data: Vec<_> = history.by_step().map(|step| event(&job, history.steps, step)).collect();
    data.reverse();
    Ok(whole_list(data))
}

/// What a step came to, with the names that OpenAI gives it: a validation is always of all its texts.
fn event(
    job: &JobRecord,
    total: Option<u64>,
    (step, loss, validation): (u64, Option<f64>, Option<f64>),
) -> Value {
    let mut said = Vec::new();
    let mut data = json!({ "step": step, "total_steps": total });
    for (name, field, loss) in
        [("training loss", "train_loss", loss), ("validation loss", "full_valid_loss", validation)]
    {
        if let Some(loss) = loss {
            said.push(format!("{name} {loss:.4}"));
            data[field] = json!(loss);
        }
    }
    json!({
        "object": "fine_tuning.job.event",
        "id": format!("ftevent-{}-{step}", job.id),
        "created_at": job.created_at,
        "level": "info",
        "type": "metrics",
        "message": format!("step {step}: {}", said.join(", ")),
        "data": data,
    })
}

/// A job of the holder's.
fn find(tuning: &Tuning, id: &str, holder: &Holder) -> Result<JobRecord, ApiError> {
    let job = tuning.store.job(id).filter(|job| job.owner == holder.name());
    job.ok_or_else(|| ApiError::refused(StatusCode::NOT_FOUND, format!("you have no job {id:?}")))
}

fn object(job: &JobRecord) -> Value {
    let hyperparameters = json!({
        "n_epochs": job.epochs,
        "batch_size": job.batch,
        "learning_rate_multiplier": job.learning_rate_multiplier,
    });
    let error = job
        .error
        .as_ref()
        .map(|message| json!({ "code": "training_failed", "message": message, "param": null }));
    json!({
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.owner,
        "result_files": job.result_file.iter().collect::<Vec<_>>(),
        "status": job.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "trained_tokens": null,
        "seed": job.seed,
        "error": error,
        "user_provided_suffix": job.suffix,
        "hyperparameters": hyperparameters,
        "method": { "type": "supervised", "supervised": { "hyperparameters": hyperparameters } },
    })
}
