//! `POST /v1/embeddings`: texts as vectors.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::keys::{Holder, Taken};
use super::prompts::{Prompt, Prompts};
use super::{Gateway, Turn, body};

/// Texts of a request, as OpenAI has it.
const TEXTS_MAX: usize = 2048;

/// Texts of one request that are read at once; each has a turn of its own.
const AT_ONCE: usize = 8;

/// As OpenAI's reference has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingsRequest {
    model: String,
    input: Prompts,
    encoding_format: Option<Encoding>,
    dimensions: Option<usize>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    Extension(holder): Extension<Arc<Holder>>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let request: EmbeddingsRequest = body::json(body).await?;
    gateway.check_model(&request.model)?;
    let size = gateway.hidden_size();
    if request.dimensions.is_some_and(|dimensions| dimensions != size) {
        let what = format!("a number of dimensions other than {size}");
        return Err(ApiError::unsupported("dimensions", &what));
    }
    let texts = request.input.into_vec();
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        return Err(ApiError::invalid("input", format!("input has from 1 to {TEXTS_MAX} texts")));
    }
    let first = gateway.admission.turn().await?;
    drop(first);
    let read = texts.into_iter().map(|text| read(&gateway, &holder, text));
    let read: Vec<_> = stream::iter(read).buffered(AT_ONCE).try_collect().await?;
    let tokens: usize = read.iter().map(|(tokens, _)| tokens).sum();
    let encoding = request.encoding_format.unwrap_or(Encoding::Float);
    let entry = |(index, (_, vector)): (usize, (usize, Vec<f32>))| json!({ "object": "embedding", "index": index, "embedding": write(encoding, &vector) });
    let data: Vec<_> = read.into_iter().enumerate().map(entry).collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": gateway.model_name(),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    })))
}

/// How many tokens a text has, and its vector.
async fn read(
    gateway: &Arc<Gateway>,
    holder: &Arc<Holder>,
    text: Prompt,
) -> Result<(usize, Vec<f32>), ApiError> {
    let own = |error: ApiError| error.renamed("messages", "input").renamed("prompt", "input");
    let _turn = gateway.admission.further_turn().await;
    let (ids, _) = text.encode(gateway, Turn::Further).await.map_err(own)?;
    let taken = Taken::from(holder, ids.len());
    let vector = gateway.embedding(&ids, taken).await.map_err(own)?;
    Ok((ids.len(), vector))
}

fn write(encoding: Encoding, vector: &[f32]) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            json!(STANDARD.encode(bytes))
        }
    }
}
