//! Servers: what reaches them, and what they do.

use umbel_coordinator::server::{Batch, Input, Job, Output};
use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::{ClientMessage, PushMessage, ServerMessage, SessionError, Step};
use umbel_protocol::{PeerId, SessionId, Tensor};

use super::links::{End, Push, PushLink, SessionLink, link_id, session_link};
use super::{Event, Place, World};
use crate::host::{Condition, Row};
use crate::oracle::{draw, embed};

impl World {
    /// Lets a message wait for the thread of its server, where that takes time for each.
    pub(super) fn queue_for_thread(&mut self, event: Event) -> Option<Event> {
        let end = if let Event::Session { link, .. } | Event::SessionClosed { link } = &event {
            self.links.session(*link)
        } else if let &Event::Pushed { server, life, .. } = &event {
            Some(End { server, life })
        } else {
            None
        };
        let slow = |end: &End| !self.hosts[end.server].per_message.is_zero();
        let Some(End { server, life }) = end.filter(slow).filter(|end| self.stands(*end)) else {
            return Some(event);
        };
        let host = &mut self.hosts[server];
        host.unread.push_back(event);
        if host.unread.len() == 1 {
            self.queue.plan(self.now + host.per_message, Event::Heard { server, life });
        }
        None
    }

    /// The thread of a server has read a message.
    pub(super) fn heard(&mut self, server: usize, life: u32) {
        let host = &mut self.hosts[server];
        if host.life != life || host.condition == Condition::Down {
            return;
        }
        let event = host.unread.pop_front().expect("the thread reads what is unread");
        if !host.unread.is_empty() {
            self.queue.plan(self.now + host.per_message, Event::Heard { server, life });
        }
        self.come(event);
    }

    pub(super) fn session_message(&mut self, link: SessionLink, message: ClientMessage) {
        let Some(end) = self.links.session(link) else {
            return;
        };
        if self.stands(end) {
            let from = self.clients[link.0].peer;
            self.tell_server(end.server, Input::Received { link: link_id(link), from, message });
        } else if self.hosts[end.server].condition == Condition::Up {
            // It runs again, and knows nothing of the link.
            self.send(
                Place::Server(end.server),
                Place::Client(link.0),
                0,
                Event::LinkLost { link },
            );
        }
    }

    pub(super) fn session_closed(&mut self, link: SessionLink) {
        if let Some(end) = self.links.close_session(link)
            && self.stands(end)
        {
            self.tell_server(end.server, Input::LinkClosed { link: link_id(link) });
        }
    }

    pub(super) fn pushed(&mut self, (link, number): (PushLink, u64), to: End, step: Step) {
        let server = to.server;
        let refused = if self.stands(to) {
            let from = self.hosts[link.0].peer;
            let result = self.hosts[server].server.handle(Input::Pushed { from, step }, self.now);
            self.drive_server(server);
            if let Err(violation) = &result {
                self.totals.violations += 1;
                if self.totals.lies == 0 {
                    self.broken(format!(
                        "server {server} has a push of an honest one: {violation}"
                    ));
                }
            }
            result.is_err()
        } else {
            // It runs again, and knows nothing of the link.
            self.hosts[server].condition == Condition::Up
        };
        if refused {
            let lost = Event::PushLost { link, number };
            self.send(Place::Server(server), Place::Server(link.0), 0, lost);
        }
    }

    pub(super) fn push_lost(&mut self, link: PushLink, number: u64) {
        let (server, session, to) = link;
        let is_open = self.links.push(link).is_some_and(|push| push.number == number);
        if is_open && self.hosts[server].condition == Condition::Up {
            let detail = "the link closed".to_owned();
            self.tell_server(server, Input::PushFailed { session, to, detail });
        }
    }

    pub(super) fn computed(&mut self, server: usize, life: u32) {
        let host = &mut self.hosts[server];
        if host.life != life || host.condition == Condition::Down {
            return;
        }
        let (job, results, compute) = host.computing.take().expect("a pass was being computed");
        let results = results.into_iter().map(Ok).collect();
        self.tell_server(server, Input::Computed { job, results, compute });
    }

    pub(super) fn server_timer(&mut self, server: usize, life: u32) {
        let host = &mut self.hosts[server];
        if host.life != life || host.condition == Condition::Down {
            return;
        }
        host.armed = None;
        host.server.handle_timeout(self.now);
        self.drive_server(server);
    }

    pub(super) fn tell_server(&mut self, server: usize, input: Input) {
        let result = self.hosts[server].server.handle(input, self.now);
        assert_eq!(result, Ok(()), "honest clients keep to the protocol");
        self.drive_server(server);
    }

