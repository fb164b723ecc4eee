//! The body of a request: bounded, in time, and read so that an error names the field.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::ApiError;

/// Largest body: a context of a hundred thousand tokens, with room for escapes.
const BYTES_MAX: usize = 4 << 20;

/// What of a body that is larger is read and forgotten, since a client that still writes when the
/// connection closes never reads why.
const READ_MAX: usize = 64 << 20;

/// How long a client may take to send it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a body as JSON.
pub(super) async fn json<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = timeout(TIMEOUT, read(body)).await.unwrap_or_else(|_| {
        let message = format!("the body did not come within {} s", TIMEOUT.as_secs());
        Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, message))
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        ApiError::refused(StatusCode::BAD_REQUEST, format!("the body is not UTF-8: {error}"))
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, message) = (error.path().to_string(), error.inner().to_string());
        match path.as_str() {
            "." | "?" => ApiError::refused(StatusCode::BAD_REQUEST, message),
            _ => ApiError::invalid(path.clone(), format!("{path}: {message}")),
        }
    })?;
    reader.end().map_err(|error| {
        ApiError::refused(StatusCode::BAD_REQUEST, format!("more follows the JSON: {error}"))
    })?;
    Ok(value)
}

async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| {
            ApiError::refused(StatusCode::BAD_REQUEST, "the body ends before its announced length")
        })?;
        length += piece.len();
        if length > READ_MAX {
            break;
        }
        if length > BYTES_MAX {
            bytes = Vec::new();
        } else {
            bytes.extend_from_slice(&piece);
        }
    }
    if length > BYTES_MAX {
        let message = format!("the body is longer than {BYTES_MAX} bytes");
        return Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(bytes)
}
