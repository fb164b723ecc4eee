//! `/v1/files`: what is to be learned.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::multipart::{Multipart, MultipartError, MultipartRejection};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::Gateway;
use super::super::error::ApiError;
use super::super::keys::Holder;
use super::super::reply;
use super::store::{FileRecord, Purpose};
use super::{FILE_BYTES_MAX, Tuning, tuning};

/// Files that one key may have: they are at most so many times [`FILE_BYTES_MAX`] on the disk.
const FILES_MAX: usize = 100;

/// How long a file may take to come: the largest one at 2 Mbit/s.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest name of a file that is remembered.
const FILENAME_CHARS_MAX: usize = 255;

/// What files that come are for here.
const PURPOSE: &str = "fine-tune";

pub(super) async fn upload(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<Json<Value>, ApiError> {
    let tuning = tuning(&gateway)?;
    let multipart = multipart.map_err(|error| ApiError::refused(error.status(), error.body_text()));
    let multipart = multipart?;
    // Before it is read; others may come until it is, so that it is found out again then.
    if tuning.store.count(holder.name(), Purpose::FineTune) >= FILES_MAX {
        return Err(too_many());
    }
    let _turn = tuning.uploads.acquire().await.expect("nobody closes it");
    let (filename, lines) = timeout(UPLOAD_TIMEOUT, read(multipart)).await.map_err(|_| {
        let message = format!("the file did not come within {} s", UPLOAD_TIMEOUT.as_secs());
        ApiError::refused(StatusCode::REQUEST_TIMEOUT, message)
    })??;
    let file = FileRecord {
        id: reply::id("file-"),
        owner: holder.name().to_owned(),
        filename: filename.chars().take(FILENAME_CHARS_MAX).collect(),
        bytes: lines.len() as u64,
        created_at: reply::unix_seconds(),
        purpose: Purpose::FineTune,
    };
    let (tuning, kept) = (Arc::clone(tuning), file.clone());
    let keep = move || tuning.store.keep_file(kept, &lines, FILES_MAX).map_err(not_kept);
    if !super::super::apart(keep).await? {
        return Err(too_many());
    }
    Ok(Json(object(&file)))
}

fn too_many() -> ApiError {
    let message = format!("you have {FILES_MAX} files already: delete one");
    ApiError::refused(StatusCode::BAD_REQUEST, message)
}

async fn read(mut multipart: Multipart) -> Result<(String, Vec<u8>), ApiError> {
    let (mut purpose, mut file) = (None, None);
    while let Some(field) = multipart.next_field().await.map_err(malformed)? {
        match field.name() {
            Some("purpose") => purpose = Some(field.text().await.map_err(malformed)?),
            Some("file") => {
                let name = field.file_name().unwrap_or("file.jsonl").to_owned();
                file = Some((name, field.bytes().await.map_err(malformed)?));
            }
            Some(other) => {
                return Err(ApiError::unsupported(other, &format!("the field {other:?}")));
            }
            None => return Err(ApiError::invalid("file", "a part of the body has no name")),
        }
    }
    let purpose = purpose.ok_or_else(|| ApiError::invalid("purpose", "purpose is missing"))?;
    if purpose != PURPOSE {
        let message = format!("files are for {PURPOSE:?} here, and not for {purpose:?}");
        return Err(ApiError::invalid("purpose", message));
    }
    let (name, bytes) = file.ok_or_else(|| ApiError::invalid("file", "file is missing"))?;
    if bytes.is_empty() || bytes.len() > FILE_BYTES_MAX {
        let message = format!("a file has from 1 to {FILE_BYTES_MAX} bytes");
        return Err(ApiError::invalid("file", message));
    }
    Ok((name, bytes.to_vec()))
}

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
) -> Result<Json<Value>, ApiError> {
    let files = tuning(&gateway)?.store.files(holder.name());
    Ok(whole_list(files.iter().map(object).collect()))
}

pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(&find(tuning(&gateway)?, &id, &holder)?)))
}

pub(super) async fn delete(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let tuning = tuning(&gateway)?;
    let file = find(tuning, &id, &holder)?;
    let jobs = tuning.store.jobs(holder.name());
    if jobs.iter().any(|job| job.needs(&file.id)) {
        let message = "a job still needs it: cancel that first";
        return Err(ApiError::refused(StatusCode::CONFLICT, message));
    }
    tuning.store.forget_file(&file.id).map_err(not_kept)?;
    Ok(Json(json!({ "id": file.id, "object": "file", "deleted": true })))
}

pub(super) async fn content(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let tuning = tuning(&gateway)?;
    let lines = tuning.store.lines_of(&find(tuning, &id, &holder)?.id);
    let lines = super::super::apart(move || std::fs::read(lines).map_err(not_kept)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], lines).into_response())
}

/// A file of the holder's.
pub(super) fn find(tuning: &Tuning, id: &str, holder: &Holder) -> Result<FileRecord, ApiError> {
    let mut files = tuning.store.files(holder.name()).into_iter();
    files
        .find(|file| file.id == id)
        .ok_or_else(|| ApiError::refused(StatusCode::NOT_FOUND, format!("you have no file {id:?}")))
}

fn object(file: &FileRecord) -> Value {
    json!({
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    })
}

/// A list of which nothing is left for another page.
pub(super) fn whole_list(data: Vec<Value>) -> Json<Value> {
    Json(json!({ "object": "list", "data": data, "has_more": false }))
}

fn malformed(error: MultipartError) -> ApiError {
    ApiError::refused(error.status(), error.body_text())
}

pub(super) fn not_kept(error: std::io::Error) -> ApiError {
    ApiError::unavailable(&anyhow::Error::new(error).context("the folder of --fine-tuning"))
}
