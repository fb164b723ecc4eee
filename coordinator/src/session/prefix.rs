//! What the session is known to have been through, token by token: by it hops find what they still
//! hold of another session of this client, and are told what they may keep for the next one.
//!
//! A session begins where all of its hops can: at the least that one of them has taken over. What is
//! before that was sent by nobody in this session, so its caller hands in what enters the first block
//! there ([`Input::Remember`](super::Input::Remember)), and the journal of this side reaches back to
//! the first token as it does without a prefix. A hop that is replaced is refilled from there.

use umbel_protocol::inference::{ClientMessage, KeepPages, Step};
use umbel_protocol::prefix::{PAGE_TOKENS, PREFIX_PAGES_MAX, PageDigest, PrefixChain, PrefixSeed};
use umbel_protocol::{DType, SessionId, StepId, Tensor};

use super::place::{Fill, Place};
use super::{Output, Session, State};

/// How many pages more a hop is told of at once, while tokens come one by one: a message for each 64
/// of them. At the end of the session it is told of all.
const PAGES_TOLD_MIN: usize = 4;

/// What a session shares with others of its client.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// Drawn at random by the body, the same for all sessions that are to share.
    pub secret: [u8; 32],
    /// The tokens that the session is to begin with, as far as they are known: it takes over what
    /// hops hold of all but the last one, whose result is wanted.
    pub tokens: Vec<u32>,
}

/// The tokens in the cache, up to the first that is not known.
#[derive(Debug)]
pub(super) struct Text {
    secret: [u8; 32],
    /// While the session opens, what it is to begin with.
    tokens: Vec<u32>,
    /// The route has changed since it was opened: where the links round, they may have done so at
    /// other blocks.
    rerouted: bool,
}

impl Text {
    pub(super) fn new(sharing: Sharing) -> Self {
        Self { secret: sharing.secret, tokens: sharing.tokens, rerouted: false }
    }
}

impl Session {
    /// Tokens that all hops hold at the beginning of the session, and maybe more of their own. It is
    /// known once the session is ready.
    #[must_use]
    pub const fn taken_over(&self) -> u32 {
        self.taken_over
    }

    /// The tokens that the hops hold, as far as they are known and were answered.
    #[must_use]
    pub fn text(&self) -> &[u32] {
        let known = self.known_tokens();
        match (&self.state, &self.text) {
            (State::Open | State::Over, Some(text)) => &text.tokens[..known],
            (State::Opening, _) | (_, None) => &[],
        }
    }

    /// The pages with which a hop in the place at `index` is to begin, and how to name those that
    /// follow.
    pub(super) fn prefix_of(&self, index: usize) -> (Vec<PageDigest>, Option<PrefixChain>) {
        let (Some(text), Some(seed)) = (&self.text, self.seed_of(index)) else {
            return (Vec::new(), None);
        };
        let mut chain = PrefixChain::new(seed);
        // Whoever pays for spares wants hops whose journals reach back to the first token.
        let known = if self.config.standby { 0 } else { self.known_tokens() };
        (chain.digests(&text.tokens[..known]).to_vec(), Some(chain))
    }

    /// How many tokens of the text every full hop holds.
    fn known_tokens(&self) -> usize {
        let known = self.text.as_ref().map_or(0, |text| text.tokens.len());
        match self.state {
            State::Opening => known.saturating_sub(1),
            State::Open | State::Over => known.min(self.settled as usize),
        }
    }

    /// What decides the bits at the hop at `index`; `None` where nobody can say.
    fn seed_of(&self, index: usize) -> Option<PrefixSeed> {
        let text = self.text.as_ref()?;
        let (model, cache, wire) = (self.config.model, self.config.cache, self.config.results);
        let before = &self.places[..index];
        if wire != DType::F32 {
            let begins = before.iter().map(|place| place.hop.blocks.start());
            let ends = before.iter().map(|place| place.hop.blocks.end());
            let follow =
                std::iter::once(0)
                    .chain(ends.clone())
                    .eq(begins.chain([self.places[index].hop.blocks.start()]));
            if text.rerouted || !follow {
                return None;
            }
        }
        let cuts = before.iter().map(|place| place.hop.blocks.end());
        Some(PrefixSeed::new(&text.secret, model, cache, wire, cuts))
    }

    /// A hop has opened, and holds so many tokens of the prefix that it was told of. Whether that can
    /// be.
    pub(super) fn opened_with(place: &mut Place, kept: Option<u32>) -> bool {
        let pages = place.chain.as_ref().map_or(0, PrefixChain::page_count);
        let most = u32::try_from(pages).unwrap_or(u32::MAX).saturating_mul(PAGE_TOKENS);
        let tokens = kept.unwrap_or(0);
        place.keeps = kept.is_some();
        place.held = tokens;
        place.told = tokens / PAGE_TOKENS;
        tokens <= most && tokens.is_multiple_of(PAGE_TOKENS)
    }

