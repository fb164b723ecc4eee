//! The task between the machine of the rounds, the links, the clock and the trainer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use umbel_coordinator::training::round::{
    Input, MEMBERS_MAX, Member, Output, RunSettings, RunState,
};
use umbel_net::{Incoming, Link, Network};
use umbel_protocol::PeerId;
use umbel_protocol::averaging::MemberMessage;

use super::Asked;
use super::links::{self, Event};
use super::words::Words;
use crate::clock::Clock;
use crate::swarm::exchange::multiaddrs;

/// Events that wait: readers wait when they are so many, and with them their members.
const EVENTS_WAITING_MAX: usize = 64;

/// How often members that cannot be reached are tried again, and those that are silent looked after.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often a member is tried in vain before it is forgotten; it may come back by itself.
const TRIES_MAX: u32 = 5;

/// How often a member closes a link at once before it is taken to be in another run: the first time it may
/// just have been about to end.
const REFUSED_MAX: u32 = 2;

/// What is known of another member.
#[derive(Default)]
struct Other {
    addresses: Vec<String>,
    /// What is to be said to it, once there is a link, and who says it.
    words: Option<(Arc<Words>, AbortHandle)>,
    /// A link to it is being opened.
    opening: bool,
    /// Lets what it says be read.
    read: Option<oneshot::Sender<()>>,
    tries: u32,
    /// The number of the link to it.
    link: u64,
    /// It has said that it is in this run.
    greeted: bool,
    /// How often it has closed a link without having said so.
    refused: u32,
}

pub(super) struct Task {
    network: Network,
    name: [u8; 32],
    member: Member,
    others: BTreeMap<PeerId, Other>,
    asked: Arc<Asked>,
    tell: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Readers and writers, which end with the task.
    carriers: JoinSet<()>,
    clock: Clock,
}

