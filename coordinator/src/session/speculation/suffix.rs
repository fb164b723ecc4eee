//! What followed the last time: drafts from the text so far.
//!
//! A suffix automaton (Blumer et al., "The smallest automaton recognizing the subwords of a text",
//! 1985) that grows by one token at a time. The suffix link of its newest state is the longest
//! suffix of the text that has occurred before. It has at most two states and three edges for each
//! token, and a token costs a constant number of map operations on average.

use std::collections::BTreeMap;

/// Most tokens that are remembered. At about 80 bytes a token an index stays below 6 MB, and 65,536
/// tokens are more than most models' context.
pub const WINDOW_TOKENS: usize = 1 << 16;

/// How many of the suffixes that end at a token are told that they ended there last. To tell all of
/// them would take quadratic time on a text of one repeated token; texts have rarely more than 20
/// suffixes with different futures.
const RECENT_SUFFIXES_MAX: usize = 64;

/// The state of the empty string.
const ROOT: u32 = 0;

/// The link of the root.
const NONE: u32 = u32::MAX;

/// Finds the longest suffix of a growing text that has occurred in it before.
#[derive(Debug, Clone)]
pub struct SuffixIndex {
    text: Vec<u32>,
    window: usize,
    states: Vec<State>,
    /// From a state by a token to a state. One map for all: most states have a single edge.
    edges: BTreeMap<(u32, u32), u32>,
    last: u32,
    found: Found,
}

/// Substrings that occur at the same places, each a suffix of the longest one.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Tokens of the longest of them.
    length: u32,
    /// The longest suffix of them that occurs elsewhere too.
    link: u32,
    /// Tokens of the text up to the end of the last occurrence that is known.
    end: u32,
}

/// The longest suffix that occurred before.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    length: u32,
    end: u32,
}

impl Default for SuffixIndex {
    fn default() -> Self {
        Self::with_window(WINDOW_TOKENS)
    }
}

impl SuffixIndex {
    /// An index of an empty text that forgets all but the last `window` tokens, or fewer: down to
    /// half of them.
    #[must_use]
    pub fn with_window(window: usize) -> Self {
        let mut index = Self {
            text: Vec::new(),
            window: window.clamp(2, WINDOW_TOKENS),
            states: Vec::new(),
            edges: BTreeMap::new(),
            last: ROOT,
            found: Found::default(),
        };
        index.clear();
        index
    }

    /// The text goes on with `token`.
    pub fn push(&mut self, token: u32) {
        if self.text.len() == self.window {
            // To build half of it anew each time half of it is new costs two pushes a token.
            let kept = self.text.split_off(self.window / 2);
            self.clear();
            kept.into_iter().for_each(|token| self.grow(token));
        }
        self.grow(token);
    }

    /// Tokens of the longest suffix of the text that has occurred before.
    #[must_use]
    pub const fn matched(&self) -> u32 {
        self.found.length
    }

    /// `count` tokens that followed the most recent earlier occurrence of that suffix; none where
    /// there is no such suffix. A text that repeats itself up to its end is taken to go on so.
    #[must_use]
    pub fn draft(&self, count: usize) -> Vec<u32> {
        if self.found.length == 0 {
            return Vec::new();
        }
        let mut draft = Vec::with_capacity(count);
        for place in (self.found.end as usize..).take(count) {
            let beyond = place.checked_sub(self.text.len());
            draft.push(beyond.map_or_else(|| self.text[place], |index| draft[index]));
        }
        draft
    }

    fn clear(&mut self) {
        self.text.clear();
        self.edges.clear();
        self.states.clear();
        self.states.push(State { length: 0, link: NONE, end: 0 });
        self.last = ROOT;
        self.found = Found::default();
    }

    fn grow(&mut self, token: u32) {
        self.text.push(token);
        let end = u32::try_from(self.text.len()).expect("a window is counted in 32 bits");
        let newest = self.add(State { length: end, link: ROOT, end });
        let mut from = self.last;
        while from != NONE && !self.edges.contains_key(&(from, token)) {
            self.edges.insert((from, token), newest);
            from = self.state(from).link;
        }
        if from != NONE {
            let link = self.state_after(from, token);
            self.states[newest as usize].link = link;
        }
        self.last = newest;
        self.note_end(end);
    }

    /// The state of exactly the longest string of `from` with `token` behind it: split from its
    /// class if longer strings are in that, since from now on it occurs where they do not.
    fn state_after(&mut self, mut from: u32, token: u32) -> u32 {
        let class = self.edges[&(from, token)];
        let length = self.state(from).length + 1;
        if self.state(class).length == length {
            return class;
        }
        let split = self.add(State { length, ..self.state(class) });
        let copied: Vec<_> = self.edges.range((class, 0)..=(class, u32::MAX)).collect();
        let copied: Vec<_> = copied.into_iter().map(|(&(_, by), &to)| ((split, by), to)).collect();
        self.edges.extend(copied);
        while from != NONE && self.edges.get(&(from, token)) == Some(&class) {
            self.edges.insert((from, token), split);
            from = self.state(from).link;
        }
        self.states[class as usize].link = split;
        split
    }

