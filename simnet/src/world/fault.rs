//! What goes wrong.

use umbel_coordinator::server::Input;

use super::{Event, Place, World};
use crate::host::Condition;

/// Something that happens to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It ends. Where `noticed`, its links close at once, as those of a process that is killed;
    /// otherwise it falls silent, as a machine without power.
    Crash {
        /// Which server.
        server: usize,
        /// Whether its links close.
        noticed: bool,
    },
    /// It stands still.
    Freeze {
        /// Which server.
        server: usize,
    },
    /// It goes on.
    Thaw {
        /// Which server.
        server: usize,
    },
    /// It starts anew, with nothing of what it held.
    Restart {
        /// Which server.
        server: usize,
    },
    /// It is asked to leave, as by a signal, and is gone when its clients are.
    Leave {
        /// Which server.
        server: usize,
    },
    /// It computes so many times slower.
    Slow {
        /// Which server.
        server: usize,
        /// How many times.
        factor: u32,
    },
}

impl World {
    pub(super) fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { server, noticed } => self.crash(server, noticed),
            Fault::Freeze { server } if self.hosts[server].condition == Condition::Up => {
                self.hosts[server].condition = Condition::Frozen;
            }
            Fault::Freeze { .. } => {}
            Fault::Thaw { server } => self.thaw(server),
            Fault::Restart { server } => {
                self.crash(server, true);
                self.hosts[server].restart();
            }
            Fault::Leave { server } if self.hosts[server].condition == Condition::Up => {
                self.hosts[server].leaving = true;
                self.tell_server(server, Input::Drain);
            }
            Fault::Leave { .. } => {}
            Fault::Slow { server, factor } => {
                let speed = &mut self.hosts[server].speed;
                (speed.per_block, speed.per_token) =
                    (speed.per_block * factor, speed.per_token * factor);
            }
        }
    }

    pub(super) fn crash(&mut self, server: usize, noticed: bool) {
        let host = &mut self.hosts[server];
        if host.condition == Condition::Down {
            return;
        }
        host.condition = Condition::Down;
        host.held.clear();
        host.computing = None;
        if !noticed {
            return;
        }
        let place = Place::Server(server);
        let life = self.hosts[server].life;
        let here = |end: &super::End| end.server == server && end.life == life;
        let sessions: Vec<_> =
            self.sessions.iter().filter(|(_, end)| here(end)).map(|(link, _)| *link).collect();
        for link in sessions {
            self.send(place, Place::Client(link.0), 0, Event::LinkLost { link });
        }
        let pushes: Vec<_> =
            self.pushes.iter().filter(|(_, end)| here(end)).map(|(link, _)| *link).collect();
        for link in pushes {
            self.send(place, Place::Server(link.0), 0, Event::PushLost { link });
        }
    }

    fn thaw(&mut self, server: usize) {
        let host = &mut self.hosts[server];
        if host.condition != Condition::Frozen {
            return;
        }
        host.condition = Condition::Up;
        for event in std::mem::take(&mut host.held) {
            self.queue.plan(self.now, event);
        }
    }

    /// Keeps what a frozen server cannot take note of yet.
    pub(super) fn hold_if_frozen(&mut self, event: Event) -> Option<Event> {
        let end = match &event {
            Event::Session { link, .. } | Event::SessionClosed { link } => {
                self.sessions.get(link).map(|end| end.server)
            }
            Event::Pushed { link, .. } => self.pushes.get(link).map(|end| end.server),
            Event::PushLost { link } => Some(link.0),
            Event::Computed { server, .. } | Event::ServerTimer { server, .. } => Some(*server),
            Event::Answer { .. }
            | Event::LinkLost { .. }
            | Event::ClientTimer { .. }
            | Event::Route { .. }
            | Event::Start { .. }
            | Event::Fault(_) => None,
        };
        let frozen = end.filter(|&server| self.hosts[server].condition == Condition::Frozen);
        match frozen {
            Some(server) => {
                self.hosts[server].held.push_back(event);
                None
            }
            None => Some(event),
        }
    }
}
