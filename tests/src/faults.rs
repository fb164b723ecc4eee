//! A swarm of real processes with two servers for each block, in which servers are killed and
//! frozen while it answers.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::task::JoinHandle;
use umbel_client::{Chain, ClientModel, Drafts, Generation, Speculate, Swarm, SwarmConfig};
use umbel_coordinator::random::Random;
use umbel_protocol::announcement::Announcement;

use crate::shape::ShapedNetwork;
use crate::swarm::{Server, serve, serve_behind};
use crate::workload::{Workload, ask, client_model, undisturbed};

/// How long one answer may take, on a machine that does other things as well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(240);

/// How long it takes at most until a server that was started is known to the others.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// What is done to the servers of a route while it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The first, a middle or the last hop is killed between two tokens.
    Kill(Place),
    /// The first and the last hop are killed at once.
    KillTwo,
    /// A hop is killed while the prompt is computed.
    KillDuringPrefill(Place),
    /// A hop stands still.
    Freeze(Place),
    /// Nothing passes to a hop or from it, on links that are shaped; it lives on.
    CutOff(Place),
}

/// A hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The one that the client feeds.
    First,
    /// One between two others.
    Middle,
    /// The one that answers.
    Last,
}

impl Fault {
    /// The fault of a run: all kinds come up in turn.
    #[must_use]
    pub const fn of_run(number: u64) -> Self {
        let place = match number / 4 % 3 {
            0 => Place::First,
            1 => Place::Middle,
            _ => Place::Last,
        };
        match number % 4 {
            0 => Self::Kill(place),
            1 => Self::KillTwo,
            2 => Self::KillDuringPrefill(place),
            _ => Self::Freeze(place),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(place) => write!(f, "kill {place:?}"),
            Self::KillTwo => f.write_str("kill two"),
            Self::KillDuringPrefill(place) => write!(f, "kill {place:?} in prefill"),
            Self::Freeze(place) => write!(f, "freeze {place:?}"),
            Self::CutOff(place) => write!(f, "cut off {place:?}"),
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The prompt and the answer.
    pub tokens: Vec<u32>,
    /// The longest wait for a token after the fault.
    pub gap: Duration,
    /// How long after the fault the first failure was noticed; zero for faults during the prefill,
    /// whose moment is drawn.
    pub noticed: Duration,
    /// The usual wait for a token.
    pub usual: Duration,
    /// Hops that lost their places.
    pub failures: usize,
    /// What came of guessing.
    pub drafts: Drafts,
}

/// A swarm with two servers for each span.
pub struct Replicated {
    model: Arc<ClientModel>,
    name: String,
    spans: Vec<String>,
    servers: Vec<Server>,
    extra: Vec<String>,
    /// What lies between the servers, if their links are shaped.
    network: Option<ShapedNetwork>,
    /// How tokens are guessed.
    speculate: Speculate,
}

impl Replicated {
    /// Starts two servers for each of these spans of a model.
    ///
    /// # Errors
    /// Where the model cannot be opened.
    pub async fn start(name: &str, spans: &[&str]) -> anyhow::Result<Self> {
        Self::start_on(None, name, spans).await
    }

    /// The same, with links as the network shapes them.
    ///
    /// # Errors
    /// As [`Replicated::start`].
    pub async fn start_on(
        network: impl Into<Option<ShapedNetwork>>,
        name: &str,
        spans: &[&str],
    ) -> anyhow::Result<Self> {
        let owned = name.to_owned();
        let mut swarm = Self {
            model: tokio::task::spawn_blocking(move || client_model(&owned)).await??,
            name: name.to_owned(),
            spans: spans.iter().map(|span| (*span).to_owned()).collect(),
            servers: Vec::new(),
            extra: vec!["--kv-tokens".to_owned(), "4096".to_owned()],
            network: network.into(),
            speculate: Speculate::Off,
        };
        swarm.restore().await?;
        Ok(swarm)
    }

    /// Answers come by guessing from now on; what one process answers does not.
    pub fn speculate(&mut self, speculate: Speculate) {
        self.speculate = speculate;
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Arc<ClientModel> {
        &self.model
    }

    /// The servers that run.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Takes out the server that has run longest.
    pub fn remove_oldest(&mut self) -> Server {
        self.servers.remove(0)
    }

    /// What one process answers.
    ///
    /// # Errors
    /// Where it cannot.
    pub async fn undisturbed(&self, workload: &Workload) -> anyhow::Result<Vec<u32>> {
        undisturbed(&self.model, workload).await
    }

    /// Lets the swarm answer, and does something to it meanwhile.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn run(
        &mut self,
        workload: &Workload,
        fault: Fault,
        random: &mut Random,
    ) -> anyhow::Result<Outcome> {
        let mut frozen = Vec::new();
        let outcome = tokio::time::timeout(
            ANSWER_TIMEOUT,
            self.disturbed(workload, fault, random, &mut frozen),
        );
        let outcome = outcome.await;
        for address in &frozen {
            let server = self.servers.iter_mut().find(|server| server.address() == address);
            let server = server.context("a frozen server is there")?;
            server.thaw();
            if let Some(front) = server.front() {
                front.heal();
            }
        }
        outcome.context("the answer did not end in time")?
    }

    async fn disturbed(
        &mut self,
        workload: &Workload,
        fault: Fault,
        random: &mut Random,
        frozen: &mut Vec<String>,
    ) -> anyhow::Result<Outcome> {
        let mut generation = self.begin(workload).await?;
        if let Fault::KillDuringPrefill(place) = fault {
            let doomed = self.index_of(&generation, place)?;
            let delay = Duration::from_millis(30 + random.below(400) as u64);
            let server = self.servers.remove(doomed);
            // The moment is drawn, and the prompt is under way meanwhile.
            let moment = tokio::time::Instant::now() + delay;
            let killing = tokio::spawn(async move {
                tokio::time::interval_at(moment, delay).tick().await;
                tokio::task::spawn_blocking(move || server.kill()).await
            });
            generation.next().await?.context("there is a first token")?;
            killing.await??;
        } else {
            generation.next().await?.context("there is a first token")?;
        }
        let before = 2 + random.below((workload.tokens / 3) as usize);
        let mut waits = Vec::new();
        for _ in 0..before {
            waits.push(wait_for_token(&mut generation).await?.context("the answer goes on")?);
        }
        let noticing = notice(&generation);
        let killed = self.inflict(fault, &generation, frozen)?;
        // Killed from a thread of its own, so that the answer goes on meanwhile.
        let killing =
            tokio::task::spawn_blocking(move || killed.into_iter().for_each(Server::kill));
        let mut after = Vec::new();
        while let Some(wait) = wait_for_token(&mut generation).await? {
            after.push(wait);
        }
        killing.await?;
        let during_prefill = matches!(fault, Fault::KillDuringPrefill(_));
        // Where nothing failed, the number of failures says so.
        let noticed = if during_prefill || !noticing.is_finished() {
            Duration::ZERO
        } else {
            noticing.await?
        };
        waits.sort();
        let failures = match generation.chain() {
            Chain::Remote(chain) => chain.failures().len(),
            Chain::Local(_) => 0,
        };
        let (tokens, drafts) = (generation.tokens().to_vec(), generation.drafts());
        generation.into_chain().0.close().await;
        Ok(Outcome {
            drafts,
            tokens,
            gap: after.into_iter().max().unwrap_or_default(),
            noticed,
            usual: waits[waits.len() / 2],
            failures,
        })
    }

    /// Does it, and hands out the servers that are to be killed.
    fn inflict(
        &mut self,
        fault: Fault,
        generation: &Generation,
        frozen: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Server>> {
        let mut killed = Vec::new();
        match fault {
            Fault::Kill(place) => killed.push(self.take(generation, place)?),
            Fault::KillTwo => {
                killed.push(self.take(generation, Place::First)?);
                killed.push(self.take(generation, Place::Last)?);
            }
            Fault::KillDuringPrefill(_) => {}
            Fault::Freeze(place) => {
                let index = self.index_of(generation, place)?;
                self.servers[index].freeze();
                frozen.push(self.servers[index].address().to_owned());
            }
            Fault::CutOff(place) => {
                let index = self.index_of(generation, place)?;
                let server = &self.servers[index];
                server.front().context("its links are shaped")?.cut();
                frozen.push(server.address().to_owned());
            }
        }
        Ok(killed)
    }

    /// An answer that is about to begin.
    ///
    /// # Errors
    /// Where no session can be opened.
    pub async fn begin(&self, workload: &Workload) -> anyhow::Result<Generation> {
        let swarm = self.join().await?;
        ask(swarm, &self.model, workload, &self.speculate).await
    }

    /// A client of its own.
    ///
    /// # Errors
    /// Where no server lets it in.
    pub async fn join(&self) -> anyhow::Result<Arc<Swarm>> {
        let addresses = self.servers.iter().map(|server| server.address().parse());
        let join = addresses.collect::<Result<_, _>>()?;
        Ok(Arc::new(Swarm::join(SwarmConfig { join, ..SwarmConfig::default() }).await?))
    }

    /// Starts servers in the place of those that are gone, and waits until all are known.
    ///
    /// # Errors
    /// Where they do not become known to each other in time.
    pub async fn restore(&mut self) -> anyhow::Result<()> {
        for span in &self.spans.clone() {
            while self.servers.iter().filter(|server| server.tag() == span).count() < 2 {
                let mut arguments = vec![self.name.as_str(), "--blocks", span];
                arguments.extend(self.extra.iter().map(String::as_str));
                for server in &self.servers {
                    arguments.extend(["--join", server.address()]);
                }
                let mut server = match &self.network {
                    Some(network) => {
                        let front = network.front().await?;
                        let [quic, tcp] = front.addresses();
                        serve_behind(front, &[&quic, &tcp], &arguments)
                    }
                    None => serve(&arguments),
                };
                server.set_tag(span);
                self.servers.push(server);
            }
        }
        self.await_all().await
    }

    /// Restarts the server that has run longest, politely, and waits until all are known.
    ///
    /// # Errors
    /// As [`Replicated::restore`].
    pub async fn restart_oldest(&mut self) -> anyhow::Result<()> {
        let oldest = self.servers.remove(0);
        let others: Vec<_> =
            self.servers.iter().map(|server| server.address().to_owned()).collect();
        let restart = move || {
            let join: Vec<_> = others.iter().flat_map(|other| ["--join", other]).collect();
            oldest.restart(&join)
        };
        self.servers.push(tokio::task::spawn_blocking(restart).await?);
        self.await_all().await
    }

    /// Waits until all servers are known.
    async fn await_all(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + KNOWN_TIMEOUT;
        let mut looks = tokio::time::interval(Duration::from_millis(200));
        let wanted = 2 * self.spans.len();
        loop {
            let swarm = self.join().await?;
            let known = swarm.announcements(None).await;
            let here = |server: &Server| {
                let is = |known: &Announcement| server.address().ends_with(&known.peer.to_string());
                known.iter().any(|known| !known.draining && is(known))
            };
            if self.servers.iter().filter(|server| here(server)).count() == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("only {} of {wanted} servers are known", known.len());
            }
            looks.tick().await;
        }
    }

    fn take(&mut self, generation: &Generation, place: Place) -> anyhow::Result<Server> {
        let index = self.index_of(generation, place)?;
        Ok(self.servers.remove(index))
    }

    fn index_of(&self, generation: &Generation, place: Place) -> anyhow::Result<usize> {
        let route = generation.chain().route();
        let hop = match place {
            Place::First => route.first(),
            Place::Middle => route.get(route.len() / 2),
            Place::Last => route.last(),
        };
        let peer = hop.and_then(|(peer, _)| *peer).context("a hop of a remote route")?;
        let peer = peer.to_string();
        let index = self.servers.iter().position(|server| server.address().ends_with(&peer));
        index.context("every hop is a server of this swarm")
    }
}

/// How long it takes from now on until a failure is noticed.
fn notice(generation: &Generation) -> JoinHandle<Duration> {
    let begun = Instant::now();
    let failures = match generation.chain() {
        Chain::Remote(chain) => Some(chain.watch_failures()),
        Chain::Local(_) => None,
    };
    tokio::spawn(async move {
        if let Some(mut failures) = failures {
            // An error is the end of the session.
            let _over = failures.changed().await;
        }
        begun.elapsed()
    })
}

async fn wait_for_token(generation: &mut Generation) -> anyhow::Result<Option<Duration>> {
    let begun = Instant::now();
    Ok(generation.next().await?.map(|_| begun.elapsed()))
}
