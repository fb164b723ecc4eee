//! How long work tells of itself.

/// Told of downloads and other work that a person waits for.
///
/// One piece of work at a time: `start`, then `advance` any number of times, then `finish`.
pub trait Progress: Send + Sync {
    /// A piece of work begins; `total` is its size in bytes, where it is known.
    fn start(&self, total: Option<u64>, label: &str);
    /// This many more bytes are done.
    fn advance(&self, bytes: u64);
    /// The piece of work is over, done or not.
    fn finish(&self);
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _total: Option<u64>, _label: &str) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}

/// A piece of work that is finished when it goes out of scope, on errors too.
pub(crate) struct Work<'a>(&'a dyn Progress);

impl<'a> Work<'a> {
    pub(crate) fn start(progress: &'a dyn Progress, total: Option<u64>, label: &str) -> Self {
        progress.start(total, label);
        Self(progress)
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}
