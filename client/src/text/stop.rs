//! Stop strings: texts at which an answer ends.

/// Looks for stop strings in a text that arrives in pieces.
///
/// The answer ends where the first stop string is complete, and is cut before it. How the text is
/// cut into pieces changes nothing: what has been shown is always the same.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// What has arrived and may be the beginning of a stop string.
    held: String,
    stopped_at: Option<String>,
}

/// What may be done with the text so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// What can be shown now, after everything that was shown before.
    pub text: String,
    /// Whether a stop string is complete; no text follows then.
    pub stopped: bool,
}

impl StopStrings {
    /// Ends the text at any of `stops`. An empty one is ignored: it would end every text at once.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), stopped_at: None }
    }

    /// Takes the next piece of the text. After a stop it is ignored.
    pub fn push(&mut self, piece: &str) -> Emit {
        if self.stopped_at.is_some() {
            return Emit { text: String::new(), stopped: true };
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_stop() {
            self.stopped_at = Some(stop);
            self.held.truncate(start);
            return Emit { text: std::mem::take(&mut self.held), stopped: true };
        }
        let tail = self.held.split_off(self.held.len() - self.open_tail_bytes());
        Emit { text: std::mem::replace(&mut self.held, tail), stopped: false }
    }

    /// The text has ended: gives what was held back, as no stop string came of it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string at which the text has ended; `None` while it has not.
    #[must_use]
    pub fn stopped_at(&self) -> Option<&str> {
        self.stopped_at.as_deref()
    }

    /// The stop string that is complete first, and where it begins; of several that are complete at
    /// the same place, the longest.
    fn first_stop(&self) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        found.min().map(|(_, start, stop)| (start, stop.clone()))
    }

    /// How many bytes at the end may become a stop string: the longest proper beginning of one.
    fn open_tail_bytes(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest.saturating_sub(1));
        let tails = (first..self.held.len()).filter_map(|start| self.held.get(start..));
        tails
            .filter(|tail| self.stops.iter().any(|stop| stop.starts_with(tail)))
            .map(str::len)
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(ToString::to_string).collect())
    }

    fn shown(text: &str, stopped: bool) -> Emit {
        Emit { text: text.to_owned(), stopped }
    }

    #[test]
    fn a_tail_that_may_become_a_stop_string_is_held_back() {
        let mut stream = stops(&["\n\nUser:"]);
        assert_eq!(stream.push("Paris.\n"), shown("Paris.", false));
        assert_eq!(stream.push("\nUs"), shown("", false));
        assert_eq!(stream.push("ual"), shown("\n\nUsual", false));
        assert_eq!(stream.push("\n\nUser: and"), shown("", true));
        assert_eq!(stream.push("more"), shown("", true));
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn what_was_held_back_is_shown_at_the_end() {
        let mut stream = stops(&["</answer>"]);
        assert_eq!(stream.push("1 < 2, </ans"), shown("1 < 2, ", false));
        assert_eq!(stream.finish(), "</ans");
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        // "b" is complete before "abc" is; of "bc" and "c" the longer one begins earlier.
        assert_eq!(stops(&["abc", "b"]).push("xabc"), shown("xa", true));
        assert_eq!(stops(&["c", "bc"]).push("xabc"), shown("xa", true));
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        assert_eq!(stops(&[]).push("text"), shown("text", false));
        assert_eq!(stops(&[""]).push("text"), shown("text", false));
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        let mut stream = stops(&["éé"]);
        assert_eq!(stream.push("è"), shown("è", false));
        assert_eq!(stream.push("é"), shown("", false));
        assert_eq!(stream.push("è"), shown("éè", false));
    }

    /// The whole text at once: the shortest beginning that ends with a stop string, without it.
    fn naive<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = stops.iter().filter(|stop| !stop.is_empty());
            let ending = ending.filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(longest) = ending.map(String::len).max() {
                return (&text[..end - longest], true);
            }
        }
        (text, false)
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_text_gives(
            pieces in proptest::collection::vec("[abé]{0,4}", 0..12),
            stops in proptest::collection::vec("[abé]{0,4}", 0..4),
        ) {
            let mut stream = StopStrings::new(stops.clone());
            let mut text = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let emit = stream.push(piece);
                text.push_str(&emit.text);
                stopped |= emit.stopped;
                let so_far = pieces.concat();
                prop_assert!(so_far.starts_with(&text), "nothing shown is ever taken back");
            }
            text.push_str(&stream.finish());
            let whole = pieces.concat();
            prop_assert_eq!((text.as_str(), stopped), naive(&whole, &stops));
        }
    }
}
