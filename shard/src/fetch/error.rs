//! Why something could not be fetched from the hub.

use std::io;
use std::path::PathBuf;

use ureq::http::StatusCode;

use super::client::is_passing;

/// A file that could not be fetched; the message says what may help.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The endpoint is no address.
    #[error(
        "the hub's address {endpoint:?} is not usable: HF_ENDPOINT is like https://huggingface.co"
    )]
    Endpoint {
        /// The address.
        endpoint: String,
    },
    /// The hub cannot be reached, or does not answer.
    #[error("cannot fetch {url}: check the network, or set HF_ENDPOINT to another hub")]
    Request {
        /// The address that was asked for.
        url: String,
        /// What went wrong.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The hub wants to know who asks, or whoever asks may not read the repository.
    #[error(
        "the hub does not give out {repository}: it does not exist, is private, or its licence has \
         to be accepted; {}",
        if *.with_token {
            "the token in HF_TOKEN may not read it"
        } else {
            "set HF_TOKEN to a token that may read it"
        }
    )]
    Refused {
        /// The repository.
        repository: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// There is no such repository.
    #[error("there is no repository {repository} on the hub, or it is private (set HF_TOKEN)")]
    NoRepository {
        /// The repository.
        repository: String,
    },
    /// There is no such revision.
    #[error("the repository {repository} has no such branch, tag or commit")]
    NoRevision {
        /// The repository with its revision.
        repository: String,
    },
    /// The repository lacks a file that every supported model has.
    #[error("the repository {repository} has no {file}; supported are models in safetensors files")]
    NoFile {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
    },
    /// Another answer than a hub gives.
    #[error("{url} answers with the status {status}")]
    Status {
        /// The address that was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// An answer without a header that a hub sends, or with a broken one.
    #[error("{url} answers without a usable {header} header: it is no Hugging Face hub")]
    Header {
        /// The address that was asked for.
        url: String,
        /// The header.
        header: &'static str,
    },
    /// The connection broke again and again.
    #[error(
        "{url} broke off again and again; {received} bytes are kept, and the next try goes on from \
         there"
    )]
    BrokeOff {
        /// The address that was asked for.
        url: String,
        /// Bytes that are here.
        received: u64,
        /// What broke the last attempt.
        #[source]
        source: io::Error,
    },
    /// More bytes than such a file has.
    #[error("{url} has more than {max} bytes, which is too much for such a file")]
    TooLarge {
        /// The address that was asked for.
        url: String,
        /// Bytes that are fetched at most.
        max: u64,
    },
    /// Bytes that are not those that the hub announced.
    #[error(
        "{url} came with other bytes than the hub announced (SHA-256 {found}, not {expected}); they \
         were deleted, try again"
    )]
    Digest {
        /// The address that was asked for.
        url: String,
        /// The digest that was announced.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The cache cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FetchError {
    /// Whether the hub is out of reach, or has too much to do, or is being mended: what was fetched before
    /// is as good then.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Request { .. } => true,
            Self::Status { status, .. } => StatusCode::from_u16(*status).is_ok_and(is_passing),
            Self::Endpoint { .. }
            | Self::Refused { .. }
            | Self::NoRepository { .. }
            | Self::NoRevision { .. }
            | Self::NoFile { .. }
            | Self::Header { .. }
            | Self::BrokeOff { .. }
            | Self::TooLarge { .. }
            | Self::Digest { .. }
            | Self::Write { .. } => false,
        }
    }
}
