//! What a line of a chat is: a question, or something that is asked of the program.

use std::path::PathBuf;

/// What `/help` prints.
pub(super) const HELP: &str = "\
/system TEXT   begin anew, and tell the model how to behave; without TEXT as if nothing was told
/new           begin anew, with what the model was told
/save FILE     write the conversation as a line of JSON, as `umbel train` reads it
/quit          end the chat
/help          this
//TEXT         ask TEXT with a slash before it
Ctrl-C stops an answer, Ctrl-D ends the chat.";

/// A line that was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing.
    Empty,
    /// What the model is asked.
    Question(String),
    /// What can be typed here?
    Help,
    /// Forget what was said.
    New,
    /// Forget what was said, and tell the model this, or nothing.
    System(Option<String>),
    /// Write down what was said.
    Save(PathBuf),
    /// The end.
    Quit,
    /// A command that cannot be followed, and why.
    Wrong(String),
}

impl Line {
    pub(super) fn parse(line: &str) -> Self {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() { Self::Empty } else { Self::Question(line.to_owned()) };
        };
        if command.starts_with('/') {
            return Self::Question(command.to_owned());
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("help" | "?", "") => Self::Help,
            ("new", "") => Self::New,
            ("quit" | "exit", "") => Self::Quit,
            ("system", "") => Self::System(None),
            ("system", text) => Self::System(Some(text.to_owned())),
            ("save", "") => Self::Wrong("/save needs the name of a file".to_owned()),
            ("save", file) => Self::Save(PathBuf::from(file)),
            ("help" | "?" | "new" | "quit" | "exit", _) => {
                Self::Wrong(format!("/{name} stands alone"))
            }
            _ => Self::Wrong(format!(
                "/{name} is no command: /help shows them, //{name} asks the model"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_question_unless_it_begins_with_one_slash() {
        let question = |text: &str| Line::Question(text.to_owned());
        assert_eq!(Line::parse(" What is 1/2?\n"), question("What is 1/2?"));
        assert_eq!(Line::parse("//usr/bin is what?"), question("/usr/bin is what?"));
        assert_eq!(Line::parse(" \n"), Line::Empty);
    }

    #[test]
    fn commands_are_read_with_what_they_need() {
        assert_eq!(Line::parse("/help"), Line::Help);
        assert_eq!(Line::parse("/new "), Line::New);
        assert_eq!(Line::parse("/exit"), Line::Quit);
        assert_eq!(Line::parse("/system"), Line::System(None));
        assert_eq!(Line::parse("/system  be brief "), Line::System(Some("be brief".to_owned())));
        assert_eq!(Line::parse("/save my chat.jsonl"), Line::Save("my chat.jsonl".into()));
    }

    #[test]
    fn a_command_that_cannot_be_followed_says_why() {
        for (line, why) in [("/save", "file"), ("/quit now", "alone"), ("/usr/bin?", "no command")]
        {
            let Line::Wrong(said) = Line::parse(line) else { panic!("{line} was understood") };
            assert!(said.contains(why), "{line}: {said}");
        }
    }

    #[test]
    fn the_help_names_every_command() {
        for line in HELP.lines().filter(|line| line.starts_with('/') && !line.starts_with("//")) {
            let command = line.split("  ").next().unwrap();
            assert!(!matches!(Line::parse(command), Line::Wrong(_)), "{command}");
        }
    }
}
