//! What goes wrong.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::server::Input;

use super::links::End;
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
    /// It goes on, at full speed.
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
    /// It computes so many times slower than it could.
    Slow {
        /// Which server.
        server: usize,
        /// How many times.
        factor: u32,
    },
    /// Its answers have the wrong shape from now on, until it is started anew.
    Lie {
        /// Which server.
        server: usize,
    },
    /// Nothing passes between two groups until a moment, and then it comes.
    Part {
        /// One group.
        a: usize,
        /// The other.
        b: usize,
        /// The end.
        until: Time,
    },
}

/// Servers that fail while they are used, as often as steps are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hazard {
    /// How likely each server that a session uses, its spares too, fails during a step.
    pub probability: f64,
    /// The time from the beginning of a step in which that happens.
    pub within: Duration,
    /// Whether its links close at once.
    pub noticed: bool,
    /// After how long another stands in its place.
    pub replaced: Duration,
}

impl World {
    pub(super) fn fail(&mut self, fault: Fault) {
        let over = if let Fault::Part { until, .. } = fault { until } else { self.now };
        self.last_fault = self.last_fault.max(over);
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
                self.links.forget_pushes_from(server);
                self.begin_announcing(server);
            }
            Fault::Leave { server } if self.hosts[server].condition == Condition::Up => {
                self.hosts[server].leaving = true;
                self.totals.leaves += 1;
                self.tell_server(server, Input::Drain);
            }
            Fault::Leave { .. } => {}
            Fault::Slow { server, factor } => self.hosts[server].slower = factor.max(1),
            Fault::Lie { server } => {
                self.hosts[server].lies = true;
                self.totals.lies += 1;
            }
            Fault::Part { a, b, until } => self.links.part(a, b, until),
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
        self.totals.crashes += 1;
        if !noticed {
            return;
        }
        let place = Place::Server(server);
        let (sessions, pushes) = self.links.ends_at(End { server, life: self.hosts[server].life });
        for link in sessions {
            self.send(place, Place::Client(link.0), 0, Event::LinkLost { link });
        }
        for (link, number) in pushes {
            self.send(place, Place::Server(link.0), 0, Event::PushLost { link, number });
        }
    }

    /// Lets the servers that a client uses fail by chance during the step that begins.
    pub(super) fn endanger(&mut self, client: usize) {
        let Some(hazard) = self.settings.hazard else {
            return;
        };
        let ends: Vec<_> = self.links.ends_of_client(client).collect();
        for end in ends {
            if !self.stands(end) || self.hazards.unit() >= hazard.probability {
                continue;
            }
            let (server, noticed) = (end.server, hazard.noticed);
            let at = self.now + hazard.within.mul_f64(self.hazards.unit());
            self.plan(at, Fault::Crash { server, noticed });
            self.plan(at + hazard.replaced, Fault::Restart { server });
        }
    }

    fn thaw(&mut self, server: usize) {
        let host = &mut self.hosts[server];
        host.slower = 1;
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
                self.links.session(*link).map(|end| end.server)
            }
            Event::PushLost { link, .. } => Some(link.0),
            Event::Pushed { server, .. }
            | Event::Heard { server, .. }
            | Event::Computed { server, .. }
            | Event::ServerTimer { server, .. }
            | Event::Announce { server, .. } => Some(*server),
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