    /// Takes down where the longest suffix that occurred before has ended, and that it and the
    /// shorter ones end here now.
    fn note_end(&mut self, end: u32) {
        let mut suffix = self.state(self.last).link;
        let State { length, end: before, .. } = self.state(suffix);
        self.found = Found { length, end: before };
        for _ in 0..RECENT_SUFFIXES_MAX {
            if suffix == ROOT {
                return;
            }
            self.states[suffix as usize].end = end;
            suffix = self.state(suffix).link;
        }
    }

    fn add(&mut self, state: State) -> u32 {
        let number = u32::try_from(self.states.len()).expect("two states a token of the window");
        self.states.push(state);
        number
    }

    fn state(&self, number: u32) -> State {
        self.states[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(text: &[u32]) -> SuffixIndex {
        let mut index = SuffixIndex::default();
        text.iter().for_each(|&token| index.push(token));
        index
    }

    /// Length and end of the most recent earlier occurrence of the longest suffix, by search.
    fn search(text: &[u32]) -> Option<(usize, usize)> {
        (1..text.len()).rev().find_map(|length| {
            let suffix = &text[text.len() - length..];
            let end = (length..text.len()).rev().find(|&end| text[..end].ends_with(suffix))?;
            Some((length, end))
        })
    }

    #[test]
    fn a_text_without_repetition_gives_no_draft() {
        assert_eq!(index(&[]).draft(4), [0; 0]);
        assert_eq!(index(&[1, 2, 3]).draft(4), [0; 0]);
        assert_eq!(index(&[1, 2, 3]).matched(), 0);
    }

    #[test]
    fn what_followed_most_recently_is_the_draft() {
        let index = index(&[1, 2, 3, 7, 1, 2, 4, 8, 9, 1, 2]);
        assert_eq!((index.matched(), index.draft(3)), (2, vec![4, 8, 9]));
    }

    #[test]
    fn a_longer_match_counts_more_than_a_recent_one() {
        let index = index(&[5, 1, 2, 3, 6, 2, 4, 5, 1, 2]);
        assert_eq!((index.matched(), index.draft(2)), (3, vec![3, 6]));
    }

    #[test]
    fn a_text_that_repeats_itself_is_taken_to_go_on_so() {
        assert_eq!(index(&[1, 2, 3, 1, 2, 3, 1]).draft(7), [2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(index(&[4, 4, 4]).draft(5), [4; 5]);
    }

    #[test]
    fn states_and_edges_stay_linear_and_a_full_window_forgets_its_older_half() {
        let mut index = SuffixIndex::with_window(100);
        for token in 0..10_000u32 {
            index.push(token * token % 7);
            let length = index.text.len();
            assert!((50..=100).contains(&length) || token < 50);
            assert!(index.states.len() <= 2 * length && index.edges.len() <= 3 * length);
        }
        assert_eq!(index.draft(7).len(), 7);
    }

    #[test]
    fn one_repeated_token_takes_linear_time() {
        // Quadratic time would take minutes here.
        let index = index(&vec![3; WINDOW_TOKENS + 10]);
        assert_eq!(index.draft(3), [3; 3]);
    }

    proptest! {
        #[test]
        fn the_longest_suffix_and_its_last_place_are_those_of_a_search(
            // Shorter than the number of suffixes that are told of each place.
            text in proptest::collection::vec(0u32..4, 0..RECENT_SUFFIXES_MAX),
        ) {
            let mut index = SuffixIndex::default();
            for (count, &token) in (1..).zip(&text) {
                index.push(token);
                let found = search(&text[..count]);
                let (length, end) = found.unwrap_or_default();
                prop_assert_eq!(index.matched() as usize, length);
                if let Some(&next) = found.and(text.get(end)).filter(|_| end < count) {
                    prop_assert_eq!(index.draft(1), [next]);
                }
                if length > 0 {
                    prop_assert_eq!(index.found.end as usize, end);
                }
            }
        }

        #[test]
        fn in_long_texts_a_draft_is_what_followed_an_occurrence(
            text in proptest::collection::vec(0u32..3, 200..400),
        ) {
            let index = index(&text);
            let (length, end) = (index.matched() as usize, index.found.end as usize);
            prop_assert_eq!(search(&text).map(|(length, _)| length), Some(length));
            prop_assert!(end < text.len() && text[..end].ends_with(&text[text.len() - length..]));
            let draft = index.draft(20);
            let going_on = [text.clone(), draft.clone()].concat();
            prop_assert_eq!(&going_on[end..end + 20], &draft[..]);
        }
    }
}
