//! Models from the Hugging Face hub: only the files that are needed, resumed where they were cut off.
//!
//! hf-hub names the addresses; requests go through ureq, the client that it uses itself, because its
//! own download (0.5) trusts the hub more than a volunteer should: it appends whatever answers a
//! request for the rest of a file, makes a path of the ETag as it comes, and checks no digest.
//!
//! Everything is asked for at the commit that the revision stands for when a model is opened, so that
//! its files belong together. What the hub says of a file of a commit can never change and is kept in
//! the cache's index; a model that was fetched before opens without the hub.

use std::fmt;

mod client;
mod download;
mod error;
mod repository;
mod snapshot;

pub use error::FetchError;
pub use repository::{HubRepository, InvalidRepository};
pub(crate) use snapshot::checkpoint;

#[cfg(test)]
mod tests;

/// Which hub to fetch from, and who asks.
///
/// The caller fills it from `HF_ENDPOINT` and `HF_TOKEN`; nothing here reads the environment.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Where the hub is, such as `https://huggingface.co`.
    pub endpoint: String,
    /// A token that may read the repositories, for those that are not open to all.
    pub token: Option<String>,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), token: None }
    }
}

impl fmt::Debug for HubConfig {
    /// Never the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .finish()
    }
}
