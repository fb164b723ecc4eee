//! Trainers who share a run: the body of [`umbel_coordinator::training::round`].
//!
//! A task of its own carries what members say, beside the steps of the trainer, which hands on what it has
//! learned and takes up a new state [between two of them](Together::between_steps).

mod directory;
mod links;
mod task;
mod words;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use umbel_coordinator::training::round::{Input, RunSettings, RunState};
use umbel_net::{Identity, LinkProtocol, Multiaddr, Network, NetworkConfig, Role, SwarmKey};
use umbel_protocol::ModelId;
use umbel_protocol::averaging::{RUN_VALUES_MAX, Stand};
use umbel_protocol::training::AdapterSettings;

use super::{TrainError, Trainer};
use crate::swarm::enter::{EnterError, Entered, enter};
pub use directory::{InvalidRunName, RunName};
use task::Task;

/// How long a trainer that joins waits for a state before it gives up: a round may be under way, and a
/// state of 64 MiB takes a minute at a megabyte a second.
const STATE_TIMEOUT: Duration = Duration::from_secs(300);

/// What the task is told of one trainer: one answer to each question, and that is one a round.
const TOLD_WAITING_MAX: usize = 4;

/// How a trainer takes part in a run.
#[derive(Debug, Clone)]
pub struct TogetherSettings {
    /// Where it listens.
    pub listen: Vec<Multiaddr>,
    /// Members that it joins; without one, and without a run's name to join, it begins a run that others may
    /// join.
    pub with: Vec<Multiaddr>,
    /// The name under which others find the run, or by which this trainer does.
    pub named: Option<NamedRun>,
    /// The secret of a private swarm, if the run is one.
    pub swarm_key: Option<SwarmKey>,
    /// What all members agree on.
    pub run: RunSettings,
}

/// A run by its name, in the hash table of a swarm. Runs of different models have different names.
#[derive(Debug, Clone)]
pub struct NamedRun {
    /// What people call it.
    pub name: RunName,
    /// Whether it is there already and to be joined, or to be begun.
    pub joins: bool,
    /// Peers of the swarm.
    pub meet: Vec<Multiaddr>,
}

/// A round that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundBegun {
    /// The state with which it began.
    pub stand: Stand,
    /// Members that were there, this one among them.
    pub members: usize,
}

/// A trainer's part in a run.
pub struct Together {
    network: Network,
    tell: mpsc::Sender<Input>,
    asked: Arc<Asked>,
    /// What carries the words of members, which ends with this.
    task: JoinSet<()>,
}

/// What the machine has asked the trainer for. Of a state only the last counts.
#[derive(Default)]
struct Asked {
    wanted: Mutex<Wanted>,
    changed: Notify,
}

#[derive(Default)]
struct Wanted {
    /// Go on from this state, with so many members.
    begin: Option<(Arc<RunState>, usize)>,
    /// Say what was learned in this round.
    learned: Option<u64>,
    /// Every member that was named is in another run.
    refused: bool,
}

