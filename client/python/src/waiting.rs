//! Waiting for the network: other threads of Python go on meanwhile, and Ctrl-C ends it.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Runtime;

/// How often a signal is looked for: a person who presses Ctrl-C feels no delay.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// One for the process, which never ends: sessions say farewell on it after their objects are gone.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Waits for `work` without the interpreter's lock.
///
/// # Errors
/// What a handler of a signal raises, `KeyboardInterrupt` for Ctrl-C; the work is given up then.
pub(crate) fn wait<T: Send>(py: Python<'_>, work: impl Future<Output = T> + Send) -> PyResult<T> {
    let runtime = runtime()?;
    py.detach(|| {
        runtime.block_on(async {
            let mut work = std::pin::pin!(work);
            loop {
                match tokio::time::timeout(SIGNAL_INTERVAL, &mut work).await {
                    Ok(done) => return Ok(done),
                    Err(_) => Python::attach(|py| py.check_signals())?,
                }
            }
        })
    })
}

/// Does what takes long and never waits, as [`wait`] does.
///
/// # Errors
/// As [`wait`].
pub(crate) fn compute<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let task = runtime()?.spawn_blocking(work);
    wait(py, task)?.map_err(|_| PyRuntimeError::new_err("a bug of umbel: its work panicked"))
}

/// Gives something up for which a runtime must be there.
pub(crate) fn give_up<T>(given_up: T) {
    if let Some(runtime) = RUNTIME.get() {
        let _entered = runtime.enter();
        drop(given_up);
    }
}

fn runtime() -> PyResult<&'static Runtime> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let new = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(RUNTIME.get_or_init(|| new))
}
