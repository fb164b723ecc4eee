//! A server on this machine that answers as the Hugging Face hub does.
//!
//! Small files are answered directly, with an ETag that is no SHA-256; weights are answered with a
//! redirect to `/storage/`, whose headers give digest and size, as the hub does with its large files.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use sha2::{Digest as _, Sha256};

use super::super::HubConfig;

/// The repository that the server has.
pub(super) const REPOSITORY: &str = "owner/model";
/// Its one commit.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Longest head of a request that is read.
const HEAD_BYTES_MAX: u64 = 16 << 10;

/// How the server answers; changed by tests as they go.
#[derive(Default)]
pub(super) struct Behaviour {
    /// The files of the repository.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The token that a request must carry.
    pub(super) token: Option<String>,
    /// Ends this many answers from storage after half of their bytes.
    pub(super) cuts: usize,
    /// Sends the whole file whatever range is asked for.
    pub(super) ignores_ranges: bool,
    /// Announces the digest of other bytes.
    pub(super) lies: bool,
    /// Announces no digests and redirects nowhere, as a simple mirror.
    pub(super) plain: bool,
    /// Knows no HEAD.
    pub(super) no_head: bool,
    /// Answers with 503 whatever is asked of this file.
    pub(super) withheld: Option<&'static str>,
    /// Answers everything with this status.
    pub(super) status: Option<u16>,
    /// Names no commit.
    pub(super) no_commit: bool,
    /// The repository's former name, which is redirected.
    pub(super) former_name: Option<String>,
    /// What was asked for: method, path and range.
    pub(super) requests: Vec<String>,
}

/// The server; stops when it goes out of scope.
pub(super) struct Hub {
    address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<Mutex<bool>>,
}

impl Hub {
    pub(super) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let stop = Arc::new(Mutex::new(false));
        let (shared, stopped) = (Arc::clone(&behaviour), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if *stopped.lock().unwrap() {
                    return;
                }
                // A client that hangs up in the middle is its own affair.
                let _ = answer(&connection.unwrap(), &shared, address);
            }
        });
        Self { address, behaviour, thread: Some(thread), stop }
    }

    pub(super) fn config(&self) -> HubConfig {
        HubConfig { endpoint: format!("http://{}", self.address), token: None }
    }

    pub(super) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

    /// The requests since the last call.
    pub(super) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.behaviour().requests)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        *self.stop.lock().unwrap() = true;
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One request; every connection has one.
struct Request {
    method: String,
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(HEAD_BYTES_MAX)).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut request = Request { method, path, range: None, authorization: None };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            return Some(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    None
}

fn answer(
    mut stream: &TcpStream,
    behaviour: &Mutex<Behaviour>,
    address: SocketAddr,
) -> std::io::Result<()> {
    let Some(request) = read_request(stream) else {
        return Ok(());
    };
    let mut behaviour = behaviour.lock().unwrap();
    let range = request.range.clone().unwrap_or_default();
    behaviour
        .requests
        .push(format!("{} {} {range}", request.method, request.path).trim().to_owned());
    let response = respond(&request, &mut behaviour, address);
    drop(behaviour);
    let Response { status, headers, body, sent } = response;
    let mut head = format!("HTTP/1.1 {status} Answer\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&body[..sent])?;
    }
    stream.flush()
}

struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// How much of the body is sent before the connection ends.
    sent: usize,
}

impl Response {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        let sent = body.len();
        Self { status, headers, body, sent }
    }
}

fn respond(request: &Request, behaviour: &mut Behaviour, address: SocketAddr) -> Response {
    if let Some(status) = behaviour.status {
        return error(status, "");
    }
    if request.method == "HEAD" && behaviour.no_head {
        return Response::new(501, Vec::new(), Vec::new());
    }
    if let Some(token) = &behaviour.token
        && request.authorization.as_deref() != Some(&format!("Bearer {token}"))
    {
        return error(401, "GatedRepo");
    }
    if let Some(name) = request.path.strip_prefix("/storage/") {
        let Some(bytes) = behaviour.files.get(name).cloned() else {
            return error(404, "");
        };
        return from_storage(request, behaviour, bytes);
    }
    let former = behaviour.former_name.as_ref().map(|name| format!("/{name}/"));
    if let Some(rest) = former.and_then(|name| request.path.strip_prefix(&name).map(str::to_owned))
    {
        let location = vec![("Location", format!("/{REPOSITORY}/{rest}"))];
        return Response::new(307, location, Vec::new());
    }
    let Some(path) = request.path.strip_prefix(&format!("/{REPOSITORY}/resolve/")) else {
        return error(404, "RepoNotFound");
    };
    let Some((revision, name)) = path.split_once('/') else {
        return error(404, "");
    };
    if revision != "main" && revision != COMMIT {
        return error(404, "RevisionNotFound");
    }
    if behaviour.withheld == Some(name) {
        return error(503, "");
    }
    let Some(bytes) = behaviour.files.get(name).cloned() else {
        return error(404, "EntryNotFound");
    };
    let commit = ("X-Repo-Commit", COMMIT.to_owned());
    let mut headers = if behaviour.no_commit { Vec::new() } else { vec![commit] };
    if behaviour.plain || !name.ends_with(".safetensors") {
        headers.push(("ETag", "\"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0\"".to_owned()));
        let mut response = from_storage(request, behaviour, bytes);
        response.headers.extend(headers);
        return response;
    }
    let mut digest = Sha256::new();
    digest.update(if behaviour.lies { b"other bytes" } else { bytes.as_slice() });
    let digest: [u8; 32] = digest.finalize().into();
    headers.extend([
        ("X-Linked-Etag", format!("\"{}\"", super::super::download::hex(&digest))),
        ("X-Linked-Size", bytes.len().to_string()),
        ("Location", format!("http://{address}/storage/{name}")),
    ]);
    Response::new(302, headers, Vec::new())
}

fn from_storage(request: &Request, behaviour: &mut Behaviour, bytes: Vec<u8>) -> Response {
    let range = request.range.as_deref().filter(|_| !behaviour.ignores_ranges);
    let bounds = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let total = bytes.len();
    let mut response = match bounds {
        None => Response::new(200, Vec::new(), bytes),
        Some((start, end)) => {
            let start: usize = start.parse().unwrap();
            let end = end.parse().map_or(total, |last: usize| total.min(last + 1));
            if start >= end {
                return Response::new(416, Vec::new(), Vec::new());
            }
            let range = format!("bytes {start}-{}/{total}", end - 1);
            Response::new(206, vec![("Content-Range", range)], bytes[start..end].to_vec())
        }
    };
    if request.method == "GET" && behaviour.cuts > 0 {
        behaviour.cuts -= 1;
        response.sent /= 2;
    }
    response
}

fn error(status: u16, code: &str) -> Response {
    Response::new(status, vec![("X-Error-Code", code.to_owned())], Vec::new())
}