impl Asked {
    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take(&self) -> Wanted {
        std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Together {
    /// Begins a run with the trainer's adapter, or joins one and takes its state over.
    ///
    /// # Errors
    /// [`TogetherError`] where the network cannot be started, the adapter cannot begin, no member can be reached, or none of them has
    /// sent a state in time.
    pub async fn start(
        settings: TogetherSettings,
        model: ModelId,
        trainer: &mut Trainer,
    ) -> Result<Self, TogetherError> {
        trainer.begin().await?;
        let values = trainer.values();
        if values.len() > RUN_VALUES_MAX {
            return Err(TogetherError::TooLarge { values: values.len() });
        }
        let adapter = AdapterSettings::from(trainer.adapter().config());
        let what = format!("{model} {adapter:?} {}", values.len());
        let name = settings.run.name(what.as_bytes());
        let config = NetworkConfig {
            listen: settings.listen,
            swarm_key: settings.swarm_key,
            ..NetworkConfig::new(Identity::ephemeral(), Role::Client)
        };
        let meet = settings.named.iter().flat_map(|named| &named.meet).cloned();
        // A failure to reach a member is not to be mended by a peer of the swarm that is there.
        let entered = enter(config, &settings.with, LinkProtocol::Averaging).await?;
        let Entered { network, incoming, mut met } = entered;
        if let Some(named) = &settings.named {
            network.join(&meet.collect::<Vec<_>>()).await.map_err(EnterError::from)?;
            met.extend(directory::find(&network, named, model).await?);
        }
        let joins = !met.is_empty();
        let state = if joins { None } else { RunState::begin(values) };
        let (tell, told) = mpsc::channel(TOLD_WAITING_MAX);
        let asked = Arc::new(Asked::default());
        let carrier = Task::new(network.clone(), name, (settings.run, state), Arc::clone(&asked));
        let mut task = JoinSet::new();
        task.spawn(carrier.run(incoming, met, told));
        let together = Self { network, tell, asked, task };
        if let Some(named) = &settings.named {
            together.network.provide(named.name.key(model)).await;
        }
        if joins {
            let taken_up = together.first_state(trainer);
            let waited = tokio::time::timeout(STATE_TIMEOUT, taken_up).await;
            waited.unwrap_or(Err(TogetherError::NoState { after: STATE_TIMEOUT }))?;
        }
        Ok(together)
    }

    /// Waits for the run's state, and takes it up.
    async fn first_state(&self, trainer: &mut Trainer) -> Result<(), TogetherError> {
        loop {
            let wanted = self.asked.take();
            if wanted.refused {
                return Err(TogetherError::Refused);
            }
            if self.take_up(wanted, trainer).await?.is_some() {
                return Ok(());
            }
            self.asked.changed.notified().await;
        }
    }

    /// Where others join.
    #[must_use]
    pub fn address(&self) -> Multiaddr {
        self.network.preferred_address()
    }

    /// Hands on what was learned, where it is time for that, and takes a new state up, where there is one.
    ///
    /// # Errors
    /// [`TrainError`] where the servers of the blocks cannot take the state up.
    pub async fn between_steps(
        &self,
        trainer: &mut Trainer,
    ) -> Result<Option<RoundBegun>, TrainError> {
        self.take_up(self.asked.take(), trainer).await
    }

    async fn take_up(
        &self,
        wanted: Wanted,
        trainer: &mut Trainer,
    ) -> Result<Option<RoundBegun>, TrainError> {
        let Wanted { begin, learned, refused: _ } = wanted;
        let Some((state, members)) = begin else {
            if let Some(round) = learned {
                let told = self.tell.send(Input::Learned { round, values: trainer.values() });
                // Where the task has ended, there is nobody any more to learn together with.
                let _alone = told.await;
            }
            return Ok(None);
        };
        trainer.adopt(state.values()).await?;
        if learned.is_some() {
            // Nothing was learned from this state yet: what comes of the next step is told.
            self.asked.change(|wanted| {
                if wanted.begin.is_none() {
                    wanted.learned = wanted.learned.or(learned);
                }
            });
        }
        Ok(Some(RoundBegun { stand: state.stand(), members }))
    }

    /// Leaves the run: the others go on.
    pub async fn leave(mut self) {
        self.task.abort_all();
        self.network.shutdown().await;
    }
}

/// No part in a run.
#[derive(Debug, thiserror::Error)]
pub enum TogetherError {
    /// The network could not be started, or no member answers.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// No run of this name is known to the swarm.
    #[error(
        "nobody in the swarm is in a run called {name} for this model: `umbel train --together {name}` begins \
         one"
    )]
    NoRun {
        /// What it is called.
        name: RunName,
    },
    /// There is a run of this name.
    #[error(
        "there is a run called {name} for this model: join it by --with {name}, or choose another name"
    )]
    Taken {
        /// What it is called.
        name: RunName,
    },
    /// A message holds fewer values.
    #[error(
        "the adapter has {values} values, and a run has {RUN_VALUES_MAX} at most: a lower rank or fewer \
             target modules have fewer"
    )]
    TooLarge {
        /// How many there are.
        values: usize,
    },
    /// They are in another run.
    #[error(
        "the trainers that were named are in another run: they train another model, another adapter or in \
             rounds of another length"
    )]
    Refused,
    /// Nobody has sent a state.
    #[error("no member has sent the run's state within {} s", after.as_secs())]
    NoState {
        /// How long it was waited for.
        after: Duration,
    },
    /// The state could not be taken up.
    #[error(transparent)]
    Train(#[from] TrainError),
}

#[cfg(test)]
mod tests;
