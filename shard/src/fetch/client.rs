//! Requests to the hub.
//!
//! The hub answers a request for a file with the commit (`X-Repo-Commit`) and the digest; large files
//! lie elsewhere, and their answer is a redirect whose `X-Linked-Etag` is their SHA-256.

use std::thread;
use std::time::Duration;

use tracing::debug;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};

use super::{FetchError, HubConfig, HubRepository};
use crate::manifest::Sha256Digest;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for the next bytes: the hub's storage sometimes takes some seconds to begin.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The pauses before another attempt; the first comes at once, as most breaks are of one connection.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];
/// Most redirects within the hub; a renamed repository needs one.
const REDIRECTS_MAX: usize = 5;

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// SHA-256 of its bytes, where the hub knows it: of all large files.
    pub(super) sha256: Option<Sha256Digest>,
    /// Its length, where the hub says it.
    pub(super) bytes: Option<u64>,
}

/// A hub.
pub(super) struct Client {
    /// Follows no redirect.
    direct: Agent,
    /// Follows redirects, but sends the token to the hub alone.
    following: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(hub: &HubConfig) -> Result<Self, FetchError> {
        let endpoint = hub.endpoint.trim_end_matches('/').to_owned();
        let usable = ["http://", "https://"]
            .iter()
            .any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|host| !host.is_empty()));
        if !usable || endpoint.contains(char::is_whitespace) {
            return Err(FetchError::Endpoint { endpoint: hub.endpoint.clone() });
        }
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(READ_TIMEOUT))
                .timeout_per_read(Some(READ_TIMEOUT))
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .user_agent(concat!("umbel/", env!("CARGO_PKG_VERSION")))
                // The lengths and ranges must be those of the file itself.
                .accept_encoding("identity")
        };
        let direct = config().max_redirects(0).build().new_agent();
        let following = config().build().new_agent();
        Ok(Self { direct, following, endpoint, token: hub.token.clone() })
    }

    /// The address of a file.
    pub(super) fn url(&self, repository: &HubRepository, revision: &str, file: &str) -> String {
        format!("{}/{}", self.endpoint, repository.file_path(revision, file))
    }

    /// What the hub says of a file, and the commit it said it of; `None` where there is no such file.
    pub(super) fn describe(
        &self,
        repository: &HubRepository,
        revision: &str,
        file: &str,
    ) -> Result<Option<(String, RemoteFile)>, FetchError> {
        let mut url = self.url(repository, revision, file);
        for _ in 0..REDIRECTS_MAX {
            let response = self.ask(&url)?;
            // Only a redirect within the hub is followed: the headers are those of its last answer.
            match location(&response) {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                    url = format!("{}{path}", self.origin());
                }
                Some(_) | None => return self.read_answer(&response, repository, &url),
            }
        }
        Err(FetchError::Status { url, status: StatusCode::LOOP_DETECTED.as_u16() })
    }

    /// A file from byte `start` on; answers with any status that no other attempt would change.
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Response<Body>, FetchError> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        retrying(url, || {
            let mut request = self.following.get(url);
            if let Some(token) = &self.token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(range) = &range {
                request = request.header(header::RANGE, range);
            }
            request.call()
        })
    }

    /// Asks for the headers of a file's answer.
    fn ask(&self, url: &str) -> Result<Response<Body>, FetchError> {
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let response = retrying(url, || {
            let mut request = self.direct.head(url);
            if let Some(authorization) = &authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request.call()
        })?;
        let status = response.status();
        if status != StatusCode::METHOD_NOT_ALLOWED && status != StatusCode::NOT_IMPLEMENTED {
            return Ok(response);
        }
        // A mirror that knows no HEAD gives the same headers with the file's first byte.
        retrying(url, || {
            let mut request = self.direct.get(url).header(header::RANGE, "bytes=0-0");
            if let Some(authorization) = &authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request.call()
        })
    }

    fn read_answer(
        &self,
        response: &Response<Body>,
        repository: &HubRepository,
        url: &str,
    ) -> Result<Option<(String, RemoteFile)>, FetchError> {
        let status = response.status();
        let headers = response.headers();
        if !status.is_success() && !status.is_redirection() {
            return self.read_refusal(status, headers, repository, url).map(|()| None);
        }
        let commit = text(headers, "x-repo-commit").filter(|commit| {
            (1..=64).contains(&commit.len()) && commit.bytes().all(|b| b.is_ascii_alphanumeric())
        });
        let no_commit = || FetchError::Header { url: url.to_owned(), header: "X-Repo-Commit" };
        let commit = commit.ok_or_else(no_commit)?.to_owned();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let length = text(headers, "x-linked-size")
            .or_else(|| text(headers, "content-range").and_then(|range| range.rsplit('/').next()))
            .or_else(|| text(headers, "content-length").filter(|_| status == StatusCode::OK));
        let bytes = length.and_then(|length| length.parse().ok());
        Ok(Some((commit, RemoteFile { sha256: etag.and_then(parse_sha256), bytes })))
    }

    /// `Ok` where the refusal says no more than that there is no such file.
    fn read_refusal(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        repository: &HubRepository,
        url: &str,
    ) -> Result<(), FetchError> {
        let repository = repository.to_string();
        let with_token = self.token.is_some();
        match (status, text(headers, "x-error-code")) {
            (_, Some("RevisionNotFound")) => Err(FetchError::NoRevision { repository }),
            (StatusCode::NOT_FOUND, Some("RepoNotFound")) => {
                Err(FetchError::NoRepository { repository })
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                Err(FetchError::Refused { repository, with_token })
            }
            (StatusCode::NOT_FOUND, _) => Ok(()),
            (status, _) => Err(FetchError::Status { url: url.to_owned(), status: status.as_u16() }),
        }
    }

    /// The endpoint without a path, to which absolute paths belong.
    fn origin(&self) -> &str {
        let host = self.endpoint.find("://").map_or(0, |scheme| scheme + 3);
        let end = self.endpoint[host..].find('/').map_or(self.endpoint.len(), |path| host + path);
        &self.endpoint[..end]
    }
}

