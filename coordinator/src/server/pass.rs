//! Steps on their way into a pass of the accelerator, and their results on their way out.

use std::time::Duration;

use umbel_protocol::inference::{HopTiming, Step};
use umbel_protocol::{SessionId, StepId, Tensor};

use super::admission::Refusal;
use super::schedule::{self, Finished};
use super::{ComputeFailure, JobId, Output, Server};
use crate::time::Time;

/// A session that has had no step for so long does not shorten the passes of others: who decodes
/// sends the next step within a round trip round the ring, and a reader's next question is a prompt.
const DECODES_WITHIN: Duration = Duration::from_secs(10);

impl Server {
    /// Puts a step into the queue.
    pub(super) fn enqueue(
        &mut self,
        step: Step,
        now: Time,
    ) -> Result<(), (SessionId, StepId, Refusal)> {
        let session = step.session;
        let Some(served) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        served.last_used = now;
        let waiting = self.schedule.waiting(session, step.position);
        let end = schedule::check(&step, served, self.config.hidden_size, waiting)
            .map_err(|refusal| (session, step.step, refusal))?;
        served.received = end;
        if let Some(thin) = &mut served.thin {
            thin.entered(step.step);
        }
        served.awaits_refill = false;
        if !step.replay {
            served.latest = served.latest.max(Some(step.step));
        }
        self.schedule.push(served.client, served.blocks, step, now);
        Ok(())
    }

    /// Whether several sessions have been at work of late, so that a pass may serve some together.
    #[must_use]
    pub fn is_shared(&self, now: Time) -> bool {
        let in_use = self.sessions.values();
        let in_use = in_use.filter(|served| now.since(served.last_used) < DECODES_WITHIN);
        in_use.take(2).count() > 1
    }

    /// Begins the next pass, if the engine is free: with every step that the server has been told of, so
    /// it is told of all that have come first.
    pub fn begin_pass(&mut self, now: Time) {
        if let Some(mut batch) = self.schedule.start(self.is_shared(now), now) {
            self.order_pages();
            let begins: Vec<_> = batch.jobs.iter().map(|job| (job.session, job.position)).collect();
            for job in &mut batch.jobs {
                job.draw = self.draw_job(job);
            }
            for (session, position) in begins {
                self.cut_pages(session, position, now);
            }
            // The pass may need the room of what is given up. What it only lets go of counts behind it.
            let drops = self.pages.drops();
            if !drops.is_empty() {
                self.outputs.push_back(Output::Pages(drops));
            }
            self.outputs.push_back(Output::Compute(batch));
        }
        if !self.schedule.is_running() {
            self.order_pages();
        }
    }

    /// Hands on what a pass has come to. What has failed ends its own session, and no other.
    pub(super) fn computed(
        &mut self,
        job: JobId,
        results: Vec<Result<Tensor, ComputeFailure>>,
        compute: Duration,
        now: Time,
    ) {
        for finished in self.schedule.finish(job, results, compute, now) {
            match finished {
                Finished::Step { step, end, received, queue, compute } => {
                    let hop = now.since(received);
                    self.step_computed(step, end, (queue, compute, hop), now);
                }
                Finished::Part { session, position } => {
                    let served = self.sessions.get_mut(&session).expect("a step of it was running");
                    served.last_used = now;
                    served.computed = position;
                }
                Finished::Failed { session, step, failure } => {
                    self.fail(session, Some(step), failure.into(), now);
                }
            }
        }
    }

    fn step_computed(
        &mut self,
        mut step: Step,
        end: u32,
        (queue, compute, hop): (Duration, Duration, Duration),
        now: Time,
    ) {
        let served = self.sessions.get_mut(&step.session).expect("a step of it was running");
        served.last_used = now;
        if !step.replay {
            let (peer, span) = (self.config.peer, served.blocks);
            step.trace.push(HopTiming { peer, span, queue, compute, hop, link_round_trip: None });
        }
        if served.draws() {
            self.drawn(step, end, now);
        } else {
            self.deliver(step);
        }
    }
}
