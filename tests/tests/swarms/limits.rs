//! What a host keeps for itself: a part of its connection, hours of the day, a machine in use.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use umbel_client::{Chain, RemoteChain, hidden_states};
use umbel_tests::process::Output;
use umbel_tests::swarm::{Server, checkpoint, report, serve, serve_in, try_serve_in, umbel};
use umbel_tests::training::join;
use umbel_tests::workload::client_model;

/// How long a server may take to say that it pauses, on a machine that runs many tests at once.
const HEARD_TIMEOUT: Duration = Duration::from_secs(60);

fn ask(server: &Server, tokens: &str) -> Output {
    let (model, join) = (checkpoint("llama"), server.address());
    let what = ["generate", "--model", &model, "--json", "--prompt-ids", "1,2,3", "--ignore-eos"];
    umbel(&[&what[..], &["--max-tokens", tokens, "--patience", "1", "--join", join]].concat())
}

/// Waits until the server says of itself that it takes no session, or that it does, and does
/// something meanwhile.
fn wait_until(server: &Server, pauses: bool, mut meanwhile: impl FnMut()) {
    let deadline = Instant::now() + HEARD_TIMEOUT;
    loop {
        let status = report(&umbel(&["status", "--json", "--join", server.address()]));
        if status["servers"].as_array().unwrap().iter().all(|one| one["draining"] == pauses) {
            return;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        meanwhile();
    }
}

/// A figure that a server has for Prometheus.
fn counted(at: &str, name: &str) -> f64 {
    let address = at.trim_start_matches("http://").trim_end_matches("/metrics");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
    line.trim().parse().unwrap()
}

/// The slowest that a link may be.
const RATE: f64 = 125_000.0;

/// Texts that are read one after the other, and the tokens of each.
const TEXTS: u32 = 8;
const TOKENS: u32 = 250;

/// Has every row of some texts, and returns how many bytes a server with this limit counted meanwhile, and
/// how many seconds it took.
async fn read(limit: &str, counts: &str) -> (f64, f64) {
    let model = checkpoint("llama");
    let limits = [limit, "125000", "--metrics", "127.0.0.1:0"];
    let server = serve(&[&[model.as_str(), "--blocks", "0..4"], &limits[..]].concat());
    let log = server.stderr();
    let at = log.split("metrics at ").nth(1).unwrap().split_whitespace().next().unwrap();
    let (swarm, client) = (join(&server).await.unwrap(), client_model(&model).unwrap());

    let (before, started) = (counted(at, counts), Instant::now());
    for text in 0..TEXTS {
        // Nothing of it is kept from an earlier one.
        let ids: Vec<u32> = (0..TOKENS).map(|token| (token + text) % 200).collect();
        let chain = RemoteChain::open(Arc::clone(&swarm), &client, TOKENS).await.unwrap();
        let chain = Chain::Remote(Box::new(chain));
        let rows = hidden_states(&client, chain, &ids).await.unwrap();
        assert_eq!(rows.token_count(), TOKENS as usize);
    }
    let seconds = started.elapsed().as_secs_f64();
    let bytes = counted(at, counts) - before;
    server.assert_no_errors();
    (bytes, seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_take_as_long_as_the_limit_says_and_no_session_fails() {
    for (limit, counts) in [
        ("--upload-limit", "umbel_sent_bytes_total"),
        ("--download-limit", "umbel_received_bytes_total"),
    ] {
        let (bytes, seconds) = read(limit, counts).await;
        // A hidden state of 64 values for each token, which may be packed on such a slow link.
        let text = f64::from(TOKENS) * 64.0 * 4.0;
        assert!(bytes > f64::from(TEXTS) * text * 0.8, "{limit}: {bytes}");
        // What the bucket holds goes at once, and what is read last is paid for afterwards.
        let least = (bytes - 0.1 * RATE - text - 2_000.0) / RATE;
        assert!(seconds >= least, "{limit}: {bytes} in {seconds} s");
    }
}

/// A time of the day, so many hours from now, in UTC.
fn hour(from_now: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let minutes = (now / 60 + from_now * 60) % (24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

#[test]
fn outside_of_its_hours_a_server_pauses() {
    let model = checkpoint("llama");
    let serves = |hours: &str| serve_in(&[("TZ", "UTC")], &[&model, "--hours", hours]);
    let inside = serves(&format!("{}-{}", hour(23), hour(2)));
    assert_eq!(report(&ask(&inside, "5"))["token_ids"].as_array().unwrap().len(), 5);
    inside.assert_no_errors();
    drop(inside);

    let outside = serves(&format!("{}-{}", hour(2), hour(4)));
    wait_until(&outside, true, || ());
    let refused = ask(&outside, "5");
    assert!(!refused.status.success(), "{refused:?}");
    let told = umbel(&["resume", "--identity", outside.identity_file().to_str().unwrap()]);
    assert!(told.stdout.contains("pauses on, by its --hours"), "{told:?}");
    assert!(outside.stderr().contains("outside of its hours"), "{}", outside.stderr());
    outside.assert_no_errors();
    assert!(outside.terminate().status.success());
}

/// A machine of two cores, as Linux describes it.
struct Machine<'a> {
    folder: &'a Path,
    busy: u64,
    idle: u64,
}

impl Machine<'_> {
    /// Two seconds go by, with so many of the 400 ticks of both cores busy.
    fn passes(&mut self, busy: u64) {
        self.busy += busy;
        self.idle += 400 - busy;
        let Self { busy, idle, .. } = self;
        let mut stat = format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n");
        for core in 0..2 {
            writeln!(stat, "cpu{core} 1 0 0 1").unwrap();
        }
        fs::create_dir_all(self.folder.join("self")).unwrap();
        let own = "1 (umbel) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 9";
        fs::write(self.folder.join("self/stat"), own).unwrap();
        // At once: a server may be reading.
        let written = self.folder.join("written");
        fs::write(&written, stat).unwrap();
        fs::rename(written, self.folder.join("stat")).unwrap();
    }
}

#[test]
fn a_server_leaves_a_machine_that_is_in_use_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let proc = folder.path().to_str().unwrap();
    let mut machine = Machine { folder: folder.path(), busy: 0, idle: 0 };
    machine.passes(0);
    let model = checkpoint("llama");
    let server = serve(&[&model, "--yield-to-load", "0.5", "--proc", proc]);
    assert!(ask(&server, "5").status.success());
    wait_until(&server, true, || machine.passes(200));
    assert!(!ask(&server, "5").status.success());
    wait_until(&server, false, || machine.passes(40));
    assert!(ask(&server, "5").status.success());
    server.assert_no_errors();
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    let refused = |arguments: &[&str]| {
        let model = checkpoint("llama");
        let error = try_serve_in(&[], &[&[model.as_str()], arguments].concat()).err().unwrap();
        format!("{error:#}")
    };
    let empty = tempfile::tempdir().unwrap();
    let nowhere = ["--yield-to-load", "1", "--proc", empty.path().to_str().unwrap()];
    for (arguments, words) in [
        (&["--upload-limit", "500"][..], "125000 at least"),
        (&["--download-limit", "fast"], "bytes a second"),
        (&["--hours", "22-7"], "such as 22:00-07:00"),
        (&["--yield-to-load", "-1"], "--yield-to-load"),
        (&nowhere, "works on Linux alone"),
        // Four blocks take 0.5 MB, and 256 tokens of their cache 0.3 MB.
        (&["--block-count", "4", "--memory-bytes", "600000"], "cache of 256 tokens 0.2 MB"),
        (&["--blocks", "0..4", "--memory-bytes", "600000"], "weights of blocks 0..4 take 0.5 MB"),
        (
            &["--blocks", "0..2", "--memory-bytes", "3000000", "--kv-tokens", "4294967295"],
            "smaller cache",
        ),
        (&["--memory-bytes", "300000"], "KV cache of 1024 tokens 0.2 MB (--kv-tokens"),
    ] {
        let error = refused(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}
