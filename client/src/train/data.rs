//! Data sets: a file of JSON lines, each a text to learn from.
//!
//! | a line has | what is learned |
//! |---|---|
//! | `messages`: a list of `role`, `content` and perhaps `weight` | what the assistant says, unless its weight is 0 |
//! | `prompt` and `completion` | the completion, and that it ends |
//! | `text` | all of it |
//! | `token_ids` | all of them |
//!
//! A conversation is one text, unless the model's template forgets parts of what was said: then each
//! answer is a text of its own, behind what the model is told when it is asked for it.

mod conversation;
mod line;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use umbel_coordinator::random::Random;

pub use line::{LineError, TextReader};

/// The longest line: some million words.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Most broken lines that an error names.
const BROKEN_LINES_NAMED: usize = 5;

/// Tokens, and which of them are to be foretold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    ids: Vec<u32>,
    learned: Vec<bool>,
}

impl Example {
    /// A text of which every token is learned but the first, before which there is nothing.
    #[must_use]
    pub fn of_text(ids: Vec<u32>) -> Self {
        let learned = vec![true; ids.len()];
        Self { ids, learned }
    }

    /// Texts one after the other, of which some are learned.
    fn of_parts(parts: impl IntoIterator<Item = (Vec<u32>, bool)>) -> Self {
        let mut example = Self { ids: Vec::new(), learned: Vec::new() };
        for (ids, learned) in parts {
            example.learned.resize(example.learned.len() + ids.len(), learned);
            example.ids.extend(ids);
        }
        example
    }

    /// No more than the first tokens.
    #[must_use]
    fn cut(mut self, tokens_max: usize) -> Self {
        self.ids.truncate(tokens_max);
        self.learned.truncate(tokens_max);
        self
    }

    /// What goes through the model: all tokens but the last, behind which nothing is foretold.
    #[must_use]
    pub fn inputs(&self) -> &[u32] {
        &self.ids[..self.input_count()]
    }

    /// For each of the inputs the token that should follow it, where that is learned.
    pub fn targets(&self) -> impl Iterator<Item = Option<u32>> {
        let next = self.ids.iter().zip(&self.learned).skip(1);
        next.map(|(&id, &learned)| learned.then_some(id))
    }

    /// How many tokens go through the model.
    #[must_use]
    pub const fn input_count(&self) -> usize {
        self.ids.len().saturating_sub(1)
    }

    /// How many are to be foretold.
    #[must_use]
    pub fn target_count(&self) -> usize {
        self.targets().flatten().count()
    }
}

/// What a file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSet {
    /// Its texts, of at least one token to learn each.
    pub examples: Vec<Example>,
    /// How many of them each line gave, in their order: answers of one conversation may be texts of their
    /// own.
    of_lines: Vec<usize>,
    /// Texts that were longer than allowed, and cut.
    pub cut: usize,
    /// Texts in which nothing was left to learn.
    pub left_out: usize,
}

impl DataSet {
    /// Reads a file of JSON lines, for texts of at most so many tokens.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read, or has broken lines or no text.
    pub fn read(
        path: &Path,
        reader: &TextReader<'_>,
        tokens_max: usize,
    ) -> Result<Self, DataError> {
        let failed = |source| DataError::File { path: path.to_owned(), source };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let (mut examples, mut cut, mut left_out) = (Vec::new(), 0, 0);
        let mut of_lines = Vec::new();
        let mut broken = Vec::new();
        for number in 1_usize.. {
            let mut line = Vec::new();
            let length = file.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            let length = length.map_err(failed)? as u64;
            if length == 0 {
                break;
            }
            if length > LINE_BYTES_MAX {
                broken.push((number, LineError::TooLong { max: LINE_BYTES_MAX }));
                // Where the next line begins is not known.
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match reader.parse(&line, tokens_max) {
                Ok(texts) => {
                    left_out += usize::from(texts.is_empty());
                    let before = examples.len();
                    for example in texts {
                        cut += usize::from(example.ids.len() > tokens_max);
                        let example = example.cut(tokens_max);
                        if example.target_count() == 0 {
                            left_out += 1;
                        } else {
                            examples.push(example);
                        }
                    }
                    of_lines.push(examples.len() - before);
                }
                Err(error) => broken.push((number, error)),
            }
        }
        if !broken.is_empty() {
            let count = broken.len();
            broken.truncate(BROKEN_LINES_NAMED);
            let path = path.to_owned();
            return Err(DataError::Broken { path, count, lines: BrokenLines(broken) });
        }
        if examples.is_empty() {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        of_lines.retain(|&count| count > 0);
        Ok(Self { examples, of_lines, cut, left_out })
    }

    /// Takes the texts of a share of the lines out, for validation: the same ones for the same seed, and at
    /// least those of one line where there are two and a share is wanted.
    #[must_use]
    pub fn split(self, share: f64, seed: u64) -> (Vec<Example>, Vec<Example>) {
        let mut texts = self.examples.into_iter();
        let lines = self.of_lines.iter().map(|&count| texts.by_ref().take(count).collect());
        let mut lines: Vec<Vec<_>> = lines.collect();
        let count = lines.len();
        shuffle(&mut lines, seed);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let wanted = (count as f64 * share.clamp(0.0, 1.0)).round() as usize;
        let least = usize::from(share > 0.0);
        let taken = wanted.max(least).min(count.saturating_sub(1));
        let validation = lines.split_off(count - taken);
        (lines.into_iter().flatten().collect(), validation.into_iter().flatten().collect())
    }
}

/// Puts items in an order that follows from the seed (Fisher and Yates).
pub(super) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut random = Random::new(seed);
    for end in (1..items.len()).rev() {
        items.swap(end, random.below(end + 1));
    }
}

/// A file that is no data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be read.
    #[error("{}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Some lines make no text.
    #[error("{}: {count} broken lines: {lines}", path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// The first of them.
        lines: BrokenLines,
    },
    /// There is nothing to learn in it.
    #[error("{}: no text with a token to learn", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
}

/// The first broken lines of a file, by their numbers.
#[derive(Debug)]
pub struct BrokenLines(pub Vec<(usize, LineError)>);

impl std::fmt::Display for BrokenLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, (number, error)) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}line {number}: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
