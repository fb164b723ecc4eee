//! What is sent to which server next.

use std::ops::Range;

use umbel_protocol::training::{ForwardMicrobatch, TrainerMessage};

use super::super::hop::{PIPELINED, parts, read};
use super::{Conductor, Stage, Way};

/// Microbatches that a route has under way, beside one for each of its servers: one at the model's end,
/// and one on the links.
const BESIDE_SERVERS: usize = 2;

/// Something that a server is asked for, by the place of the microbatch among all.
#[derive(Debug, Clone)]
pub(super) enum Job {
    Forward(usize),
    Backward(usize),
    /// A part of the row of all gradients; those of the server begin at `start`.
    Read {
        at: usize,
        part: Range<u64>,
        start: u64,
        is_last: bool,
    },
}

impl Conductor<'_> {
    /// Microbatches go along other routes where theirs is gone.
    pub(super) fn forget_routes(&mut self) {
        for microbatch in self.microbatches.iter_mut() {
            let is_there = |route: &usize| self.stages.iter().any(|stage| stage.route == *route);
            microbatch.route = microbatch.route.filter(is_there);
        }
    }

    /// Gives routes that have room for another microbatch the next ones, the emptiest route first. Where
    /// gradients are added here, fast routes do not run ahead of a slow one by more than all have under way:
    /// what they bring back takes as much as the adapter for each microbatch until it can be added.
    pub(super) fn assign(&mut self) {
        if self.stops() {
            return;
        }
        while let Some(next) = self.microbatches.iter().position(|of| of.route.is_none()) {
            if matches!(&self.way, Way::Apart(sum) if next >= sum.added() + self.under_way_max()) {
                return;
            }
            let firsts = self.stages.iter().filter(|stage| stage.place == 0);
            let loads = firsts.map(|first| {
                let of_route = |index: &usize| self.microbatches[*index].route == Some(first.route);
                let under_way = (0..self.microbatches.len())
                    .filter(|index| of_route(index) && !self.is_complete(*index));
                let servers = self.stages.iter().filter(|stage| stage.route == first.route);
                (under_way.count(), servers.count() + BESIDE_SERVERS, first.route)
            });
            let with_room = loads.filter(|(load, max, _)| load < max);
            let Some((.., route)) = with_room.min_by_key(|&(load, ..)| load) else { return };
            self.microbatches[next].route = Some(route);
        }
    }

    /// Microbatches that all routes together have under way.
    fn under_way_max(&self) -> usize {
        let routes = self.stages.iter().filter(|stage| stage.place == 0).count();
        self.stages.len() + routes * BESIDE_SERVERS
    }

    /// Sends one message to a server that has room for it; whether there was any.
    pub(super) fn send_next(&mut self) -> bool {
        let stops = self.stops();
        for index in 0..self.stages.len() {
            let stage = &mut self.stages[index];
            if stage.failed || stage.under_way.len() >= PIPELINED {
                continue;
            }
            let behind = stage.behind.pop_front();
            let next = behind.or_else(|| if stops { None } else { self.choose(index) });
            if let Some(job) = next {
                self.send(index, job);
                return true;
            }
        }
        false
    }

    /// The next microbatch to bring back through a server, or to take forward: the first of those that
    /// have come so far.
    ///
    /// Along one route they come in their order, in which a server adds their gradients. Those of a route
    /// that was given up follow later ones along another. These go on as they come, since a server may
    /// have room for an earlier one only once it has brought them back.
    fn choose(&self, index: usize) -> Option<Job> {
        let stage = &self.stages[index];
        let [forward, back] = &stage.sent;
        let mine = || {
            let of_route = |at: &usize| self.microbatches[*at].route == Some(stage.route);
            (0..self.microbatches.len()).filter(of_route)
        };
        if !matches!(self.way, Way::Forward) {
            let comes_back = |at: &usize| {
                let microbatch = &self.microbatches[*at];
                stage.progress.forwarded.contains(&microbatch.number)
                    && microbatch.gradients.contains_key(&stage.blocks.end())
            };
            let lacks_back = |at: &usize| !back.contains(at) && !self.is_done(stage, *at);
            if let Some(at) = mine().find(|at| comes_back(at) && lacks_back(at)) {
                return Some(Job::Backward(at));
            }
        }
        let enters =
            |at: &usize| self.microbatches[*at].entering.contains_key(&stage.blocks.start());
        let lacks_forward = |at: &usize| !forward.contains(at) && self.lacks_forward(stage, *at);
        let at = mine().find(|at| enters(at) && lacks_forward(at))?;
        let tokens = |at: usize| u64::from(self.microbatches[at].tokens());
        let is_kept = |at: &usize| {
            let number = self.microbatches[*at].number;
            let was_sent = forward.contains(at) || stage.progress.forwarded.contains(&number);
            was_sent && !back.contains(at) && !stage.progress.done.contains(&number)
        };
        let kept: u64 = match self.way {
            Way::Forward => 0,
            Way::Together | Way::Apart(_) => {
                (0..self.microbatches.len()).filter(is_kept).map(tokens).sum()
            }
        };
        let has_room = kept + tokens(at) <= u64::from(stage.progress.tokens_max);
        has_room.then_some(Job::Forward(at))
    }

    fn send(&mut self, index: usize, job: Job) {
        let stage = &mut self.stages[index];
        let message = match &job {
            Job::Forward(at) => {
                stage.sent[0].insert(*at);
                let microbatch = &self.microbatches[*at];
                TrainerMessage::Forward(ForwardMicrobatch {
                    microbatch: microbatch.number,
                    sequences: microbatch.sequences.clone(),
                    evaluate: matches!(self.way, Way::Forward),
                    hidden: microbatch.entering[&stage.blocks.start()].to_wire(),
                })
            }
            Job::Backward(at) => {
                stage.sent[1].insert(*at);
                let microbatch = &self.microbatches[*at];
                let apart = match &self.way {
                    Way::Apart(sum) => {
                        // Before the gradients of another microbatch take their place.
                        let stretch = sum.stretch(stage.blocks);
                        let reads = parts(&stretch).map(|part| Job::Read {
                            at: *at,
                            is_last: part.end == stretch.end,
                            part,
                            start: stretch.start,
                        });
                        stage.behind.extend(reads);
                        true
                    }
                    Way::Together | Way::Forward => false,
                };
                TrainerMessage::Backward {
                    microbatch: microbatch.number,
                    gradient: microbatch.gradients[&stage.blocks.end()].to_wire(),
                    apart,
                }
            }
            Job::Read { part, start, .. } => read(part, *start),
        };
        stage.under_way.push_back(job);
        // Where nobody takes it the link has failed, of which there is an event to come.
        let _failed = stage.jobs.try_send(message);
    }

    /// Whether nothing of a microbatch is missing.
    pub(super) fn is_complete(&self, at: usize) -> bool {
        let microbatch = &self.microbatches[at];
        let mut mine = self.stages.iter().filter(|stage| Some(stage.route) == microbatch.route);
        let passed = match self.way {
            Way::Forward => mine.all(|stage| !self.lacks_forward(stage, at)),
            Way::Together | Way::Apart(_) => mine.all(|stage| self.is_done(stage, at)),
        };
        passed && microbatch.route.is_some() && (microbatch.loss.is_some() || self.loss.is_none())
    }

    fn lacks_forward(&self, stage: &Stage<'_>, at: usize) -> bool {
        let microbatch = &self.microbatches[at];
        match self.way {
            Way::Forward => !microbatch.entering.contains_key(&stage.blocks.end()),
            Way::Together | Way::Apart(_) => {
                let is_there = stage.progress.forwarded.contains(&microbatch.number);
                !is_there && !self.is_done(stage, at)
            }
        }
    }

    /// Whether a microbatch has come back through a server, or through others that had its blocks. One
    /// that the server keeps has yet to come back, whoever had it before: it takes room there until then.
    fn is_done(&self, stage: &Stage<'_>, at: usize) -> bool {
        let microbatch = &self.microbatches[at];
        let was_elsewhere = match &self.way {
            Way::Apart(sum) => {
                !stage.progress.forwarded.contains(&microbatch.number)
                    && sum.covers(at, stage.blocks)
                    && microbatch.gradients.contains_key(&stage.blocks.start())
                    && microbatch.entering.contains_key(&stage.blocks.end())
            }
            Way::Together | Way::Forward => false,
        };
        was_elsewhere || stage.progress.done.contains(&microbatch.number)
    }
}

#[cfg(test)]
mod tests;
