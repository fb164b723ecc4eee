//! Private swarms of real processes: made, served, joined by an invite, and closed to others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use umbel_tests::swarm::{checkpoint, report, serve_on, umbel};

const TCP: [&str; 1] = ["/ip4/127.0.0.1/tcp/0"];
const ASK: [&str; 6] = ["--prompt-ids", "1,2,3", "--max-tokens", "5", "--ignore-eos", "--json"];

/// Makes the key of a swarm, and gives the file.
fn key(folder: &Path, name: &str) -> String {
    let file = folder.join(name).to_str().unwrap().to_owned();
    let made = umbel(&["swarm", "new", &file]);
    assert!(made.status.success(), "{}", made.stderr);
    let again = umbel(&["swarm", "new", &file]);
    assert!(!again.status.success() && again.stderr.contains(&file), "{}", again.stderr);
    assert!(again.stderr.contains("another file"), "{}", again.stderr);
    let missing = umbel(&["swarm", "invite", "nowhere.key", "/ip4/127.0.0.1/tcp/1"]);
    assert!(missing.stderr.contains("umbel swarm new"), "{}", missing.stderr);
    let socket = umbel(&["swarm", "invite", &file, "127.0.0.1:4001"]);
    assert!(socket.stderr.contains("/ip4/127.0.0.1/tcp/4001"), "{}", socket.stderr);
    let anywhere = umbel(&["swarm", "invite", &file, "/ip4/0.0.0.0/tcp/4001"]);
    anywhere.refused("any machine");
    file
}

fn invite(key: &str, address: &str) -> String {
    let invite = umbel(&["swarm", "invite", key, address]);
    assert!(invite.status.success(), "{}", invite.stderr);
    invite.stdout.trim().to_owned()
}

#[test]
fn who_is_invited_comes_in_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (key(folder.path(), "ours"), key(folder.path(), "others"));
    let model = checkpoint("llama");
    let first = serve_on(&TCP, &[&model, "--blocks", "0..2", "--swarm", &ours]);
    let line = invite(&ours, first.address());
    assert!(line.starts_with("umbel1"), "{line}");
    let second = serve_on(&TCP, &[&model, "--blocks", "2..4", "--join", &line]);

    let ask = |more: &[&str]| umbel(&[&["generate", "--model", &model], &ASK[..], more].concat());
    let together = report(&ask(&["--join", &line]))["token_ids"].clone();
    assert_eq!(together, report(&ask(&["--local"]))["token_ids"]);
    // The address of an old invite leads nowhere any more: its secret does with another.
    let old = invite(&ours, "/ip4/127.0.0.1/tcp/1");
    let moved = ["--join", &old, "--join", first.address()];
    assert_eq!(together, report(&ask(&moved))["token_ids"]);
    let status = report(&umbel(&["status", "--json", "--join", &line]));
    assert_eq!(status["servers"].as_array().unwrap().len(), 2);
    let doctor = umbel(&["doctor", &model, "--listen", TCP[0], "--join", &line]);
    assert!(doctor.stdout.contains("peers come in over TCP"), "{}", doctor.stdout);

    // By the bare address, or with another swarm's secret, nobody comes in.
    for join in [first.address().to_owned(), invite(&others, first.address())] {
        for output in [ask(&["--join", &join]), umbel(&["status", "--join", &join])] {
            assert!(!output.status.success(), "{}", output.stdout);
            assert!(output.stderr.contains(first.address()), "{}", output.stderr);
        }
        let server = umbel(&["serve", &model, "--no-mdns", "--join", &join]);
        assert!(!server.status.success(), "{}", server.stdout);
    }
    first.assert_no_errors();
    second.assert_no_errors();
}

#[test]
fn what_leads_into_no_private_swarm_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let ours = key(folder.path(), "ours");
    let line = invite(&ours, "/ip4/127.0.0.1/tcp/1");
    let cut = umbel(&["status", "--join", &line[..line.len() - 3]]);
    assert!(!cut.status.success() && cut.stderr.contains("cut or mistyped"), "{}", cut.stderr);
    let quic = "/ip4/127.0.0.1/udp/1/quic-v1";
    let over_quic = umbel(&["swarm", "invite", &ours, quic]);
    assert!(!over_quic.status.success() && over_quic.stderr.contains("TCP alone"));
    let model = checkpoint("llama");
    let served = ["serve", &model, "--no-mdns", "--swarm", &ours, "--listen", quic];
    let served = umbel(&served);
    assert!(!served.status.success() && served.stderr.contains("TCP alone"), "{}", served.stderr);
    let no_key = umbel(&["serve", &model, "--no-mdns", "--swarm", "/nowhere/key"]);
    assert!(
        !no_key.status.success() && no_key.stderr.contains("/nowhere/key"),
        "{}",
        no_key.stderr
    );
    let other = key(folder.path(), "other");
    let two = invite(&other, "/ip4/127.0.0.1/tcp/1");
    let two = umbel(&["status", "--join", &line, "--join", &two]);
    assert!(!two.status.success() && two.stderr.contains("different swarms"), "{}", two.stderr);
}
