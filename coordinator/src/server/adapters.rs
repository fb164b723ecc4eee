//! The adapters that clients keep here for their sessions: whose they are, how much they may take, and
//! how they come.
//!
//! An adapter belongs to the client that sent it, and only sessions of that client find it. A session
//! that names one which is not here waits while its client sends the values, part by part, and opens
//! when all have come; other sessions of the client that name it wait with it. An adapter that sessions
//! use stays; one that none uses stays for a lease, or until others need its room.

use std::collections::BTreeMap;
use std::time::Duration;

use umbel_protocol::inference::{AdapterPart, OpenSession, ServerMessage, SessionAdapter};
use umbel_protocol::training::{AdapterSettings, ModuleShapes, STATE_VALUES_MAX};
use umbel_protocol::{ErrorCode, PeerId, ProtocolViolation, SessionId, Span, Tensor};

use super::admission::Refusal;
use super::{LinkId, Output, Server};
use crate::time::Time;

/// How long an adapter is kept that no session uses: as long as a session that nobody uses.
pub const ADAPTER_LEASE: Duration = super::SESSION_LEASE;

/// How long a client may take to send a part: a megabyte needs 9 seconds at 1 Mbit/s.
pub const ADAPTER_PART_LEASE: Duration = Duration::from_secs(60);

/// Adapters of all clients: as many as there are sessions, each of which may have its own.
const ADAPTERS_MAX: usize = super::SESSIONS_MAX;

/// The part of the room that one client may have.
const CLIENT_PART: u64 = 2;

/// Bytes of a binary32.
const VALUE_BYTES: u64 = 4;

/// Room for adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRoom {
    /// Bytes for the adapters of all clients.
    pub bytes_max: u64,
    /// The shape of each module's matrix.
    pub module_shapes: ModuleShapes,
    /// Values of a token between blocks.
    pub hidden_size: u64,
}

/// An adapter that is held, as the accelerator knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterKey(pub u64);

/// What becomes of adapters.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterOrder {
    /// Make room for one, whose values are all written before a session uses it.
    Hold {
        /// Its name, never used before.
        adapter: AdapterKey,
        /// The blocks for which it has values.
        blocks: Span,
        /// What it is.
        settings: AdapterSettings,
    },
    /// Write some of its values.
    Write {
        /// Which.
        adapter: AdapterKey,
        /// The first.
        offset: u64,
        /// `[values]`, binary32, finite.
        values: Tensor,
    },
    /// Forget one that no session uses.
    Drop {
        /// Which.
        adapter: AdapterKey,
    },
}

/// All that are held, and the sessions that wait for some of them.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    held: BTreeMap<AdapterKey, Held>,
    waiting: BTreeMap<SessionId, Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Held {
    client: PeerId,
    adapter: SessionAdapter,
    blocks: Span,
    values: u64,
    /// How much it takes.
    bytes: u64,
    written: u64,
    /// The session whose client sends the values that are lacking.
    writer: Option<SessionId>,
    /// Those that are open.
    sessions: usize,
    last_used: Time,
}

/// A session that opens when its adapter is whole.
#[derive(Debug)]
struct Waiting {
    link: LinkId,
    client: PeerId,
    open: OpenSession,
    adapter: AdapterKey,
}

impl Held {
    const fn is_idle(&self) -> bool {
        self.sessions == 0 && self.writer.is_none()
    }

    fn lease_end(&self) -> Option<Time> {
        if self.writer.is_some() {
            return Some(self.last_used + ADAPTER_PART_LEASE);
        }
        (self.sessions == 0).then(|| self.last_used + ADAPTER_LEASE)
    }

    /// How many values the next part has.
    fn part_values(&self) -> u64 {
        (self.values - self.written).min(STATE_VALUES_MAX as u64)
    }
}

impl Adapters {
    /// Sessions that wait, of all clients and of one.
    pub(super) fn waiting(&self, client: PeerId) -> [usize; 2] {
        let of_client = self.waiting.values().filter(|waiting| waiting.client == client).count();
        [self.waiting.len(), of_client]
    }

    pub(super) fn awaits(&self, session: SessionId) -> bool {
        self.waiting.contains_key(&session)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.held.values().filter_map(Held::lease_end).min()
    }

    /// A session that is open uses it.
    pub(super) fn use_for_session(&mut self, adapter: AdapterKey) {
        self.held.get_mut(&adapter).expect("it was found just now").sessions += 1;
    }

    /// A session that used it has ended.
    pub(super) fn release(&mut self, adapter: AdapterKey, now: Time) {
        let held = self.held.get_mut(&adapter).expect("it stays while a session uses it");
        held.sessions -= 1;
        held.last_used = now;
    }

