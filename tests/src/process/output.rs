//! What a process writes to one of its pipes.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// Most bytes that are kept of a pipe: a long log at its most talkative. What follows is read and
/// dropped.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Everything from one pipe so far, read by a thread of its own.
pub(super) struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// A message says that there is more; its end, that the pipe was closed.
    news: Receiver<()>,
}

impl Captured {
    pub(super) fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        // One message that nobody has taken yet says all that a second one would.
        let (sender, news) = sync_channel(1);
        let kept = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let mut kept = locked(&kept);
                let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
                kept.extend(buffer.iter().take(count.min(room)));
                drop(kept);
                match sender.try_send(()) {
                    Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
                }
            }
        });
        Self { bytes, news }
    }

    /// Everything that was written so far.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&locked(&self.bytes)).into_owned()
    }

    /// The rest of the first line that begins with `beginning`, if it comes until `deadline`.
    pub(super) fn wait_for_line(&self, beginning: &str, deadline: Instant) -> Option<String> {
        loop {
            let text = self.text();
            let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            if let Some(rest) = lines.find_map(|line| line.strip_prefix(beginning)) {
                return Some(rest.trim_end().to_owned());
            }
            if !self.wait_for_news(deadline) {
                return None;
            }
        }
    }

    /// Whether `text` was written until `deadline`.
    pub(super) fn wait_for(&self, text: &str, deadline: Instant) -> bool {
        while !self.text().contains(text) {
            if !self.wait_for_news(deadline) {
                return self.text().contains(text);
            }
        }
        true
    }

    /// Waits until the pipe is closed, or `deadline`.
    pub(super) fn wait_for_end(&self, deadline: Instant) {
        while self.wait_for_news(deadline) {}
    }

    /// Whether more was written until `deadline`.
    fn wait_for_news(&self, deadline: Instant) -> bool {
        match self.news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }
}

/// The reading thread does not panic, and the bytes are whole at any time.
fn locked(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, pipe};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn a_line_is_found_once_it_is_complete() {
        let (reader, mut writer) = pipe().unwrap();
        let captured = Captured::read(reader);
        std::io::Write::write_all(&mut writer, b"loading\nready /ip4/1").unwrap();
        assert_eq!(captured.wait_for_line("loading", soon()), Some(String::new()));
        assert_eq!(captured.wait_for_line("ready ", Instant::now()), None);
        std::io::Write::write_all(&mut writer, b"27.0.0.1\nmore").unwrap();
        assert_eq!(captured.wait_for_line("ready ", soon()).as_deref(), Some("/ip4/127.0.0.1"));
        drop(writer);
        captured.wait_for_end(soon());
        assert_eq!(captured.text(), "loading\nready /ip4/127.0.0.1\nmore");
    }

    #[test]
    fn a_pipe_that_closes_ends_the_wait() {
        let captured = Captured::read(Cursor::new("nothing of the kind\n"));
        assert_eq!(captured.wait_for_line("ready ", soon()), None);
    }

    #[test]
    fn a_flood_is_read_but_not_kept() {
        let captured = Captured::read(std::io::repeat(b'x').take(2 * KEPT_BYTES_MAX as u64));
        captured.wait_for_end(soon());
        assert_eq!(captured.text().len(), KEPT_BYTES_MAX);
    }
}
