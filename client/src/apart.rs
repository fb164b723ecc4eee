//! Arithmetic beside the network.

/// Runs arithmetic on a thread where it does not hold up the network.
pub(crate) async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("arithmetic does not panic")
}
