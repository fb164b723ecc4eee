//! Where the lines of a chat come from: a person at a terminal, or a pipe.

use std::fs;
use std::io::{IsTerminal as _, stdin};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::line::Line;
use crate::telemetry::say;

/// Where lines come from.
pub(super) enum Lines {
    Terminal(Box<Terminal>),
    Pipe,
}

/// An editor, and the file in which what was typed outlives it.
pub(super) struct Terminal {
    editor: DefaultEditor,
    history: Option<PathBuf>,
}

impl Lines {
    /// At a terminal with the history in a file, if one is named.
    pub(super) fn open(history: Option<PathBuf>) -> anyhow::Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        say("Ask away. Ctrl-C stops an answer, Ctrl-D ends the chat, /help shows more.");
        let mut editor = DefaultEditor::new().context("the terminal cannot be read")?;
        if let Some(file) = &history {
            recall(&mut editor, file);
        }
        Ok(Self::Terminal(Box::new(Terminal { editor, history })))
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Line>> {
        match self {
            Self::Terminal(terminal) => terminal.next(),
            Self::Pipe => {
                let mut line = String::new();
                let read = stdin().read_line(&mut line).context("stdin cannot be read")?;
                Ok((read > 0).then(|| Line::parse(&line)))
            }
        }
    }
}

impl Terminal {
    fn next(&mut self) -> anyhow::Result<Option<Line>> {
        loop {
            match self.editor.readline("> ") {
                Ok(line) => {
                    let added = self.editor.add_history_entry(line.as_str())?;
                    if let (true, Some(file)) = (added, &self.history) {
                        // At once, since a program may end in many ways.
                        keep(&mut self.editor, file);
                    }
                    return Ok(Some(Line::parse(&line)));
                }
                Err(ReadlineError::Interrupted) => say("(Ctrl-D ends the chat)"),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error).context("the terminal cannot be read"),
            }
        }
    }
}

/// Takes over what was typed before. Without it a chat goes on all the same.
fn recall(editor: &mut DefaultEditor, file: &Path) {
    if file.exists()
        && let Err(error) = editor.load_history(file)
    {
        tracing::warn!(%error, file = %file.display(), "the history cannot be read");
    }
}

fn keep(editor: &mut DefaultEditor, file: &Path) {
    if let Some(folder) = file.parent() {
        // Why it failed shows in the next step.
        let _exists_or_not = fs::create_dir_all(folder);
    }
    // Others of the user may have added to it meanwhile, hence not written anew.
    if let Err(error) = editor.append_history(file) {
        tracing::warn!(%error, file = %file.display(), "the history cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use rustyline::history::{History as _, SearchDirection};

    use super::*;

    #[test]
    fn what_was_typed_is_there_for_the_next_chat_and_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a folder/chat-history");
        for line in ["one", "two"] {
            let mut editor = DefaultEditor::new().unwrap();
            recall(&mut editor, &file);
            editor.add_history_entry(line).unwrap();
            keep(&mut editor, &file);
        }
        let mut editor = DefaultEditor::new().unwrap();
        recall(&mut editor, &file);
        let at = |index| {
            let found = editor.history().get(index, SearchDirection::Forward).unwrap();
            found.map(|found| found.entry.into_owned())
        };
        assert_eq!([at(0), at(1), at(2)], [Some("one".into()), Some("two".into()), None]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{mode:o}");
        }
    }
}
