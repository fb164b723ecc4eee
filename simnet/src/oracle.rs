//! The toy accelerator: hidden states are hashes of all that they must depend on.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use umbel_coordinator::server::{DrawJob, PageId};
use umbel_protocol::prefix::PAGE_TOKENS;
use umbel_protocol::{DType, SessionId, Span, Tensor};

/// Elements of a hidden state: the 32 bytes of a hash, taken for eight numbers.
pub const HIDDEN_SIZE: u32 = 8;

/// How many different tokens there are.
pub const VOCABULARY: u32 = 1_000;

/// Bytes of it.
pub const TOKEN_BYTES: usize = 32;

type Hash = [u8; TOKEN_BYTES];

/// The keys and values of one session: at each block a chain of hashes over its positions.
#[derive(Debug, Default)]
struct Cache {
    blocks: BTreeMap<u32, Vec<Hash>>,
}

/// An accelerator with the caches of its sessions.
#[derive(Debug, Default)]
pub struct Oracle {
    caches: BTreeMap<SessionId, Cache>,
    /// At each block what a cache held of one page.
    pages: BTreeMap<PageId, BTreeMap<u32, Vec<Hash>>>,
}

impl Oracle {
    /// Makes room for a session.
    pub fn open(&mut self, session: SessionId, blocks: Span) {
        self.open_with(session, blocks, &[]);
    }

    /// The same for one that begins with pages that were kept.
    ///
    /// # Panics
    /// If one of them was not, or was of other blocks: the machines must not let that happen.
    pub fn open_with(&mut self, session: SessionId, blocks: Span, prefix: &[PageId]) {
        let chain = |block| {
            let pages = prefix.iter().map(|page| &self.pages[page][&block]);
            (block, pages.flatten().copied().collect())
        };
        let blocks = blocks.blocks().map(chain).collect();
        self.caches.insert(session, Cache { blocks });
    }

    /// Keeps a page of a session.
    ///
    /// # Panics
    /// If the session is not open or has not filled it: the machines must not let that happen.
    pub fn keep(&mut self, session: SessionId, number: u32, page: PageId) {
        let tokens = (number * PAGE_TOKENS) as usize..((number + 1) * PAGE_TOKENS) as usize;
        let cache = self.caches.get(&session).expect("the session is open");
        let part = |(block, chain): (&u32, &Vec<Hash>)| (*block, chain[tokens.clone()].to_vec());
        self.pages.insert(page, cache.blocks.iter().map(part).collect());
    }

    /// Drops a page.
    pub fn drop_page(&mut self, page: PageId) {
        self.pages.remove(&page);
    }

    /// How many blocks a page is of; none where it is not kept.
    #[must_use]
    pub fn page_blocks(&self, page: PageId) -> usize {
        self.pages.get(&page).map_or(0, BTreeMap::len)
    }

    /// How many pages are kept.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// Frees what a session had.
    pub fn forget(&mut self, session: SessionId) {
        self.caches.remove(&session);
    }

    /// How many sessions have a cache.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.caches.len()
    }

    /// Takes `hidden` (`[tokens, 8]`) through `blocks`, from `position` on.
    ///
    /// # Panics
    /// If the session was not opened here, or its cache does not reach `position`: the machines
    /// must not let that happen.
    #[must_use]
    pub fn step(
        &mut self,
        session: SessionId,
        blocks: Span,
        position: u32,
        hidden: &Tensor,
    ) -> Tensor {
        let cache = self.caches.get_mut(&session).expect("the session is open");
        let mut rows = hidden.payload().to_vec();
        for block in blocks.blocks() {
            let chain = cache.blocks.get_mut(&block).expect("the session has this block");
            assert!(chain.len() >= position as usize, "the cache reaches the position");
            chain.truncate(position as usize);
            for row in rows.chunks_exact_mut(32) {
                let before = chain.last().copied().unwrap_or_default();
                let state = hash(&[&block.to_le_bytes(), &before, row]);
                chain.push(state);
                row.copy_from_slice(&hash(&[b"leaves", &state]));
            }
        }
        Tensor::new(DType::F32, hidden.shape().to_vec(), rows.into()).expect("as long as it came")
    }
}

/// What enters the first block for these tokens.
#[must_use]
pub fn embed(tokens: &[u32]) -> Tensor {
    let rows: Vec<u8> =
        tokens.iter().flat_map(|token| hash(&[b"token", &token.to_le_bytes()])).collect();
    let count = u32::try_from(tokens.len()).expect("a prompt is counted in 32 bits");
    Tensor::new(DType::F32, vec![count, HIDDEN_SIZE], rows.into()).expect("32 bytes a token")
}

/// The token that is drawn from the last row of `leaving`: by a hash of all that a draw depends on.
///
/// # Panics
/// If there is no row.
#[must_use]
pub fn draw(leaving: &Tensor, draw: &DrawJob) -> u32 {
    let row = leaving.payload().rchunks_exact(TOKEN_BYTES).next().expect("a step has a token");
    let DrawJob { position, sampling, text } = draw;
    let text: Vec<u8> = text.iter().flat_map(|id| id.to_le_bytes()).collect();
    let seed = sampling.seed.to_le_bytes();
    let drawn = hash(&[b"drawn", row, &position.to_le_bytes(), &seed, &text]);
    u32::from_le_bytes([drawn[0], drawn[1], drawn[2], drawn[3]]) % VOCABULARY
}

fn hash(parts: &[&[u8]]) -> Hash {
    parts.iter().fold(Sha256::new(), |hasher, part| hasher.chain_update(part)).finalize().into()
}