impl Task {
    pub(super) fn new(
        network: Network,
        name: [u8; 32],
        (settings, state): (RunSettings, Option<RunState>),
        asked: Arc<Asked>,
    ) -> Self {
        let (tell, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let clock = Clock::start();
        let member = Member::new(network.peer_id(), settings, state, clock.now());
        let (others, carriers) = (BTreeMap::new(), JoinSet::new());
        Self { network, name, member, others, asked, tell, events, carriers, clock }
    }

    /// Goes on until it is aborted.
    pub(super) async fn run(
        mut self,
        incoming: Incoming,
        with: Vec<PeerId>,
        mut told: mpsc::Receiver<Input>,
    ) {
        self.carriers.spawn(links::accept(incoming, self.name, self.tell.clone()));
        for peer in with {
            self.others.entry(peer).or_default();
        }
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            self.act();
            let deadline = self.member.poll_timeout();
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                Some(input) = told.recv() => self.member.handle(input, self.clock.now()),
                () = self.clock.wait_until(deadline) => {
                    self.member.handle_timeout(self.clock.now());
                }
                _ = looks.tick() => self.look(),
            }
            while self.carriers.try_join_next().is_some() {}
        }
    }

    /// Tries those to whom there is no link, and finds out who has ended without a word.
    fn look(&mut self) {
        self.others.retain(|_, other| other.words.is_some() || other.tries < TRIES_MAX);
        let peers: Vec<_> = self.others.keys().copied().collect();
        for peer in peers {
            self.network.probe(peer);
            self.open(peer);
        }
    }

    /// Opens a link to a member, unless there is one.
    fn open(&mut self, peer: PeerId) {
        let Some(other) = self.others.get_mut(&peer) else { return };
        if other.words.is_none() && !std::mem::replace(&mut other.opening, true) {
            other.tries += 1;
            let addresses = multiaddrs(&other.addresses);
            let opening = links::open(self.network.clone(), peer, addresses, self.tell.clone());
            self.carriers.spawn(opening);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Hello { peer, addresses, members, read } => {
                self.know(peer, addresses);
                for (peer, addresses) in members {
                    self.know(peer, addresses);
                }
                if let Some(other) = self.others.get_mut(&peer) {
                    (other.tries, other.greeted) = (0, true);
                    match other.words {
                        Some(_) => _ = read.send(()),
                        None => other.read = Some(read),
                    }
                }
                let peers: Vec<_> = self.others.keys().copied().collect();
                peers.into_iter().for_each(|peer| self.open(peer));
            }
            Event::Said { peer, message } => {
                self.member.handle(Input::Received { from: peer, message }, self.clock.now());
            }
            Event::Opened { peer, link } => self.opened(peer, *link),
            Event::Unreachable { peer } => {
                if let Some(other) = self.others.get_mut(&peer) {
                    other.opening = false;
                }
            }
            Event::Gone { peer, link } => {
                let number = self.others.get(&peer).map(|other| other.link);
                if link.is_none() || link == number {
                    self.gone(peer);
                }
            }
        }
    }

    /// Takes note of where a member is.
    fn know(&mut self, peer: PeerId, addresses: Vec<String>) {
        let is_new = !self.others.contains_key(&peer);
        if peer == self.network.peer_id() || (is_new && self.others.len() + 1 >= MEMBERS_MAX) {
            return;
        }
        let other = self.others.entry(peer).or_default();
        if !addresses.is_empty() {
            other.addresses = addresses;
        }
    }

    fn opened(&mut self, peer: PeerId, link: Link) {
        let hello = self.hello();
        let Some(other) = self.others.get_mut(&peer) else { return };
        (other.opening, other.tries) = (false, 0);
        if let Some(read) = other.read.take() {
            let _gone = read.send(());
        }
        other.link += 1;
        let (numbered, words) = ((link, other.link), Arc::new(Words::default()));
        let write = links::write(numbered, hello, Arc::clone(&words), self.tell.clone());
        other.words = Some((words, self.carriers.spawn(write)));
        self.member.handle(Input::Met { peer }, self.clock.now());
    }

    fn hello(&self) -> MemberMessage {
        let texts = |peer: &Other| peer.addresses.clone();
        MemberMessage::Hello {
            run: self.name,
            addresses: self.network.announced_addresses().iter().map(ToString::to_string).collect(),
            members: self.others.iter().map(|(peer, other)| (*peer, texts(other))).collect(),
        }
    }

    fn gone(&mut self, peer: PeerId) {
        if let Some(other) = self.others.get_mut(&peer) {
            if other.words.is_some() && !other.greeted {
                other.refused += 1;
            }
            if let Some((_unsaid, writer)) = other.words.take() {
                // It may wait for ever for a member that does not read.
                writer.abort();
            }
            other.read = None;
            self.member.handle(Input::Left { peer }, self.clock.now());
        }
        let refuses = |other: &Other| other.refused >= REFUSED_MAX;
        let all_refuse = !self.others.is_empty() && self.others.values().all(refuses);
        if all_refuse && self.member.state().is_none() {
            self.asked.change(|wanted| wanted.refused = true);
        }
    }

    /// Does what the machine wants.
    fn act(&mut self) {
        let mut silent = BTreeSet::new();
        while let Some(output) = self.member.poll() {
            match output {
                Output::Send { to, message } => {
                    let words = self.others.get(&to).and_then(|other| other.words.as_ref());
                    if words.is_some_and(|(words, _)| !words.say(message)) {
                        silent.insert(to);
                    }
                }
                Output::Begin { state } => {
                    let (round, members) = (state.round(), self.member.member_count());
                    tracing::debug!(round, members, "a round begins");
                    self.asked.change(|wanted| {
                        (wanted.begin, wanted.learned) = (Some((state, members)), None);
                    });
                }
                Output::Learned { round } => {
                    self.asked.change(|wanted| wanted.learned = Some(round));
                }
            }
        }
        for peer in silent {
            tracing::warn!(%peer, "a member does not read, and is left");
            self.gone(peer);
        }
    }
}

#[cfg(test)]
mod tests;