    fn drive_server(&mut self, server: usize) {
        self.hosts[server].server.begin_pass(self.now);
        while let Some(output) = self.hosts[server].server.poll() {
            match output {
                Output::Send { link, message } => self.answer(server, session_link(link), message),
                Output::Connect { session, next, .. } => {
                    self.connect_push((server, session, next.session), next.peer);
                }
                Output::Push { session, to, step } => self.push(server, session, to, step),
                Output::Disconnect { session, to } => {
                    self.links.close_push((server, session, to));
                }
                Output::Adapter(_) => unreachable!("no session here has an adapter"),
                Output::Pages(orders) => self.hosts[server].order(orders),
                Output::OpenCache { session, blocks, tokens, prefix, .. } => {
                    self.hosts[server].open(session, blocks, &prefix);
                    self.reserve(server, session, blocks, tokens);
                }
                Output::Forget { session } => {
                    let host = &mut self.hosts[server];
                    host.oracle.forget(session);
                    host.reserved.remove(&session);
                }
                Output::Compute(batch) => self.compute(server, &batch),
                Output::Drained { .. } => {
                    if self.hosts[server].leaving {
                        self.crash(server, true);
                        return;
                    }
                }
            }
        }
        self.check_server(server);
        let host = &mut self.hosts[server];
        if let Some(at) = host.server.poll_timeout()
            && host.armed.is_none_or(|armed| at < armed)
        {
            host.armed = Some(at);
            let life = host.life;
            self.queue.plan(at, Event::ServerTimer { server, life });
        }
    }

    fn connect_push(&mut self, link: PushLink, peer: PeerId) {
        let end = self.end_of(peer);
        let class = self.links.class(self.hosts[link.0].group, self.hosts[end.server].group);
        let number = self.links.open_push(link, class.dialable.then_some(end));
        if class.dialable {
            let ends = (self.seat(Place::Server(link.0)), self.seat(Place::Server(end.server)));
            self.links.dial(ends.0, ends.1, self.now);
        } else {
            self.queue.plan(self.now + class.delay * 2, Event::PushLost { link, number });
        }
    }

    fn answer(&mut self, server: usize, link: SessionLink, message: ServerMessage) {
        if let ServerMessage::Error(SessionError { session, code: ErrorCode::LeaseEnded, .. }) =
            &message
        {
            // No client here is idle for so long.
            self.broken(format!("nobody told server {server} of the end of session {session}"));
        }
        let frame = message.clone().encode();
        self.trace.sent(&frame);
        let bytes = self.frame_bytes(&frame);
        let event = Event::Answer { link, message };
        self.send(Place::Server(server), Place::Client(link.0), bytes, event);
    }

    fn push(&mut self, server: usize, session: SessionId, name: SessionId, step: Step) {
        let link = (server, session, name);
        let Some(Push { number, end: Some(to) }) = self.links.push(link) else {
            return;
        };
        self.note_step(&step);
        let frame = PushMessage::Step(step.clone()).encode();
        self.trace.sent(&frame);
        let bytes = self.frame_bytes(&frame);
        let event = Event::Pushed { link, number, server: to.server, life: to.life, step };
        self.send(Place::Server(server), Place::Server(to.server), bytes, event);
    }

    fn compute(&mut self, server: usize, batch: &Batch) {
        let mut rows = Vec::with_capacity(batch.jobs.len());
        let mut results = Vec::with_capacity(batch.jobs.len());
        for &Job { session, blocks, position, ref hidden, draw: ref drawing } in &batch.jobs {
            let tokens = hidden.shape()[0];
            self.check_room(server, session, position + tokens);
            rows.push(Row { blocks, position, tokens });
            let host = &mut self.hosts[server];
            // Of a thin session ids enter, and leave.
            let ids = hidden.to_ids();
            let entering = ids.map_or_else(|| hidden.clone(), |ids| embed(&ids));
            let leaving = host.oracle.step(session, blocks, position, &entering);
            let drawn = drawing.as_ref().map(|drawing| draw(&leaving, drawing));
            let result = drawn.map_or(leaving, |id| Tensor::of_ids(&[id]));
            results.push(if host.lies { cut_short(&result) } else { result });
        }
        let host = &mut self.hosts[server];
        let duration = host.duration(&rows);
        host.computing = Some((batch.id, results, duration));
        let life = host.life;
        self.queue.plan(self.now + duration, Event::Computed { server, life });
    }
}

/// The same tokens with hidden states that are too short.
fn cut_short(hidden: &Tensor) -> Tensor {
    let [tokens, width] = [hidden.shape()[0], hidden.shape()[1] - 1];
    let bytes = hidden.payload().slice(..4 * tokens as usize * width as usize);
    Tensor::new(hidden.dtype(), vec![tokens, width], bytes).expect("as many bytes as numbers")
}
