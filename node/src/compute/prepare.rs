//! Adapters of sessions that are about to begin: what their passes need of them beside their values is
//! computed before, between the passes of others.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::oneshot;
use umbel_coordinator::server::SESSIONS_MAX;
use umbel_engine::HostedSpan;
use umbel_engine::train::Adapter;
use umbel_protocol::Span;

use super::floor::Floor;

/// Adapters that wait: one of each session. Those beyond are prepared by their first pass.
const WAITING_MAX: usize = SESSIONS_MAX;

/// An adapter with which a session opens.
pub struct OpenAdapter {
    /// What is added to the matrices for its tokens.
    pub adapter: Arc<Adapter>,
    /// Dropped as soon as passes take no longer for it; while it is there, somebody may wait.
    pub prepared: Option<oneshot::Sender<()>>,
}

/// What is to be prepared for a session on some blocks.
struct Work {
    hosted: HostedSpan,
    blocks: Span,
    adapter: Arc<Adapter>,
    prepared: oneshot::Sender<()>,
}

/// A thread that prepares adapters, one after the other.
pub(super) struct Preparer(SyncSender<Work>);

impl Preparer {
    /// Starts the thread, which ends when the result is dropped.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub(super) fn start(floor: Floor) -> Self {
        let (send, works) = sync_channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("adapters".to_owned())
            .spawn(move || works.iter().for_each(|work: Work| work.carry_out(&floor)))
            .expect("the system can start a thread");
        Self(send)
    }

    /// Has an adapter prepared that fits these blocks, if it is not.
    pub(super) fn prepare(&self, hosted: &HostedSpan, blocks: Span, open: OpenAdapter) {
        let OpenAdapter { adapter, prepared: Some(prepared) } = open else { return };
        if !hosted.is_prepared(blocks, &adapter) {
            let work = Work { hosted: hosted.clone(), blocks, adapter, prepared };
            // Where too many wait, the first pass does it.
            let _full = self.0.try_send(work);
        }
    }
}

impl Work {
    fn carry_out(self, floor: &Floor) {
        for block in self.blocks.blocks() {
            // Its session may have ended, or another have had the same one prepared.
            let is_over =
                self.prepared.is_closed() || self.hosted.is_prepared(self.blocks, &self.adapter);
            if is_over {
                return;
            }
            floor.soon(|pause| self.hosted.prepare(block, &self.adapter, pause));
        }
    }
}
