//! `GET /v1/models`, and whether the gateway is well.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Gateway;
use super::error::ApiError;

pub(super) async fn list(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [model(&gateway)] }))
}

pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    gateway.check_model(&name)?;
    Ok(Json(model(&gateway)))
}

fn model(gateway: &Gateway) -> Value {
    json!({
        "id": gateway.model_name(),
        "object": "model",
        "created": gateway.started(),
        "owned_by": "umbel",
        "max_model_len": gateway.context(),
    })
}

/// The process is there.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// All blocks of the model are served.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.missing_blocks().await {
        missing if missing.is_empty() => "ready\n".into_response(),
        missing => {
            let text = format!("nobody serves blocks {}\n", missing.join(", "));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}
