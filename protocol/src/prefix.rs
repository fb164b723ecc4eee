//! Names of what a session has been through, by which a server finds keys and values that it still
//! holds.
//!
//! A prefix is named page by page: the digest of a page covers its tokens, all tokens before them,
//! and whatever else decides the bits of its keys and values besides the blocks. A client draws a
//! secret of its own, which goes into every digest: to all others, servers too, a digest says
//! nothing of the tokens, and nobody can search for two texts with the same one.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{DType, ModelId};

/// Tokens of a page, the unit in which keys and values are kept and prefixes are named.
pub const PAGE_TOKENS: u32 = 16;

/// Most pages that one message names: 32,768 tokens, whose digests take half of what the header of
/// a session's message may have. What a longer text has beyond them is computed.
pub const PREFIX_PAGES_MAX: usize = 2_048;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 16;

/// The name of a page of tokens and of all tokens before it.
///
/// 128 bits suffice since the secret behind them is not known to who might look for a collision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageDigest([u8; DIGEST_BYTES]);

impl PageDigest {
    /// The digest with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What decides the bits of keys and values besides tokens and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixSeed([u8; 32]);

impl PrefixSeed {
    /// For a model, the type in which keys and values are kept, and the type of hidden states on
    /// the links. Where that one rounds, `cuts` are the blocks before which they were rounded;
    /// binary32 does not.
    #[must_use]
    pub fn new(
        secret: &[u8; 32],
        model: ModelId,
        cache: DType,
        wire: DType,
        cuts: impl IntoIterator<Item = u32>,
    ) -> Self {
        let mut hasher = Sha256::new_with_prefix(b"umbel prefix v1\0");
        hasher.update(secret);
        hasher.update(model.as_bytes());
        // The names of types are prefixes of no other.
        hasher.update(format!("{cache} {wire}").as_bytes());
        if wire != DType::F32 {
            for cut in cuts {
                hasher.update(cut.to_le_bytes());
            }
        }
        Self(hasher.finalize().into())
    }
}

/// The digests of the pages of one text, which grows, and is cut back now and then.
#[derive(Debug, Clone)]
pub struct PrefixChain {
    seed: PrefixSeed,
    digests: Vec<PageDigest>,
    /// Of the last page: the next one's digest follows from it.
    states: Vec<[u8; 32]>,
}

impl PrefixChain {
    /// Of a text without a token.
    #[must_use]
    pub const fn new(seed: PrefixSeed) -> Self {
        Self { seed, digests: Vec::new(), states: Vec::new() }
    }

    /// What it begins with.
    #[must_use]
    pub const fn seed(&self) -> PrefixSeed {
        self.seed
    }

    /// How many pages have been digested.
    #[must_use]
    pub const fn page_count(&self) -> usize {
        self.digests.len()
    }

    /// Forgets the pages that reach beyond so many tokens.
    pub fn truncate(&mut self, tokens: u32) {
        self.digests.truncate((tokens / PAGE_TOKENS) as usize);
        self.states.truncate(self.digests.len());
    }

    /// The digests of all full pages of `tokens`, a text that begins with what was digested before,
    /// up to [`PREFIX_PAGES_MAX`].
    pub fn digests(&mut self, tokens: &[u32]) -> &[PageDigest] {
        let pages = tokens.chunks_exact(PAGE_TOKENS as usize).take(PREFIX_PAGES_MAX);
        for page in pages.clone().skip(self.digests.len()) {
            let before = self.states.last().unwrap_or(&self.seed.0);
            let bytes: Vec<u8> = page.iter().flat_map(|token| token.to_le_bytes()).collect();
            let state: [u8; 32] =
                Sha256::new_with_prefix(before).chain_update(bytes).finalize().into();
            let digest = std::array::from_fn(|index| state[index]);
            self.digests.push(PageDigest(digest));
            self.states.push(state);
        }
        &self.digests[..pages.len().min(self.digests.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelId = ModelId::from_bytes([1; 32]);

    fn chain(secret: u8, cache: DType, wire: DType, cuts: &[u32]) -> PrefixChain {
        let cuts = cuts.iter().copied();
        PrefixChain::new(PrefixSeed::new(&[secret; 32], MODEL, cache, wire, cuts))
    }

    fn text(tokens: u32) -> Vec<u32> {
        (0..tokens).map(|token| token * 7 % 50).collect()
    }

    #[test]
    fn texts_share_the_digests_of_the_pages_up_to_where_they_differ() {
        let mut other = text(100);
        other[40] += 1;
        let digests = |text: &[u32]| chain(1, DType::F32, DType::F32, &[]).digests(text).to_vec();
        let (a, b) = (digests(&text(100)), digests(&other));
        assert_eq!((a.len(), b.len()), (6, 6));
        let same: Vec<_> = a.iter().zip(&b).map(|(a, b)| a == b).collect();
        assert_eq!(same, [true, true, false, false, false, false]);
    }

    #[test]
    fn a_text_that_grows_and_is_cut_has_the_digests_of_one_that_came_whole() {
        let mut grown = chain(1, DType::F32, DType::F32, &[]);
        grown.digests(&text(40));
        let mut wrong = text(40);
        wrong.extend([9; 30]);
        grown.digests(&wrong);
        grown.truncate(40);
        let whole = chain(1, DType::F32, DType::F32, &[]).digests(&text(100)).to_vec();
        assert_eq!(grown.digests(&text(100)), whole);
        assert_eq!(grown.digests(&text(33)), &whole[..2]);
    }

    #[test]
    fn whatever_changes_bits_changes_digests() {
        let digest = |mut chain: PrefixChain| chain.digests(&text(16))[0];
        let [exact, narrow] = [DType::F32, DType::BF16];
        let all = [
            digest(chain(1, exact, exact, &[])),
            digest(chain(2, exact, exact, &[])),
            digest(chain(1, narrow, exact, &[])),
            digest(chain(1, exact, narrow, &[])),
            digest(chain(1, exact, narrow, &[3])),
            digest(chain(1, exact, narrow, &[3, 5])),
            digest(chain(1, exact, DType::F16, &[3, 5])),
        ];
        let different: std::collections::BTreeSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(digest(chain(1, exact, exact, &[3])), all[0], "nothing is rounded there");
    }

    #[test]
    fn what_is_too_long_to_be_named_is_left_out() {
        let tokens = text(PAGE_TOKENS * 2_050);
        let mut chain = chain(1, DType::F32, DType::F32, &[]);
        assert_eq!(chain.digests(&tokens).len(), PREFIX_PAGES_MAX);
    }
}
