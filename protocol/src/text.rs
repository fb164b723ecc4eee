//! What a stranger says in words of its own: to be read by people, and believed by nobody.

/// Of such words what prints safely on one line of a terminal or a log: blanks take the place of line ends
/// and tabs, and other control characters are left out, as are those that show nothing and turn the
/// direction of what follows, or hide in it.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => Some(' '),
        c if c.is_control() || is_format(c) => None,
        c => Some(c),
    };
    text.chars().filter_map(shown).collect()
}

const fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_says_moves_no_cursor_and_turns_no_line() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}c\u{9b}d\u{7f}"), "a[2Jb cd");
        assert_eq!(printable("über 30 %, 東京 🙂"), "über 30 %, 東京 🙂");
    }
}
