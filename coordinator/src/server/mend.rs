//! What a server does when the route around it changes.

use umbel_protocol::error::{ErrorCode, ProtocolViolation};
use umbel_protocol::inference::{Adopt, Neighbour, Redirect, ServerMessage, Step, Trouble};
use umbel_protocol::{PeerId, SessionId};

use super::admission::Refusal;
use super::served::{Delivery, Served};
use super::{LinkId, Output, Server};
use crate::time::Time;

impl Server {
    /// Takes a step of the hop before. Nobody is at fault whose step is not taken: it may have been
    /// on its way when the session ended here, or when this hop was told of another one before it.
    pub(super) fn pushed(&mut self, from: PeerId, step: Step, now: Time) {
        let Some(served) = self.sessions.get(&step.session) else {
            return;
        };
        if served.enters_ids() {
            return self.drawn_pushed(from, step, now);
        }
        let is_expected = !served.awaits_refill || step.position == 0;
        if served.previous != Some(from) || !is_expected {
            tracing::debug!(session = %step.session, %from, step = step.step.0, "dropped a push");
            return;
        }
        let link = served.link;
        if let Err((session, _, refusal)) = self.enqueue(step, now) {
            self.refuse_push(link, session, from, refusal);
        }
    }

    /// Tells the client behind `link` that its session does not take what the hop before has sent.
    pub(super) fn refuse_push(
        &mut self,
        link: LinkId,
        session: SessionId,
        from: PeerId,
        Refusal { code, detail }: Refusal,
    ) {
        tracing::info!(%session, %from, %code, "refused a push");
        let neighbour = Neighbour::Previous;
        self.send(link, ServerMessage::Trouble(Trouble { session, neighbour, code, detail }));
    }

    pub(super) fn redirect(
        &mut self,
        link: LinkId,
        redirect: Redirect,
    ) -> Result<(), ProtocolViolation> {
        let (session, mirror) = (redirect.session, redirect.mirror);
        let Some(served) = self.own(link, session, "Redirect")? else {
            return Ok(());
        };
        let redirected = served.redirect(redirect);
        let (complete, packing) = (redirected.complete, served.packing);
        tracing::debug!(%session, mirror, complete, "redirected");
        if let Some(to) = redirected.disconnect {
            self.outputs.push_back(Output::Disconnect { session, to });
        }
        if let Some(next) = redirected.connect {
            self.outputs.push_back(Output::Connect { session, next, packing });
        }
        self.send_all(session, link, redirected.deliveries);
        self.send(link, ServerMessage::Redirected { session, mirror, complete });
        Ok(())
    }

    pub(super) fn adopt(&mut self, link: LinkId, adopt: Adopt) -> Result<(), ProtocolViolation> {
        let Adopt { session, previous, empty, drawer } = adopt;
        let Some(served) = self.own(link, session, "Adopt")? else {
            return Ok(());
        };
        served.previous = previous;
        if let Some(thin) = &mut served.thin {
            thin.adopt(drawer);
        }
        let journal_bytes = served.journal.bytes();
        if empty {
            served.empty();
        }
        let position = served.received;
        if empty {
            self.journal_bytes -= journal_bytes;
            self.schedule.abandon(session);
        }
        self.send(link, ServerMessage::Adopted { session, position });
        Ok(())
    }

    pub(super) fn ping(
        &mut self,
        link: LinkId,
        session: SessionId,
    ) -> Result<(), ProtocolViolation> {
        let Some(served) = self.own(link, session, "Ping")? else {
            return Ok(());
        };
        let (received, computed) = (served.received, served.computed);
        self.send(link, ServerMessage::Pong { session, received, computed });
        Ok(())
    }

    pub(super) fn push_failed(&mut self, session: SessionId, to: SessionId, detail: String) {
        let Some(served) = self.sessions.get_mut(&session) else {
            return;
        };
        let link = served.link;
        let ring_lost = served.thin.as_mut().is_some_and(|thin| thin.lose(to));
        let lost = if ring_lost { Some(false) } else { served.lose(to) };
        let message = match lost {
            None => return,
            Some(true) => ServerMessage::Redirected { session, mirror: true, complete: false },
            Some(false) => ServerMessage::Trouble(Trouble {
                session,
                neighbour: Neighbour::Next,
                code: ErrorCode::NextHopUnreachable,
                detail,
            }),
        };
        self.outputs.push_back(Output::Disconnect { session, to });
        self.send(link, message);
    }

    /// Sends what was computed where it goes, and keeps it in the journal.
    pub(super) fn deliver(&mut self, step: Step) {
        let session = step.session;
        let served = self.sessions.get_mut(&session).expect("a step of it was running");
        let before = served.journal.bytes();
        let deliveries = served.computed(step);
        let (link, after) = (served.link, served.journal.bytes());
        self.journal_bytes = self.journal_bytes + after - before;
        self.evict_journals();
        self.send_all(session, link, deliveries);
    }

    fn send_all(&mut self, session: SessionId, link: LinkId, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            match delivery {
                Delivery::Client(step) => {
                    self.send(link, ServerMessage::Output(step.into_answer()));
                }
                Delivery::Server(step) => {
                    self.outputs.push_back(Output::Push { session, to: step.session, step });
                }
            }
        }
    }

    fn evict_journals(&mut self) {
        while self.journal_bytes > self.config.journal_bytes_max {
            let largest = self.sessions.values_mut().max_by_key(|served| served.journal.bytes());
            let Some(served) = largest.filter(|served| served.journal.bytes() > 0) else {
                return;
            };
            self.journal_bytes -= served.journal.bytes();
            served.journal.evict();
        }
    }

    /// The session of this link with this name; the client is told where there is none.
    pub(super) fn own(
        &mut self,
        link: LinkId,
        session: SessionId,
        message: &'static str,
    ) -> Result<Option<&mut Served>, ProtocolViolation> {
        match self.sessions.get(&session).map(|served| served.link) {
            Some(owner) if owner != link => Err(ProtocolViolation::NotAllowed { message }),
            Some(_) => Ok(self.sessions.get_mut(&session)),
            None => {
                self.refuse(link, session, None, Refusal::not_open());
                Ok(None)
            }
        }
    }
}
