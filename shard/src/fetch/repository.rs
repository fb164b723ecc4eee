//! The name of a repository of the hub.

use std::fmt;

use hf_hub::{Repo, RepoType};

/// A model's repository at a revision: `owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubRepository {
    owner: String,
    name: String,
    revision: Option<String>,
}

/// The revision that is meant where none is named.
const DEFAULT_REVISION: &str = "main";
/// Longest owner or name that the hub allows.
const NAME_BYTES_MAX: usize = 96;
/// Longest revision that is read; branches and tags are short, a commit has 40 digits.
const REVISION_BYTES_MAX: usize = 128;

impl HubRepository {
    /// Reads `owner/name` or `owner/name@revision`.
    ///
    /// # Errors
    /// [`InvalidRepository`] where a part is missing or has characters that the hub does not allow.
    pub fn parse(text: &str) -> Result<Self, InvalidRepository> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (owner, name) = repository.split_once('/').ok_or(InvalidRepository::Form)?;
        if !is_name(owner) || !is_name(name) {
            return Err(InvalidRepository::Name);
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(InvalidRepository::Revision);
        }
        let (owner, name) = (owner.to_owned(), name.to_owned());
        Ok(Self { owner, name, revision: revision.map(str::to_owned) })
    }

    /// Who the repository belongs to.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The name of the repository.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The path of a file's address at `revision`, below the endpoint.
    pub(super) fn file_path(&self, revision: &str, file: &str) -> String {
        let id = format!("{}/{}", self.owner, self.name);
        let repo = Repo::with_revision(id, RepoType::Model, revision.to_owned());
        format!("{}/resolve/{}/{file}", repo.url(), repo.url_revision())
    }
}

impl fmt::Display for HubRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// The hub's own rule: letters, digits, `-`, `_`, `.`; no `--` and no `..`; neither at an end.
fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.contains("--")
        && !text.contains("..")
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
}

/// Branches may have slashes; nothing may look like a path out of a folder.
fn is_revision(text: &str) -> bool {
    (1..=REVISION_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
        && !text.contains("..")
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with(['-', '.']))
}

/// A text that names no repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRepository {
    /// No owner, or no name.
    #[error("a repository is written OWNER/NAME or OWNER/NAME@REVISION")]
    Form,
    /// A name that the hub does not allow.
    #[error("owner and name have up to 96 letters, digits, -, _ and ., without -- or ..")]
    Name,
    /// A revision that the hub does not allow.
    #[error("a revision is a branch, a tag or a commit: letters, digits, -, _, . and /")]
    Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_survives_its_text() {
        for text in ["a/b", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b@main", "a/b@refs/pr/1"] {
            assert_eq!(HubRepository::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HubRepository::parse("a/b").unwrap().revision(), "main");
    }

    #[test]
    fn texts_that_could_lead_elsewhere_are_refused() {
        let texts = [
            "", "a", "/", "a/", "/b", "../b", "a/..", "a/b/c", "a/b@", "a/b@..", "a/b@../c",
            "a/b@/x", "a b/c", "a/b?x", "a/b@x y", "a/b@x#y", "a--b/c", "a/.b", "é/b",
        ];
        for text in texts {
            assert!(HubRepository::parse(text).is_err(), "{text}");
        }
        assert!(HubRepository::parse(&format!("a/{}", "b".repeat(97))).is_err());
    }

    #[test]
    fn a_revision_with_a_slash_is_one_part_of_the_address() {
        let repository = HubRepository::parse("a/b@refs/pr/1").unwrap();
        let path = repository.file_path(repository.revision(), "config.json");
        assert_eq!(path, "a/b/resolve/refs%2Fpr%2F1/config.json");
    }
}
