//! Servers: what reaches them, and what they do.

use umbel_coordinator::server::{ComputeFailure, Input, Job, Output};
use umbel_protocol::inference::{ClientMessage, PushMessage, ServerMessage, Step};
use umbel_protocol::{SessionId, Tensor};

use super::{Event, Place, PushLink, SessionLink, World, link_id, session_link};
use crate::host::Condition;

impl World {
    pub(super) fn session_message(&mut self, link: SessionLink, message: ClientMessage) {
        let Some(&end) = self.sessions.get(&link) else {
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
        if let Some(end) = self.sessions.remove(&link)
            && self.stands(end)
        {
            self.tell_server(end.server, Input::LinkClosed { link: link_id(link) });
        }
    }

    pub(super) fn pushed(&mut self, link: PushLink, step: Step) {
        let Some(&end) = self.pushes.get(&link) else {
            return;
        };
        if self.stands(end) {
            let from = self.hosts[link.0].peer;
            // A push that comes after its session was given to another is dropped with its link.
            let input = Input::Pushed { from, step };
            let violation = self.hosts[end.server].server.handle(input, self.now).is_err();
            self.drive_server(end.server);
            if violation {
                self.push_lost(link);
            }
        } else if self.hosts[end.server].condition == Condition::Up {
            self.send(
                Place::Server(end.server),
                Place::Server(link.0),
                0,
                Event::PushLost { link },
            );
        }
    }

    pub(super) fn push_lost(&mut self, link: PushLink) {
        let (server, session, to) = link;
        if self.hosts[server].condition == Condition::Up {
            let detail = "the link closed".to_owned();
            self.tell_server(server, Input::PushFailed { session, to, detail });
        }
    }

    pub(super) fn computed(&mut self, server: usize, life: u32) {
        let host = &mut self.hosts[server];
        if host.life != life || host.condition == Condition::Down {
            return;
        }
        let (job, hidden, compute) = host.computing.take().expect("a job was being computed");
        let result: Result<Tensor, ComputeFailure> = Ok(hidden);
        self.tell_server(server, Input::Computed { job, result, compute });
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
        assert_eq!(result, Ok(()), "honest peers keep to the protocol");
        self.drive_server(server);
    }

    fn drive_server(&mut self, server: usize) {
        while let Some(output) = self.hosts[server].server.poll() {
            match output {
                Output::Send { link, message } => self.answer(server, session_link(link), message),
                Output::Connect { session, next } => {
                    let end = self.end_of(next.peer);
                    self.pushes.insert((server, session, next.session), end);
                }
                Output::Push { session, to, step } => self.push(server, session, to, step),
                Output::Disconnect { session, to } => {
                    self.pushes.remove(&(server, session, to));
                }
                Output::OpenCache { session, blocks, .. } => {
                    self.hosts[server].oracle.open(session, blocks);
                }
                Output::Forget { session } => self.hosts[server].oracle.forget(session),
                Output::Compute(job) => self.compute(server, &job),
                Output::Drained { .. } => {
                    if self.hosts[server].leaving {
                        self.crash(server, true);
                        return;
                    }
                }
            }
        }
        let host = &mut self.hosts[server];
        if let Some(at) = host.server.poll_timeout()
            && host.armed.is_none_or(|armed| at < armed)
        {
            host.armed = Some(at);
            let life = host.life;
            self.queue.plan(at, Event::ServerTimer { server, life });
        }
    }

    fn answer(&mut self, server: usize, link: SessionLink, message: ServerMessage) {
        let bytes = frame_bytes(&message.clone().encode());
        let event = Event::Answer { link, message };
        self.send(Place::Server(server), Place::Client(link.0), bytes, event);
    }

    fn push(&mut self, server: usize, session: SessionId, to: SessionId, step: Step) {
        let link = (server, session, to);
        let Some(end) = self.pushes.get(&link).copied() else {
            return;
        };
        let bytes = frame_bytes(&PushMessage::Step(step.clone()).encode());
        let event = Event::Pushed { link, step };
        self.send(Place::Server(server), Place::Server(end.server), bytes, event);
    }

    fn compute(&mut self, server: usize, job: &Job) {
        let host = &mut self.hosts[server];
        let hidden = host.oracle.step(job.session, job.blocks, job.position, &job.hidden);
        let duration = host.duration(job.blocks.block_count(), job.hidden.shape()[0]);
        host.computing = Some((job.id, hidden, duration));
        let life = host.life;
        self.queue.plan(self.now + duration, Event::Computed { server, life });
    }
}

pub(super) fn frame_bytes(frame: &umbel_protocol::frame::Frame) -> usize {
    8 + frame.header.len() + frame.payload.len()
}
