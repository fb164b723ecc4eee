//! One file of the hub, fetched into the cache: resumed, verified, renamed.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;

use tracing::debug;
use ureq::http::{Response, StatusCode};
use ureq::{Body, BodyReader};

use super::FetchError;
use super::client::{Client, RemoteFile, pause_before};
use crate::manifest::Sha256Digest;
use crate::progress::{Progress, Work};
use crate::store::{Cache, FileLock, beside, hash_file};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 1 << 16;

/// A file that is wanted.
pub(super) struct Wanted<'a> {
    pub(super) url: String,
    /// Where it shall be.
    pub(super) target: &'a Path,
    /// What the hub says of it.
    pub(super) remote: &'a RemoteFile,
    /// The most bytes that such a file may have.
    pub(super) bytes_max: u64,
}

/// Fetches a file and gives its digest; `None` where another process has fetched it by the time the
/// lock is free.
pub(super) fn download(
    client: &Client,
    wanted: &Wanted,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Option<Sha256Digest>, FetchError> {
    let target = wanted.target;
    if wanted.remote.bytes.is_some_and(|bytes| bytes > wanted.bytes_max) {
        return Err(FetchError::TooLarge { url: wanted.url.clone(), max: wanted.bytes_max });
    }
    let _lock = FileLock::wait_for_fetch(&beside(target, "lock"), &name_of(target), progress)
        .map_err(write_error(target))?;
    if target.is_file() {
        return Ok(None);
    }
    let part = beside(target, "part");
    let resumed = part.metadata().is_ok_and(|metadata| metadata.len() > 0);
    let digest = match fetch_and_verify(client, wanted, &part, progress) {
        // What was here before may be what is wrong.
        Err(FetchError::Digest { .. }) if resumed => {
            debug!(url = wanted.url, "a resumed file had other bytes; fetching it whole");
            fetch_and_verify(client, wanted, &part, progress)?
        }
        digest => digest?,
    };
    fs::rename(&part, target).map_err(write_error(target))?;
    cache.remember_digest(target, digest);
    Ok(Some(digest))
}

/// Fetches what is missing of the part and holds it against the digest; deletes it where it is wrong.
fn fetch_and_verify(
    client: &Client,
    wanted: &Wanted,
    part: &Path,
    progress: &dyn Progress,
) -> Result<Sha256Digest, FetchError> {
    fetch(client, wanted, part, progress)?;
    let found = hash_file(part, progress).map_err(write_error(part))?;
    match wanted.remote.sha256 {
        Some(expected) if expected != found => {
            fs::remove_file(part).map_err(write_error(part))?;
            let (expected, found) = (hex(&expected), hex(&found));
            Err(FetchError::Digest { url: wanted.url.clone(), expected, found })
        }
        Some(_) | None => Ok(found),
    }
}

/// Fetches what is missing of the part, over as many connections as it takes.
fn fetch(
    client: &Client,
    wanted: &Wanted,
    part: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let mut failures = 0;
    loop {
        let mut file =
            File::options().create(true).append(true).open(part).map_err(write_error(part))?;
        let before = file.metadata().map_err(write_error(part))?.len();
        if wanted.remote.bytes.is_some_and(|bytes| before > bytes) {
            file.set_len(0).map_err(write_error(part))?;
            continue;
        }
        if before > 0 && wanted.remote.bytes == Some(before) {
            return Ok(());
        }
        let broken = match fetch_once(client, wanted, &mut file, before, progress)? {
            Attempt::Complete => {
                return file.sync_all().map_err(write_error(part));
            }
            Attempt::StartOver => {
                file.set_len(0).map_err(write_error(part))?;
                io::Error::other("the hub refuses to go on from there")
            }
            Attempt::Broken(error) => error,
        };
        let received = file.metadata().map_err(write_error(part))?.len();
        // A connection that brought something was worth it, however often it breaks.
        failures = if received > before { 0 } else { failures + 1 };
        let Some(pause) = pause_before(failures) else {
            return Err(FetchError::BrokeOff { url: wanted.url.clone(), received, source: broken });
        };
        debug!(url = wanted.url, received, "a download broke off; going on");
        thread::sleep(pause);
    }
}

/// How one connection ended.
enum Attempt {
    /// The file is whole.
    Complete,
    /// What is here is of no use.
    StartOver,
    /// The connection broke.
    Broken(io::Error),
}

fn fetch_once(
    client: &Client,
    wanted: &Wanted,
    file: &mut File,
    start: u64,
    progress: &dyn Progress,
) -> Result<Attempt, FetchError> {
    let response = client.get(&wanted.url, start)?;
    let mut have = start;
    match response.status() {
        StatusCode::OK => {
            // The whole file comes, asked for or not.
            file.set_len(0).map_err(write_error(wanted.target))?;
            have = 0;
        }
        StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(start) => {}
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            return Ok(Attempt::StartOver);
        }
        status => {
            return Err(FetchError::Status { url: wanted.url.clone(), status: status.as_u16() });
        }
    }
    let total = wanted.remote.bytes;
    let label = format!("fetching {}", name_of(wanted.target));
    let work = Work::start(progress, total, &label);
    work.advance(have);
    let mut reader = response.into_body().into_reader();
    let limit = total.unwrap_or(wanted.bytes_max);
    loop {
        let mut chunk = [0; CHUNK_BYTES];
        let count = match read(&mut reader, &mut chunk) {
            Ok(0) if total.is_none_or(|total| have == total) => return Ok(Attempt::Complete),
            Ok(0) => return Ok(Attempt::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error) => return Ok(Attempt::Broken(error)),
        };
        have += count as u64;
        if have > limit {
            return Err(FetchError::TooLarge { url: wanted.url.clone(), max: limit });
        }
        file.write_all(&chunk[..count]).map_err(write_error(wanted.target))?;
        work.advance(count as u64);
    }
}

fn read(reader: &mut BodyReader<'static>, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// What a file is called in what people are told.
fn name_of(target: &Path) -> Cow<'_, str> {
    target.file_name().unwrap_or_default().to_string_lossy()
}

/// Where the bytes of a partial answer begin: `bytes 100-199/200`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// The digits of a digest, for a message.
pub(crate) fn hex(digest: &Sha256Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> FetchError + use<'_> {
    |source| FetchError::Write { path: path.to_owned(), source }
}
