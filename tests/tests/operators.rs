//! What those use who run servers: the view of the swarm, and the doctor.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;
use umbel_tests::process::{Output, umbel_binary};
use umbel_tests::swarm::{Server, checkpoint, serve, umbel};

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
