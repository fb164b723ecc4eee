//! `GET /v1/models`, and whether the gateway is well.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::Gateway;
use super::error::ApiError;
use super::keys::Holder;

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
) -> Json<Value> {
    let learned = gateway.tuning.iter().flat_map(|tuning| tuning.models(&holder));
    let served = (gateway.model_name().to_owned(), gateway.started());
    let data: Vec<_> = std::iter::once(served)
        .chain(learned)
        .map(|(name, created)| model(&gateway, &name, created))
        .collect();
    Json(json!({ "object": "list", "data": data }))
}

pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let asked = gateway.asked(&name, &holder)?;
    // Whether there is such a one is known only once it is here.
    let _adapter = gateway.adapter(&asked).await?;
    let learned = gateway.tuning.iter().flat_map(|tuning| tuning.models(&holder));
    let created = learned.into_iter().find(|(learned, _)| *learned == asked.name);
    let created = created.map_or(gateway.started(), |(_, created)| created);
    Ok(Json(model(&gateway, &asked.name, created)))
}

fn model(gateway: &Gateway, name: &str, created: u64) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": created,
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