    fn find(
        &self,
        client: PeerId,
        open: &OpenSession,
        adapter: &SessionAdapter,
    ) -> Option<AdapterKey> {
        let fits = |held: &Held| {
            held.client == client && held.adapter == *adapter && held.blocks.covers(open.blocks)
        };
        self.held.iter().find(|(_, held)| fits(held)).map(|(key, _)| *key)
    }

    /// Makes room for an adapter of a client: adapters that nobody uses go, the client's own where it
    /// has too much, else those unused for longest.
    fn make_room(
        &mut self,
        client: PeerId,
        bytes: u64,
        bytes_max: u64,
    ) -> Result<Vec<AdapterKey>, Refusal> {
        let mut dropped = Vec::new();
        loop {
            let kept = self.held.iter().filter(|(key, _)| !dropped.contains(*key));
            let sum = |of_all: bool| -> u64 {
                let held = kept.clone().filter(|(_, held)| of_all || held.client == client);
                held.map(|(_, held)| held.bytes).fold(0, u64::saturating_add)
            };
            let own_left = (bytes_max / CLIENT_PART).saturating_sub(sum(false));
            let left = bytes_max.saturating_sub(sum(true));
            let is_over_own = bytes > own_left;
            if !is_over_own && bytes <= left && kept.clone().count() < ADAPTERS_MAX {
                break;
            }
            let may_go = |held: &Held| held.is_idle() && (!is_over_own || held.client == client);
            let idle = kept.filter(|(_, held)| may_go(held));
            let Some(key) = idle.min_by_key(|(_, held)| held.last_used).map(|(key, _)| *key) else {
                let allowed = own_left.min(left);
                let detail = format!("the adapter takes {bytes} bytes, and may take {allowed}");
                return Err(Refusal::new(ErrorCode::KvFull, detail));
            };
            dropped.push(key);
        }
        // None goes before it is known that enough may go.
        self.held.retain(|key, _| !dropped.contains(key));
        Ok(dropped)
    }
}

impl Server {
    /// The adapter of a session that is to open; `None` where the session waits for it.
    pub(super) fn adapter_for(
        &mut self,
        link: LinkId,
        client: PeerId,
        open: &OpenSession,
        now: Time,
    ) -> Result<Option<AdapterKey>, Refusal> {
        let adapter = open.adapter.as_ref().expect("the session has one");
        let Some(room) = self.config.adapters.clone() else {
            let detail = "with an adapter, which this server takes none of";
            return Err(Refusal::new(ErrorCode::BlocksNotServed, detail));
        };
        adapter
            .settings
            .check_modules(&room.module_shapes)
            .map_err(|missing| Refusal::new(ErrorCode::BlocksNotServed, missing.to_string()))?;
        self.check(client, open)?;
        let found = self.adapters.find(client, open, adapter);
        let key = match found {
            Some(key) if self.adapters.held[&key].writer.is_none() => return Ok(Some(key)),
            Some(key) => key,
            None => self.hold_adapter(client, open, &room, now)?,
        };
        let session = open.session;
        let waiting = Waiting { link, client, open: open.clone(), adapter: key };
        self.adapters.waiting.insert(session, waiting);
        let held = self.adapters.held.get_mut(&key).expect("it was found just now");
        held.writer.get_or_insert(session);
        let offset = (held.writer == Some(session)).then_some(held.written);
        self.send(link, ServerMessage::AdapterWanted { session, offset });
        Ok(None)
    }

    fn hold_adapter(
        &mut self,
        client: PeerId,
        open: &OpenSession,
        room: &AdapterRoom,
        now: Time,
    ) -> Result<AdapterKey, Refusal> {
        let adapter = open.adapter.clone().expect("the session has one");
        let (blocks, settings) = (open.blocks, adapter.settings.clone());
        let of_blocks = |of_block: u64| of_block.saturating_mul(u64::from(blocks.block_count()));
        let values = of_blocks(settings.block_values(&room.module_shapes, room.hidden_size));
        let scales = of_blocks(settings.block_scales(&room.module_shapes));
        let bytes = values.saturating_add(scales).saturating_mul(VALUE_BYTES);
        let dropped = self.adapters.make_room(client, bytes, room.bytes_max)?;
        let orders = dropped.into_iter().map(|adapter| AdapterOrder::Drop { adapter });
        self.outputs.extend(orders.map(Output::Adapter));
        let key = AdapterKey(self.adapters.next);
        self.adapters.next += 1;
        tracing::debug!(%client, id = %adapter.id, %blocks, bytes, "an adapter is to come");
        let (written, writer, sessions, last_used) = (0, None, 0, now);
        let held =
            Held { client, adapter, blocks, values, bytes, written, writer, sessions, last_used };
        self.adapters.held.insert(key, held);
        let hold = AdapterOrder::Hold { adapter: key, blocks, settings };
        self.outputs.push_back(Output::Adapter(hold));
        Ok(key)
    }

