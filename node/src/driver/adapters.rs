//! The adapters of clients, as they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use umbel_coordinator::server::{AdapterKey, AdapterOrder, LinkId};
use umbel_engine::train::{Adapter, AdapterConfig};
use umbel_protocol::inference::{ServerMessage, Step};
use umbel_protocol::{ProtocolViolation, SessionId};
use umbel_shard::ModelConfig;

use super::Event;
use crate::compute::OpenAdapter;

/// How often a client hears that its adapter is still being prepared: it then waits for 9 seconds and more,
/// as for a part of one over the slowest link, and for a quarter of an hour in all.
const STILL_PREPARING: Duration = Duration::from_secs(2);

/// All that are held.
#[derive(Default)]
pub(super) struct Adapters {
    /// For which model, where any are taken.
    model: Option<ModelConfig>,
    held: BTreeMap<AdapterKey, Arc<Adapter>>,
    preparing: BTreeMap<SessionId, Preparing>,
}

/// A session whose client hears that it is open when its first pass is no longer than those of others.
///
/// Magnitudes (DoRA) are divided by norms of rows, which take some seconds for a large model: computed in
/// a pass, they would hold up the sessions that share it.
struct Preparing {
    /// What its client is to hear, and where.
    opened: Option<(LinkId, ServerMessage)>,
    task: AbortHandle,
}

impl Drop for Preparing {
    fn drop(&mut self) {
        // Nobody waits for it any more.
        self.task.abort();
    }
}

impl Adapters {
    pub(super) fn of(model: ModelConfig) -> Self {
        Self { model: Some(model), ..Self::default() }
    }

    /// Does as the machine says, which has checked what it was told.
    pub(super) fn order(&mut self, order: AdapterOrder) {
        match order {
            AdapterOrder::Hold { adapter, blocks, settings } => {
                let model = self.model.as_ref().expect("adapters are taken for a known model");
                let blank = Adapter::blank(AdapterConfig::from(&settings), model, blocks);
                let blank = blank.expect("settings and blocks were checked when they came");
                self.held.insert(adapter, Arc::new(blank));
            }
            AdapterOrder::Write { adapter, offset, values } => {
                let held = self.held.get_mut(&adapter).expect("what is written to is held");
                let held = Arc::get_mut(held).expect("no session uses it before it is whole");
                let written = held.write(offset, &values.to_f32());
                written.expect("values were counted, and checked when they came");
            }
            AdapterOrder::Drop { adapter } => {
                self.held.remove(&adapter);
            }
        }
    }

    /// One whose values were all written, for a session that opens; `tell` is told how far it is where it
    /// has to be prepared.
    pub(super) fn open(
        &mut self,
        session: SessionId,
        adapter: AdapterKey,
        tell: &mpsc::Sender<Event>,
    ) -> OpenAdapter {
        let held = self.held.get(&adapter).expect("it stays while sessions use it");
        let adapter = Arc::clone(held);
        if !adapter.config().weight_decomposed {
            return OpenAdapter { adapter, prepared: None };
        }
        let (prepared, mut is_prepared) = oneshot::channel();
        let tell = tell.clone();
        let task = tokio::spawn(async move {
            // Nothing is sent: it is dropped when it is done.
            while tokio::time::timeout(STILL_PREPARING, &mut is_prepared).await.is_err() {
                if tell.send(Event::Preparing { session }).await.is_err() {
                    return;
                }
            }
            let _ended = tell.send(Event::Prepared { session }).await;
        });
        let preparing = Preparing { opened: None, task: task.abort_handle() };
        self.preparing.insert(session, preparing);
        OpenAdapter { adapter, prepared: Some(prepared) }
    }

    /// What is said instead of `message` at once: a client hears that its session is open when its adapter
    /// is prepared, and until then what one hears whose adapter comes from another of its sessions.
    pub(super) fn withhold(&mut self, link: LinkId, message: ServerMessage) -> ServerMessage {
        let ServerMessage::Opened { session, .. } = message else {
            return message;
        };
        let Some(preparing) = self.preparing.get_mut(&session) else {
            return message;
        };
        preparing.opened = Some((link, message));
        waits(session)
    }

    /// Whether a step may be computed: one of a session that nobody has heard is open would have its adapter
    /// prepared in a pass, and with that hold up all who share it.
    pub(super) fn check(&self, step: &Step) -> Result<(), ProtocolViolation> {
        if self.preparing.contains_key(&step.session) {
            return Err(ProtocolViolation::Unexpected { message: "Step" });
        }
        Ok(())
    }

    /// What the client of a session hears again while its adapter is being prepared.
    pub(super) fn still_preparing(&self, session: SessionId) -> Option<(LinkId, ServerMessage)> {
        let (link, _) = self.preparing.get(&session)?.opened.as_ref()?;
        Some((*link, waits(session)))
    }

    /// What was withheld of a session whose adapter is prepared, or that has ended.
    pub(super) fn prepared(&mut self, session: SessionId) -> Option<(LinkId, ServerMessage)> {
        self.preparing.remove(&session)?.opened.take()
    }
}

const fn waits(session: SessionId) -> ServerMessage {
    ServerMessage::AdapterWanted { session, offset: None }
}
