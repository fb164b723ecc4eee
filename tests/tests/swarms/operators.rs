//! What those use who run servers: the view of the swarm, and the doctor.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(target_os = "linux")]
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use umbel_tests::process::{Output, umbel_binary};
use umbel_tests::prometheus::{get, metric, url};
use umbel_tests::swarm::{Server, checkpoint, report, serve, umbel};

fn llama() -> Server {
    serve(&[&checkpoint("llama"), "--blocks", "0..2"])
}

#[test]
fn a_watched_swarm_is_printed_again_and_again_where_there_is_no_terminal() {
    let server = llama();
    let mut command = Command::new(umbel_binary().unwrap());
    command.args(["status", "--watch", "--interval", "1", "--join", server.address()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let unserved = lines.filter(|line| line == "served by nobody: blocks 2, 3");
    assert_eq!(unserved.take(2).count(), 2);
    // Nobody reads any more, which ends it.
    assert!(!child.wait().unwrap().success());
}

/// A command whose stderr is a full disk.
#[cfg(target_os = "linux")]
fn unheard(arguments: &[&str]) -> Command {
    let mut command = Command::new(umbel_binary().unwrap());
    let full = File::options().write(true).open("/dev/full").unwrap();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(full);
    command
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_whose_log_nobody_can_write_loses_its_lines_and_nothing_else() {
    let failed = unheard(&["inspect", "/nowhere"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let (model, folder) = (checkpoint("llama"), tempfile::tempdir().unwrap());
    let identity = folder.path().join("identity.pem");
    let serve = ["serve", &model, "--no-mdns", "--stop-with-stdin", "--identity"];
    let place = [identity.to_str().unwrap(), "--listen", "/ip4/127.0.0.1/tcp/0"];
    let mut server = unheard(&[&serve[..], &place].concat()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let join = ready.strip_prefix("ready ").unwrap().trim();
    let ask = ["generate", "--model", &model, "--prompt-ids", "1,2,3", "--join", join];
    assert!(umbel(&ask).status.success());
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}

/// The finding about something that is `good`, `note` or `bad`.
fn finding<'a>(findings: &'a Value, subject: &str, grade: &str) -> Option<&'a Value> {
    let findings = findings["findings"].as_array().unwrap().iter();
    findings.into_iter().find(|one| one["subject"] == subject && one["grade"] == grade)
}

fn findings(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

const LOOPBACK: [&str; 4] =
    ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0"];

#[test]
fn the_doctor_has_peers_dial_back() {
    let server = llama();
    let model = checkpoint("llama");
    let arguments = ["doctor", &model, "--json", "--join", server.address()];
    let output = umbel(&[&arguments[..], &LOOPBACK].concat());
    let findings = findings(&output);
    assert!(output.status.success(), "{findings:#}");
    for subject in ["model", "swarm", "clock", "versions", "ports", "reachability"] {
        assert!(finding(&findings, subject, "good").is_some(), "{subject}: {findings:#}");
    }
    let open = findings["findings"].as_array().unwrap().iter();
    let open = open.filter(|one| one["subject"] == "reachability" && one["grade"] == "good");
    assert_eq!(open.count(), 2, "over QUIC and over TCP: {findings:#}");
}

#[test]
fn the_doctor_says_what_is_wrong_and_what_to_do() {
    let nobody = ["doctor", "--json", "--join", "/ip4/127.0.0.1/tcp/1"];
    let output = umbel(&nobody);
    assert!(!output.status.success());
    let found = findings(&output);
    let swarm = finding(&found, "swarm", "bad").unwrap_or_else(|| panic!("{found:#}"));
    assert!(swarm["what"].as_str().unwrap().contains("/ip4/127.0.0.1/tcp/1"), "{swarm}");
    assert!(swarm["advice"].as_str().unwrap().contains("ready"), "{swarm}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let model = folder.path().to_str().unwrap();
    let output = umbel(&["doctor", model, "--listen", &listen, "--json"]);
    assert!(!output.status.success());
    let found = findings(&output);
    let port = finding(&found, "ports", "bad").unwrap_or_else(|| panic!("{found:#}"));
    assert!(port["what"].as_str().unwrap().contains(&listen), "{port}");
    let model = finding(&found, "model", "bad").unwrap_or_else(|| panic!("{found:#}"));
    assert!(model["what"].as_str().unwrap().contains("config.json"), "{model}");
}

#[test]
fn a_server_counts_what_it_computes() {
    let model = checkpoint("llama");
    let server = serve(&[&model, "--metrics", "127.0.0.1:0"]);
    let url = url(&server.stderr());
    let (status, before) = get(&url);
    assert_eq!((status, metric(&before, "umbel_tokens_total")), (200, 0.0));
    assert_eq!(metric(&before, "umbel_blocks"), 4.0);
    let arguments = ["--prompt-ids", "1,2,3", "--max-tokens", "5", "--ignore-eos"];
    let ask =
        [&["generate", "--model", &model, "--json", "--join", server.address()], &arguments[..]];
    assert!(umbel(&ask.concat()).status.success());
    let (_, after) = get(&url);
    // The last token is not computed.
    assert_eq!(metric(&after, "umbel_tokens_total"), 7.0, "{after}");
    assert_eq!(metric(&after, "umbel_sessions_opened_total"), 1.0);
    assert_eq!(metric(&after, "umbel_pass_seconds_count"), metric(&after, "umbel_passes_total"));
    assert!(metric(&after, "process_resident_memory_bytes") > 1e6);
    assert_eq!(get(&url.replace("/metrics", "/other")).0, 404);
}

#[test]
fn a_port_that_is_taken_is_found_before_anything_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--metrics", "--gateway"] {
        let output = umbel(&["serve", &checkpoint("llama"), "--no-mdns", flag, &address]);
        assert!(!output.status.success(), "{flag}");
        assert!(output.stderr.contains(&address), "{flag}: {}", output.stderr);
    }
    let keys = ["serve", &checkpoint("llama"), "--no-mdns", "--keys", "keys.toml"];
    assert!(umbel(&keys).stderr.contains("--gateway"));
}

#[test]
fn a_server_can_be_configured_by_a_file_and_log_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("umbel.toml");
    let model = checkpoint("llama");
    let text = format!("log-format = 'json'\n[serve]\nmodel = '{model}'\nblocks = '1..3'\n");
    std::fs::write(&file, text).unwrap();
    let server = serve(&["--config", file.to_str().unwrap()]);
    let status = report(&umbel(&["status", "--json", "--join", server.address()]));
    assert_eq!(
        (&status["servers"][0]["start"], &status["servers"][0]["end"]),
        (&json!(1), &json!(3))
    );
    let lines: Vec<Value> = server
        .stderr()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let loaded = lines.iter().find(|line| line["message"] == "loaded").unwrap();
    assert_eq!((&loaded["level"], &loaded["blocks"]), (&json!("INFO"), &json!("1..3")), "{loaded}");

    let nowhere = ["--log-format", "json", "inspect", "/nowhere"];
    let fatal: Value = serde_json::from_str(&umbel(&nowhere).stderr).unwrap();
    assert_eq!(fatal["level"], "ERROR");
    assert!(fatal["message"].as_str().unwrap().contains("/nowhere"), "{fatal}");

    let printed = umbel(&["serve", "--config", file.to_str().unwrap(), "--print-config"]);
    assert!(printed.stdout.contains("blocks = \"1..3\" # the file"), "{}", printed.stdout);
    std::fs::write(&file, "[serve]\ncolour = 'red'\n").unwrap();
    let refused = umbel(&["serve", "--config", file.to_str().unwrap()]);
    assert!(!refused.status.success() && refused.stderr.contains("colour"), "{}", refused.stderr);
}

#[test]
fn shells_and_manuals_are_told_of_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = umbel(&["completions", shell]);
        assert!(output.status.success() && output.stdout.contains("doctor"), "{shell}");
    }
    assert!(!umbel(&["completions", "cmd"]).status.success());
    assert!(umbel(&["man"]).stdout.contains(".TH umbel 1"));
    let folder = tempfile::tempdir().unwrap();
    assert!(umbel(&["man", "--dir", folder.path().to_str().unwrap()]).status.success());
    for page in ["umbel.1", "umbel-serve.1", "umbel-doctor.1"] {
        assert!(folder.path().join(page).is_file(), "{page}");
    }
    let nowhere = umbel(&["man", "--dir", folder.path().join("a/b").to_str().unwrap()]);
    assert!(!nowhere.status.success() && nowhere.stderr.contains("a/b"), "{}", nowhere.stderr);
}

#[test]
fn the_files_for_operators_are_of_use() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let file = format!("{folder}/umbel.toml");
    let printed = umbel(&["serve", "--config", &file, "--print-config"]);
    assert!(printed.stdout.contains("metrics = \"127.0.0.1:9464\" # the file"), "{printed:?}");
    // What the unit runs is understood.
    let unit = std::fs::read_to_string(format!("{folder}/umbel.service")).unwrap();
    assert!(
        unit.lines().any(|line| line == "KillMode=mixed"),
        "servers on GPUs have time to leave"
    );
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let line = line.replace("/etc/umbel/umbel.toml", &file);
    let mut words: Vec<_> = line.split(' ').skip(1).collect();
    words.push("--print-config");
    assert_eq!(umbel(&words).stdout, printed.stdout);
}
