//! `GET /swarm`: who serves the model, for the page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::Gateway;
use crate::commands::session::Blocks;
use crate::overview::{Overview, ServerOverview};

/// How old a picture may be: however many pages look, the swarm is asked no more often.
const AGE_MAX: Duration = Duration::from_secs(1);

/// The last picture, and when it was taken.
#[derive(Debug, Default)]
pub(super) struct Picture(Mutex<Option<(Instant, Value)>>);

pub(super) async fn show(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    // Who comes while it is taken waits for it, and takes none.
    let mut last = gateway.picture.0.lock().await;
    if let Some((at, picture)) = &*last
        && at.elapsed() < AGE_MAX
    {
        return Json(picture.clone());
    }
    let picture = take(&gateway).await;
    *last = Some((Instant::now(), picture.clone()));
    Json(picture)
}

async fn take(gateway: &Gateway) -> Value {
    let block_count = gateway.opened.model.config().block_count;
    let (is_local, overview) = match &gateway.opened.blocks {
        Blocks::Local(..) => (true, Overview::default()),
        Blocks::Swarm(swarm, _) => {
            let servers = swarm.announcements(Some(gateway.opened.model.id())).await;
            (false, Overview::of_blocks(&servers, block_count, |peer| swarm.round_trip(peer)))
        }
    };
    let model = overview.models.first();
    let nobody = || vec![0; block_count as usize];
    let all = || (0..block_count).collect();
    let unserved =
        if is_local { Vec::new() } else { model.map_or_else(all, |model| model.unserved()) };
    let servers = model.iter().flat_map(|model| &model.servers).map(ServerOverview::to_json);
    json!({
        "model": gateway.model_name(),
        "id": gateway.opened.model.id().to_string(),
        "block_count": block_count,
        "local": is_local,
        "replicas": model.map_or_else(nobody, |model| model.replicas()),
        "unserved": unserved,
        "servers": servers.collect::<Vec<_>>(),
    })
}
