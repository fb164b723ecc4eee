//! What a process counts, for Prometheus.
//!
//! Names are in base units, and each has a line that says when it counts. Nothing in them is a text, a
//! token, or the name of who asks.

pub mod gateway;
pub mod links;
mod process;
pub mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::gateway::listen;

/// What Prometheus is told that it gets.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An empty registry for a process, which knows the process itself.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    process::register(&mut registry);
    registry
}

/// The part of a registry in which all names begin with `umbel_`.
fn own(registry: &mut Registry) -> &mut Registry {
    registry.sub_registry_with_prefix("umbel")
}

/// Listens for Prometheus.
///
/// # Errors
/// Where the address is taken, or none of this machine's.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("--metrics cannot listen on {address}"))?;
    let at = listener.local_addr().context("the system does not say where it listens")?;
    tracing::info!("metrics at http://{at}/metrics");
    Ok(listener)
}

/// Answers what is asked at `/metrics`, until the future is dropped.
pub async fn serve(listener: TcpListener, registry: Registry) {
    let registry = Arc::new(registry);
    let scrape = move || {
        let registry = Arc::clone(&registry);
        async move { answer(&registry) }
    };
    let router = Router::new().route("/metrics", get(scrape));
    listen::serve(listener, router, std::future::pending()).await;
}

fn answer(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::warn!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DASHBOARD: &str = include_str!("../../deploy/grafana/umbel.json");

    /// Names of the metrics that the texts of a dashboard ask for.
    fn asked(dashboard: &serde_json::Value, names: &mut BTreeSet<String>) {
        let text = dashboard["expr"].as_str().unwrap_or_default();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("umbel_")).map(str::to_owned));
        let inner = dashboard.as_array().into_iter().flatten();
        let fields = dashboard.as_object().into_iter().flat_map(|fields| fields.values());
        inner.chain(fields).for_each(|inner| asked(inner, names));
    }

    #[test]
    fn the_dashboard_asks_for_nothing_that_nobody_counts() {
        let mut registry = registry();
        server::Counters::default().register(&mut registry);
        server::Waits::default().register(&mut registry);
        gateway::Counters::default().register(&mut registry);
        gateway::Counters::example().register(&mut registry);
        let state = server::State::example();
        registry.register_collector(Box::new(state));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let counted: BTreeSet<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        let mut names = BTreeSet::new();
        asked(&serde_json::from_str(DASHBOARD).unwrap(), &mut names);
        assert!(names.len() > 10, "{names:?}");
        for name in &names {
            assert!(counted.contains(name.as_str()), "{name} is not in\n{text}");
        }
    }
}