    /// A client has sent values of an adapter for which its session waits.
    pub(super) fn adapter_part(
        &mut self,
        link: LinkId,
        part: AdapterPart,
        now: Time,
    ) -> Result<(), ProtocolViolation> {
        let AdapterPart { session, offset, values } = part;
        let Some(waiting) = self.adapters.waiting.get(&session) else {
            // It may have ended here while the values were on their way.
            let refusal =
                Refusal::new(ErrorCode::UnknownSession, "the session waits for no adapter");
            self.refuse(link, session, None, refusal);
            return Ok(());
        };
        if waiting.link != link {
            return Err(ProtocolViolation::NotAllowed { message: "AdapterPart" });
        }
        let adapter = waiting.adapter;
        let held = self.adapters.held.get_mut(&adapter).expect("sessions wait for what is held");
        let count = u64::from(values.shape()[0]);
        // Parts of another size could be so many that they are dear to take.
        if held.writer != Some(session) || offset != held.written || count != held.part_values() {
            return Err(ProtocolViolation::Unexpected { message: "AdapterPart" });
        }
        held.written += count;
        held.last_used = now;
        let is_whole = held.written == held.values;
        held.writer = held.writer.filter(|_| !is_whole);
        let write = AdapterOrder::Write { adapter, offset, values };
        self.outputs.push_back(Output::Adapter(write));
        if !is_whole {
            self.ask_for_adapter(adapter);
            return Ok(());
        }
        for session in self.waiting_for(adapter) {
            let waiting = self.adapters.waiting.remove(&session).expect("it waits");
            self.open_with(waiting.link, waiting.client, waiting.open, Some(adapter), now);
        }
        Ok(())
    }

    /// A session that waits for its adapter is not to open any more; whether there was one. Another
    /// that waits for the same one goes on sending it.
    pub(super) fn give_up_waiting(&mut self, session: SessionId, now: Time) -> bool {
        let Some(waiting) = self.adapters.waiting.remove(&session) else {
            return false;
        };
        let next = self.waiting_for(waiting.adapter).first().copied();
        let held = self.adapters.held.get_mut(&waiting.adapter).expect("sessions wait for it");
        if held.writer != Some(session) {
            return true;
        }
        held.writer = next;
        held.last_used = now;
        if next.is_some() {
            self.ask_for_adapter(waiting.adapter);
        } else {
            self.drop_adapter(waiting.adapter);
        }
        true
    }

    /// The sessions of a link that wait.
    pub(super) fn waiting_on(&self, link: LinkId) -> Vec<SessionId> {
        let of_link = self.adapters.waiting.iter().filter(|(_, waiting)| waiting.link == link);
        of_link.map(|(session, _)| *session).collect()
    }

    /// Forgets adapters that nobody has used for the length of a lease, and gives up clients that do
    /// not send theirs.
    pub(super) fn expire_adapters(&mut self, now: Time) {
        let late = |held: &Held| held.lease_end().is_some_and(|end| end <= now);
        let late: Vec<_> = self.adapters.held.iter().filter(|(_, held)| late(held)).collect();
        let late: Vec<_> = late.into_iter().map(|(key, held)| (*key, held.writer)).collect();
        for (adapter, writer) in late {
            let Some(session) = writer else {
                self.drop_adapter(adapter);
                continue;
            };
            let link = self.adapters.waiting[&session].link;
            let refusal = Refusal::new(ErrorCode::LeaseEnded, "its adapter did not come");
            self.refuse(link, session, None, refusal);
            self.give_up_waiting(session, now);
        }
    }

    fn drop_adapter(&mut self, adapter: AdapterKey) {
        self.adapters.held.remove(&adapter);
        self.outputs.push_back(Output::Adapter(AdapterOrder::Drop { adapter }));
    }

    fn waiting_for(&self, adapter: AdapterKey) -> Vec<SessionId> {
        let waiting = self.adapters.waiting.iter().filter(|(_, of)| of.adapter == adapter);
        waiting.map(|(session, _)| *session).collect()
    }

    /// Asks for the next part, and tells the others that wait that it goes on.
    fn ask_for_adapter(&mut self, adapter: AdapterKey) {
        let held = &self.adapters.held[&adapter];
        let (writer, written) = (held.writer, held.written);
        for session in self.waiting_for(adapter) {
            let link = self.adapters.waiting[&session].link;
            let offset = (writer == Some(session)).then_some(written);
            self.send(link, ServerMessage::AdapterWanted { session, offset });
        }
    }
}
