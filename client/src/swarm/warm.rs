//! Which servers hold what of the sessions that a client has had.

use std::collections::VecDeque;

use umbel_coordinator::Hop;
use umbel_coordinator::route::{HeldPrefix, Route};
use umbel_protocol::prefix::{PAGE_TOKENS, PageDigest};
use umbel_protocol::{ModelId, Span};

/// Most texts that are remembered: as many as the sessions that one client may have at a server.
/// They take 2 MB where all are as long as can be.
const TEXTS_MAX: usize = 64;

/// Texts and the routes that have read them, the newest last. What servers have given up meanwhile
/// they say when they are asked.
#[derive(Debug, Default)]
pub(super) struct Warm {
    texts: VecDeque<Text>,
}

#[derive(Debug)]
struct Text {
    model: ModelId,
    pages: Vec<PageDigest>,
    route: Route,
}

impl Warm {
    /// Takes note of a session that has read these pages along these hops, where they are a whole
    /// route.
    pub(super) fn remember(&mut self, model: ModelId, pages: &[PageDigest], hops: Vec<Hop>) {
        let end = hops.last().map_or(0, |hop| hop.blocks.end());
        let Ok(blocks) = Span::new(0, end) else {
            return;
        };
        let Some(route) = Route::new(hops, blocks).filter(|_| !pages.is_empty()) else {
            return;
        };
        // It goes on where an earlier one ended.
        self.texts.retain(|text| text.route != route || !pages.starts_with(&text.pages));
        if self.texts.len() >= TEXTS_MAX {
            self.texts.pop_front();
        }
        self.texts.push_back(Text { model, pages: pages.to_vec(), route });
    }

    /// The route that has read most of what a session begins with; of several the last.
    pub(super) fn longest(&self, model: ModelId, prefix: &[PageDigest]) -> Option<HeldPrefix> {
        let alike = |text: &Text| text.pages.iter().zip(prefix).take_while(|(a, b)| a == b).count();
        let of_model = self.texts.iter().filter(|text| text.model == model);
        let (pages, text) = of_model.map(|text| (alike(text), text)).max_by_key(|(n, _)| *n)?;
        let tokens = u32::try_from(pages).unwrap_or(u32::MAX).saturating_mul(PAGE_TOKENS);
        (tokens > 0).then(|| HeldPrefix { route: text.route.clone(), tokens })
    }
}

#[cfg(test)]
mod tests {
    use umbel_protocol::PeerId;

    use super::*;

    const MODEL: ModelId = ModelId::from_bytes([1; 32]);

    fn pages(text: &[u8]) -> Vec<PageDigest> {
        text.iter().map(|page| PageDigest::from_bytes([*page; 16])).collect()
    }

    fn hops(names: &[u8]) -> Vec<Hop> {
        let hop = |(block, name): (u32, &u8)| Hop {
            peer: PeerId::from_public_key([*name; 32]),
            blocks: Span::new(block, block + 1).unwrap(),
        };
        (0..).zip(names).map(hop).collect()
    }

    fn found(warm: &Warm, text: &[u8]) -> Option<(u8, u32)> {
        let held = warm.longest(MODEL, &pages(text))?;
        Some((held.route.hops()[0].peer.public_key()[0], held.tokens))
    }

    #[test]
    fn the_route_that_has_read_most_is_found() {
        let mut warm = Warm::default();
        warm.remember(MODEL, &pages(&[1, 2, 3]), hops(&[1, 2]));
        warm.remember(MODEL, &pages(&[1, 2]), hops(&[3, 4]));
        assert_eq!(found(&warm, &[1, 2, 3, 4]), Some((1, 48)));
        assert_eq!(found(&warm, &[1, 2, 9]), Some((3, 32)), "the last of two");
        assert_eq!(found(&warm, &[9]), None);
        assert_eq!(warm.longest(ModelId::from_bytes([2; 32]), &pages(&[1])), None);
    }

    #[test]
    fn a_text_that_grows_takes_one_place_and_there_are_so_many_and_no_more() {
        let mut warm = Warm::default();
        for end in 1..100u8 {
            let text: Vec<u8> = (0..end).collect();
            warm.remember(MODEL, &pages(&text), hops(&[1, 2]));
        }
        assert_eq!(warm.texts.len(), 1);
        for first in 100..200u8 {
            warm.remember(MODEL, &pages(&[first]), hops(&[1, 2]));
        }
        assert_eq!(warm.texts.len(), TEXTS_MAX);
        assert_eq!((found(&warm, &[0]), found(&warm, &[199])), (None, Some((1, 16))));
    }

    #[test]
    fn a_route_with_a_gap_or_a_session_of_less_than_a_page_is_not_worth_it() {
        let mut warm = Warm::default();
        warm.remember(MODEL, &[], hops(&[1, 2]));
        warm.remember(MODEL, &pages(&[1]), hops(&[1, 2])[1..].to_vec());
        warm.remember(MODEL, &pages(&[1]), Vec::new());
        assert!(warm.texts.is_empty());
    }
}
