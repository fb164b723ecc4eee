//! From words to a world.

use std::time::Duration;

use umbel_coordinator::Time;
use umbel_coordinator::random::Random;
use umbel_coordinator::server::ServerConfig;
use umbel_protocol::{ModelId, PeerId, Span};

use super::{Clients, Failing, Kind, Network, Scenario, ScenarioError, Servers};
use crate::host::Speed;
use crate::link::LinkClass;
use crate::oracle::{HIDDEN_SIZE, TOKEN_BYTES, VOCABULARY};
use crate::seed::Seed;
use crate::workload::{Between, Workload};
use crate::world::{Fault, Planner, Settings, Topology, World};

/// How long a client takes to find a route: it has the announcements, and dials.
const LOOKUP: Duration = Duration::from_millis(1);

/// Most events of a scenario: an hour of a thousand servers has a tenth of it.
const EVENTS_MAX: u64 = 2_000_000_000;

/// The longest session that is asked for.
const CONTEXT_TOKENS: u32 = 4_096;

/// Clients begin when servers have announced themselves.
const ANNOUNCED: Duration = Duration::from_secs(1);

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let networks = || self.links.iter().map(|link| &link.network).chain([&self.network]);
        let lasts = |minutes: f64| (0.0..=100_000.0).contains(&minutes);
        let likely = |chance: f64| (0.0..=1.0).contains(&chance);
        let context = |of: &Clients| {
            of.prompt[1].saturating_add(of.answer[1]).saturating_add(16) <= CONTEXT_TOKENS
        };
        let rules = [
            (self.model.blocks > 0, "model.blocks", "at least 1"),
            (self.model.token_bytes >= 1, "model.token_bytes", "at least 1"),
            (lasts(self.phases.faults_minutes), "phases.faults_minutes", "from 0 to 100000"),
            (lasts(self.phases.quiet_minutes), "phases.quiet_minutes", "from 0 to 100000"),
            (networks().all(|n| n.mbit_per_second > 0.0), "mbit_per_second", "above 0"),
            (networks().all(|n| lasts(n.delay_ms)), "delay_ms", "from 0 to 100000"),
            (networks().all(|n| lasts(n.jitter_ms)), "jitter_ms", "from 0 to 100000"),
            (networks().all(|n| likely(n.loss)), "loss", "from 0 to 1"),
            (
                self.servers.iter().all(|s| (1..=self.model.blocks).contains(&s.blocks)),
                "servers.blocks",
                "from 1 to model.blocks",
            ),
            (
                self.servers.iter().all(|s| lasts(s.block_ms) && lasts(s.token_ms)),
                "servers.block_ms and token_ms",
                "from 0 to 100000",
            ),
            (self.clients.iter().all(|c| c.prompt[0] > 0), "clients.prompt", "at least 1"),
            (self.clients.iter().all(context), "clients.prompt and answer", "below 4080 together"),
            (self.clients.iter().all(|c| likely(c.rollback)), "clients.rollback", "from 0 to 1"),
            (self.clients.iter().all(|c| lasts(c.arrival_seconds)), "arrival_seconds", "0 or more"),
            (
                self.clients.iter().all(|c| c.pause_seconds.into_iter().all(lasts)),
                "clients.pause_seconds",
                "0 or more",
            ),
            (self.faults.iter().all(|f| likely(f.share)), "faults.share", "from 0 to 1"),
            (self.faults.iter().all(|f| f.every_minutes > 0.0), "faults.every_minutes", "above 0"),
            (
                self.faults.iter().all(|f| f.for_seconds.into_iter().all(lasts)),
                "faults.for_seconds",
                "0 or more",
            ),
            (
                self.partitions.iter().all(|p| lasts(p.at_minutes) && lasts(p.seconds)),
                "partitions",
                "0 or more",
            ),
        ];
        match rules.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, field, must)) => Err(ScenarioError::Value { field, must }),
            None => Ok(()),
        }
    }

    /// The world of this scenario and a seed, before anything has happened in it.
    ///
    /// # Errors
    /// [`ScenarioError`] where it speaks of groups that there are not.
    pub fn build(&self, seed: Seed) -> Result<World, ScenarioError> {
        let settings = Settings {
            token_bytes: self.model.token_bytes,
            topology: self.topology()?,
            planner: Planner::Announced,
            lookup: LOOKUP,
            events_max: EVENTS_MAX,
            ..Settings::new(model(), self.model.blocks, self.network.class(true))
        };
        let mut world = World::new(seed, settings);
        for servers in &self.servers {
            let group = self.group(&servers.group)?;
            for number in 0..servers.count {
                let config = self.server(world.hosts.len(), number, servers);
                world.serve(config, servers.speed(), group);
            }
        }
        let mut random = seed.stream("arrivals");
        for clients in &self.clients {
            let group = self.group(&clients.group)?;
            let workload = self.workload(clients);
            for _ in 0..clients.count {
                let after = seconds(clients.arrival_seconds).mul_f64(random.unit());
                world.work(Time::after_start(ANNOUNCED + after), workload.clone(), group);
            }
        }
        self.plan_faults(&mut world, seed)?;
        Ok(world)
    }

    fn topology(&self) -> Result<Topology, ScenarioError> {
        let mut topology = Topology::new(self.network.class(true));
        for link in &self.links {
            let (from, to) = (self.group(&link.from)?, self.group(&link.to)?);
            topology.between.insert((to, from), link.network.class(link.dialable_back));
            topology.between.insert((from, to), link.network.class(link.dialable));
        }
        Ok(topology)
    }

    /// The number of a group: the first place where it is named.
    fn group(&self, name: &str) -> Result<usize, ScenarioError> {
        let servers = self.servers.iter().map(|of| &of.group);
        let mut names = servers.chain(self.clients.iter().map(|of| &of.group));
        names
            .position(|of| of == name)
            .ok_or_else(|| ScenarioError::UnknownGroup { group: name.to_owned() })
    }

    /// The servers of a group stand side by side over the blocks, round after round.
    fn server(&self, index: usize, number: usize, of: &Servers) -> ServerConfig {
        let rounds = self.model.blocks.div_ceil(of.blocks) as usize;
        let slot = u32::try_from(number % rounds).expect("fewer than blocks");
        let start = (slot * of.blocks).min(self.model.blocks - of.blocks);
        let mut key = [0x5e; 32];
        key[..8].copy_from_slice(&(index as u64).to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "saturates, and bytes are whole")]
        #[expect(clippy::cast_sign_loss, reason = "saturates at none")]
        #[expect(clippy::cast_precision_loss, reason = "a few thousand bytes")]
        let journal_bytes_max =
            (of.journal_mib * 1_048_576.0 / self.model.token_bytes as f64) as usize * TOKEN_BYTES;
        ServerConfig {
            peer: PeerId::from_public_key(key),
            model: model(),
            span: Span::new(start, start + of.blocks).expect("servers have blocks"),
            block_count: self.model.blocks,
            vocabulary_size: Some(VOCABULARY),
            hidden_size: HIDDEN_SIZE,
            head_size: 32,
            context_tokens: CONTEXT_TOKENS,
            kv_tokens_max: of.kv_tokens,
            cache: None,
            journal_bytes_max,
            keeps_pages: true,
            adapters: None,
        }
    }

    fn workload(&self, of: &Clients) -> Workload {
        let phases = &self.phases;
        Workload {
            until: Time::after_start(minutes(phases.faults_minutes + phases.quiet_minutes)),
            sessions: of.sessions.unwrap_or(u32::MAX),
            prompt: Between(of.prompt[0], of.prompt[1]),
            answer: Between(of.answer[0], of.answer[1]),
            rollback: of.rollback,
            pause: Between(seconds(of.pause_seconds[0]), seconds(of.pause_seconds[1])),
            standby: of.standby,
        }
    }

    fn plan_faults(&self, world: &mut World, seed: Seed) -> Result<(), ScenarioError> {
        let mut random = seed.stream("faults");
        let end = minutes(self.phases.faults_minutes);
        for failing in &self.faults {
            let group = failing.group.as_ref().map(|name| self.group(name)).transpose()?;
            let mut period = Duration::ZERO;
            while period < end {
                for server in 0..world.hosts.len() {
                    let other = group.is_some_and(|group| world.hosts[server].group != group);
                    if other || random.unit() >= failing.share {
                        continue;
                    }
                    let at = period + minutes(failing.every_minutes).mul_f64(random.unit());
                    if at < end {
                        plan_fault(world, failing, server, at, &mut random);
                    }
                }
                period += minutes(failing.every_minutes);
            }
        }
        for partition in &self.partitions {
            let [a, b] = &partition.between;
            let (a, b) = (self.group(a)?, self.group(b)?);
            let at = Time::after_start(minutes(partition.at_minutes));
            world.plan(at, Fault::Part { a, b, until: at + seconds(partition.seconds) });
        }
        Ok(())
    }
}

