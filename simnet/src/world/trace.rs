//! The trace: a hash of everything that was said and that happened, in its order, with its time.

use sha2::{Digest as _, Sha256};
use umbel_coordinator::Time;
use umbel_protocol::frame::Frame;

use super::Event;
use super::Fault;

/// The hash so far.
#[derive(Debug, Default)]
pub(super) struct Trace(Sha256);

impl Trace {
    /// A message was sent.
    pub(super) fn sent(&mut self, frame: &Frame) {
        self.0.update(&frame.header);
        self.0.update(&frame.payload);
    }

    /// An event happened. What a message says was hashed when it was sent, so its place and its
    /// kind are enough.
    pub(super) fn happened(&mut self, at: Time, event: &Event) {
        let (kind, place, detail) = numbers(event);
        let mut bytes = [0; 33];
        bytes[..16].copy_from_slice(&at.elapsed().as_nanos().to_le_bytes());
        bytes[16] = kind;
        bytes[17..25].copy_from_slice(&(place as u64).to_le_bytes());
        bytes[25..].copy_from_slice(&detail.to_le_bytes());
        self.0.update(bytes);
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

/// The kind of an event, where it happens, and what tells it from others of its kind there.
fn numbers(event: &Event) -> (u8, usize, u64) {
    match event {
        Event::Session { link, .. } => (0, link.0, link.1.0.into()),
        Event::SessionClosed { link } => (1, link.0, link.1.0.into()),
        Event::Pushed { link, step, .. } => (2, link.0, step.step.0),
        Event::Answer { link, .. } => (3, link.0, link.1.0.into()),
        Event::LinkLost { link } => (4, link.0, link.1.0.into()),
        Event::PushLost { link, number } => (5, link.0, *number),
        Event::Computed { server, life } => (6, *server, (*life).into()),
        Event::ServerTimer { server, life } => (7, *server, (*life).into()),
        Event::ClientTimer { client } => (8, *client, 0),
        Event::Route { client, .. } => (9, *client, 0),
        Event::Start { client } => (10, *client, 0),
        Event::Announce { server, life } => (11, *server, (*life).into()),
        Event::Heard { server, life } => (12, *server, (*life).into()),
        Event::Fault(fault) => fault_numbers(*fault),
    }
}

fn fault_numbers(fault: Fault) -> (u8, usize, u64) {
    match fault {
        Fault::Crash { server, noticed } => (20, server, noticed.into()),
        Fault::Freeze { server } => (21, server, 0),
        Fault::Thaw { server } => (22, server, 0),
        Fault::Restart { server } => (23, server, 0),
        Fault::Leave { server } => (24, server, 0),
        Fault::Slow { server, factor } => (25, server, factor.into()),
        Fault::Lie { server } => (26, server, 0),
        Fault::Part { a, b, .. } => (27, a, b as u64),
    }
}
