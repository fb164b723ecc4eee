//! Why hops lost their places, from what a client's log says.

use std::collections::BTreeMap;

/// What the log says of each hop that is given up.
const GIVEN_UP: &str = "a hop loses its place";

/// What stands before the reason.
const BEFORE_REASON: &str = "failed the session: ";

/// How often each reason stands in the log. Numbers and names of peers are left out, so that what is
/// alike counts as the same.
pub(super) fn count(log: &str) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(GIVEN_UP)) {
        let reason = line.split_once(BEFORE_REASON).map_or(line, |(_, reason)| reason);
        *reasons.entry(without_numbers(reason)).or_default() += 1;
    }
    reasons
}

fn without_numbers(reason: &str) -> String {
    let words = reason.split_whitespace();
    let plain = |word: &&str| !word.contains(|c: char| c.is_ascii_digit());
    words.filter(plain).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_counts_as_the_same() {
        let log = "INFO umbel: a hop loses its place failure=12D3KooW1 (0..10) failed the session: it \
                   was silent for 0.3 s\n\
                   WARN umbel: something else failed the session: no\n\
                   INFO umbel: a hop loses its place failure=12D3KooW2 (0..10) failed the session: it \
                   was silent for 1.2 s\n";
        assert_eq!(count(log), BTreeMap::from([("it was silent for s".to_owned(), 2)]));
    }
}