/// Plans a fault and its end.
fn plan_fault(
    world: &mut World,
    failing: &Failing,
    server: usize,
    at: Duration,
    random: &mut Random,
) {
    let lasts = Between(seconds(failing.for_seconds[0]), seconds(failing.for_seconds[1]));
    let (at, end) = (Time::after_start(at), Time::after_start(at + lasts.draw(random)));
    let (fault, undo) = match failing.kind {
        Kind::Crash => (Fault::Crash { server, noticed: true }, Fault::Restart { server }),
        Kind::Silence => (Fault::Crash { server, noticed: false }, Fault::Restart { server }),
        Kind::Freeze => (Fault::Freeze { server }, Fault::Thaw { server }),
        Kind::Slow => {
            (Fault::Slow { server, factor: failing.factor }, Fault::Slow { server, factor: 1 })
        }
        Kind::Leave => (Fault::Leave { server }, Fault::Restart { server }),
        Kind::Restart => (Fault::Restart { server }, Fault::Thaw { server }),
        Kind::Lie => (Fault::Lie { server }, Fault::Restart { server }),
    };
    world.plan(at, fault);
    world.plan(end, undo);
}

impl Network {
    fn class(&self, dialable: bool) -> LinkClass {
        let class = LinkClass::new(
            seconds(self.delay_ms / 1e3),
            seconds(self.jitter_ms / 1e3),
            self.mbit_per_second * 1e6 / 8.0,
        );
        let buffer_bytes = self.buffer_kib.map_or(f64::INFINITY, |kib| kib * 1_024.0);
        LinkClass { loss: self.loss, buffer_bytes, dialable, ..class }
    }
}

impl Servers {
    fn speed(&self) -> Speed {
        Speed::new(seconds(self.block_ms / 1e3), seconds(self.token_ms / 1e3))
    }
}

const fn model() -> ModelId {
    ModelId::from_bytes([5; 32])
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn minutes(minutes: f64) -> Duration {
    Duration::from_secs_f64(minutes * 60.0)
}