/// The pauses between attempts, for those who count them themselves. Tests do not wait.
pub(super) fn pause_before(attempt: usize) -> Option<Duration> {
    PAUSES.get(attempt).map(|pause| if cfg!(test) { Duration::ZERO } else { *pause })
}

/// Whether a hub with this answer may give another one later.
pub(super) fn is_passing(status: StatusCode) -> bool {
    let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
    passing.contains(&status) || status.is_server_error()
}

/// Sends a request until it is answered in a way that another attempt would not change.
fn retrying(
    url: &str,
    send: impl Fn() -> Result<Response<Body>, ureq::Error>,
) -> Result<Response<Body>, FetchError> {
    let mut attempt = 0;
    loop {
        let answer = send();
        let again = match &answer {
            Ok(response) => {
                let status = response.status();
                is_passing(status) && status != StatusCode::NOT_IMPLEMENTED
            }
            Err(error) => matches!(
                error,
                ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed
            ),
        };
        match pause_before(attempt).filter(|_| again && !is_refused(&answer)) {
            Some(pause) => {
                debug!(url, attempt, "asking the hub again");
                thread::sleep(pause);
            }
            None => {
                return answer.map_err(|source| FetchError::Request {
                    url: url.to_owned(),
                    source: Box::new(source),
                });
            }
        }
        attempt += 1;
    }
}

/// Whether nobody listens there, which a pause of some seconds does not change.
fn is_refused(answer: &Result<Response<Body>, ureq::Error>) -> bool {
    matches!(answer, Err(ureq::Error::Io(error))
        if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn location(response: &Response<Body>) -> Option<&str> {
    let redirect = response.status().is_redirection();
    text(response.headers(), "location").filter(|_| redirect)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The SHA-256 in an ETag; the ETags of small files are SHA-1 and of no use here.
fn parse_sha256(etag: &str) -> Option<Sha256Digest> {
    let digits = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().as_chunks::<2>().0) {
        let digit = |character: u8| char::from(character).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(digest)
}