    /// The route is whole for the first time: the session begins where all hops can.
    pub(super) fn begin_with_prefix(&mut self) {
        for index in 0..self.places.len() {
            // A hop before it may have been replaced since, by one that ends at another block.
            let seed = self.seed_of(index);
            let place = &mut self.places[index];
            if place.chain.as_ref().map(PrefixChain::seed) != seed {
                (place.held, place.told, place.chain) = (0, 0, None);
            }
        }
        let held = self.places.iter().map(|place| place.held).min().unwrap_or(0);
        // What some hold beyond that may not be what comes.
        self.places.iter_mut().for_each(|place| place.cut(held));
        (self.taken_over, self.settled) = (held, held);
        if let Some(text) = &mut self.text {
            text.tokens.truncate(held as usize);
        }
    }

    /// Where the hop at `index` begins, and with it all behind it that are as new: at the least that
    /// one of them holds.
    pub(super) fn start_of(&self, index: usize) -> u32 {
        let new = self.places[index..].iter().take_while(|place| place.fill == Fill::Wanted);
        new.map(|place| place.held).min().unwrap_or(0).min(self.settled)
    }

    /// Takes up what entered the first block for the tokens that were taken over.
    pub(super) fn remember(&mut self, hidden: Tensor) {
        let is_first = self.journal.end() == 0 && self.flight.is_empty();
        if !is_first || hidden.shape().first() != Some(&self.taken_over) {
            return;
        }
        self.journal.record(&Step {
            session: SessionId::new(0),
            step: StepId::default(),
            position: 0,
            hidden,
            trace: Vec::new(),
            replay: true,
            answer_rows: umbel_protocol::inference::AnswerRows::Last,
            goes_on: false,
        });
        if self.journal.bytes() > self.config.journal_bytes_max {
            self.journal.evict();
        }
    }

    /// A step begins at `position` with these tokens, where they are known.
    pub(super) fn read_on(&mut self, position: u32, ids: &[u32], tokens: u32) {
        let Some(text) = &mut self.text else {
            return;
        };
        let held = text.tokens.len();
        text.tokens.truncate(position as usize);
        if text.tokens.len() == position as usize && ids.len() == tokens as usize {
            text.tokens.extend(ids);
        }
        if held > position as usize {
            let spares = self.spares.iter_mut().map(|spare| &mut spare.place);
            self.places.iter_mut().chain(spares).for_each(|place| place.cut(position));
        }
    }

    /// Tells hops which pages they may keep, of those before `position`: where enough has come since
    /// they were told last, or all at the end. Only what was answered is certain to be there.
    pub(super) fn tell_pages(&mut self, position: u32, at_end: bool) {
        let whole = self.is_mended() && self.flight.is_empty();
        if !whole || !matches!(self.state, State::Open) {
            return;
        }
        let known = self.text.as_ref().map_or(0, |text| text.tokens.len()).min(position as usize);
        let pages = (known / PAGE_TOKENS as usize).min(PREFIX_PAGES_MAX);
        let enough = if at_end { 1 } else { PAGES_TOLD_MIN };
        for index in 0..self.places.len() {
            let place = &self.places[index];
            let is_due = place.told as usize + enough <= pages;
            if place.keeps && place.fill == Fill::Full && is_due {
                self.tell_pages_to(index, known);
            }
        }
    }

    /// Tells the hop at `index` of the pages of the first so many tokens.
    fn tell_pages_to(&mut self, index: usize, known: usize) {
        let seed = self.seed_of(index);
        let (Some(text), Some(seed)) = (&self.text, seed) else {
            return;
        };
        let place = &mut self.places[index];
        let chain = place.chain.get_or_insert_with(|| PrefixChain::new(seed));
        if chain.seed() != seed {
            return;
        }
        let pages = chain.digests(&text.tokens[..known]);
        let keep = KeepPages {
            session: place.session,
            next_step: self.next_step,
            first: place.told,
            pages: pages.get(place.told as usize..).unwrap_or_default().to_vec(),
        };
        place.told = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let (hop, message) = (place.id, ClientMessage::Keep(keep));
        self.outputs.push_back(Output::Send { hop, message });
    }

    /// A hop has lost its place while the session was open.
    pub(super) const fn reroute(&mut self) {
        if let Some(text) = &mut self.text
            && matches!(self.state, State::Open)
        {
            text.rerouted = true;
        }
    }
}

impl Place {
    /// The session is cut to so many tokens.
    fn cut(&mut self, position: u32) {
        self.held = self.held.min(position);
        self.told = self.told.min(position / PAGE_TOKENS);
        if let Some(chain) = &mut self.chain {
            chain.truncate(position);
        }
    }
}
