//! Three trainers of one adapter, each a process with data of its own, one of which is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use umbel_tests::process::UmbelProcess;
use umbel_tests::swarm::{checkpoint, serve, serve_on, umbel};

/// How long rounds are waited for: they take a second or two where nobody is missing.
const ROUNDS_TIMEOUT: Duration = Duration::from_secs(100);

/// How often it is looked.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// One of them.
struct Trainer {
    process: UmbelProcess,
    out: PathBuf,
}

impl Trainer {
    /// Starts a trainer that learns texts of its own until it is stopped.
    fn start(folder: &Path, number: usize, more: &[&str]) -> Self {
        let listen = ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];
        Self::start_behind(folder, number, &[&listen[..], more].concat())
    }

    /// Starts one that listens only where `more` says.
    fn start_behind(folder: &Path, number: usize, more: &[&str]) -> Self {
        let (data, out) = (folder.join(format!("{number}.jsonl")), folder.join(number.to_string()));
        let line = |start: usize| {
            let step = number + 2;
            let ids: Vec<_> = (0..12).map(|place| (start * 7 + place * step) % 190).collect();
            json!({ "token_ids": ids }).to_string()
        };
        fs::write(&data, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
        let model = checkpoint("llama");
        let (data, out_text) = (data.to_str().unwrap(), out.to_str().unwrap());
        let mut arguments = vec!["train", &model, "--data", data, "--out", out_text];
        arguments.extend(["--epochs", "10000", "--batch", "4", "--round-seconds", "1"]);
        arguments.extend(["--schedule", "constant", "--learning-rate", "0.001"]);
        arguments.extend(more);
        Self { process: UmbelProcess::start(&arguments).unwrap(), out }
    }

    fn address(&self) -> &str {
        self.process.address()
    }

    /// The state and the members of each round so far.
    fn rounds(&self) -> BTreeMap<u64, (String, u64)> {
        let text = fs::read_to_string(self.out.join("metrics.jsonl")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let round = |line: Value| {
            let (state, members) = (line["state"].as_str()?.to_owned(), line["members"].as_u64()?);
            Some((line["round"].as_u64()?, (state, members)))
        };
        lines.filter_map(round).collect()
    }
}

/// Waits until all have begun a round behind `after` with the same state, and so many members.
fn await_round(trainers: &[&Trainer], after: u64, members: u64) -> u64 {
    let deadline = Instant::now() + ROUNDS_TIMEOUT;
    loop {
        let all: Vec<_> = trainers.iter().map(|trainer| trainer.rounds()).collect();
        let (first, others) = all.split_first().unwrap();
        let is_common = |round: &u64, begun: &(String, u64)| {
            let same = |other: &BTreeMap<u64, (String, u64)>| other.get(round) == Some(begun);
            *round > after && begun.1 == members && others.iter().all(same)
        };
        if let Some((round, _)) = first.iter().find(|(round, begun)| is_common(round, begun)) {
            return *round;
        }
        let logs =
            || trainers.iter().map(|of| of.process.stderr()).collect::<Vec<_>>().join("\n\n");
        assert!(Instant::now() < deadline, "no common round: {all:?}\n{}", logs());
        std::thread::park_timeout(LOOK_INTERVAL);
    }
}

#[test]
fn three_trainers_share_an_adapter_and_go_on_when_one_is_killed() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let server = serve(&[&checkpoint("llama")]);
    let first = Trainer::start(folder, 1, &["--local", "--together"]);
    let with = first.address().to_owned();
    let second = Trainer::start(folder, 2, &["--local", "--with", &with]);
    // One has its blocks on a server, which is given each round's values.
    let third = Trainer::start(folder, 3, &["--join", server.address(), "--with", &with]);
    let together = await_round(&[&first, &second, &third], 0, 3);
    first.process.kill();
    // The others have never been told of each other but by the first.
    let before = second.rounds().into_keys().max().unwrap().max(together);
    let after = await_round(&[&second, &third], before, 2);
    assert!(after > before);
    // Whoever comes now asks those who are left.
    let late = Trainer::start(folder, 4, &["--local", "--with", second.address()]);
    await_round(&[&second, &third, &late], after, 3);
    end([second, third, late]);
    server.assert_no_errors();
}

/// Ends trainers that have logged no error.
fn end<const COUNT: usize>(trainers: [Trainer; COUNT]) {
    for trainer in trainers {
        trainer.process.assert_no_errors();
        trainer.process.kill();
    }
}

/// Of a deep prompt each has what stands before the text, and the server what its blocks add.
#[test]
fn trainers_share_a_prompt_too() {
    assert_shared(&["--method", "deep-ptune", "--prompt-tokens", "4"]);
}

/// One begins them by itself and the other asks a server, and both with the same.
#[test]
fn trainers_share_magnitudes_too() {
    assert_shared(&["--dora", "--rank", "2"]);
}

/// Two trainers, one of whom has its blocks on a server, learn what is said.
fn assert_shared(adapter: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let server = serve(&[&checkpoint("llama")]);
    let first = Trainer::start(folder, 1, &[adapter, &["--local", "--together"]].concat());
    let with = first.address().to_owned();
    let join = ["--join", server.address(), "--with", &with];
    let second = Trainer::start(folder, 2, &[adapter, &join].concat());
    let together = await_round(&[&first, &second], 0, 2);
    // A state that both have learned, and not the one that they began with.
    await_round(&[&first, &second], together, 2);
    let states = first.rounds();
    assert!(states.values().any(|state| state.0 != states[&together].0), "{states:?}");
    end([first, second]);
    server.assert_no_errors();
}

#[test]
fn a_run_is_found_by_its_name_as_long_as_somebody_is_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let server = serve(&[&checkpoint("llama"), "--blocks", "0..4"]);
    let meet = ["--local", "--meet", server.address()];
    let named = |what: &'static str, name: &'static str| [&meet[..], &[what, name]].concat();
    let first = Trainer::start(folder, 1, &named("--together", "letters"));
    let another = |what: &'static str, name: &'static str| {
        let (model, out) = (checkpoint("llama"), folder.join("refused"));
        let data = folder.join("1.jsonl");
        let fixed = ["train", &model, "--data", data.to_str().unwrap(), "--out"];
        let more = [out.to_str().unwrap(), "--round-seconds", "1"];
        umbel(&[&fixed[..], &more, &named(what, name)].concat())
    };
    another("--together", "letters").refused("there is a run called letters");
    another("--with", "numbers").refused("nobody in the swarm is in a run called numbers");
    let second = Trainer::start(folder, 2, &named("--with", "letters"));
    let together = await_round(&[&first, &second], 0, 2);
    first.process.kill();
    // Who began it is gone, and the name stays.
    let third = Trainer::start(folder, 3, &named("--with", "letters"));
    await_round(&[&second, &third], together, 2);
    end([second, third]);
    server.assert_no_errors();
}

#[test]
fn trainers_that_cannot_be_reached_share_a_run_through_a_relay() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let server = serve(&[&checkpoint("llama"), "--blocks", "0..4", "--relay"]);
    let meet = ["--local", "--meet", server.address()];
    // They listen nowhere but at the relay.
    let behind = |what: &'static str| [&meet[..], &["--relayed", what, "letters"]].concat();
    let first = Trainer::start_behind(folder, 1, &behind("--together"));
    assert!(first.address().contains("/p2p-circuit/"), "{}", first.address());
    let second = Trainer::start_behind(folder, 2, &behind("--with"));
    let together = await_round(&[&first, &second], 0, 2);
    // One by its address, which can be reached itself.
    let third = Trainer::start(folder, 3, &["--local", "--with", first.address()]);
    let together = await_round(&[&first, &second, &third], together, 3);
    first.process.kill();
    await_round(&[&second, &third], together, 2);
    end([second, third]);
    server.assert_no_errors();
}

/// Also where their run has no name, and whether they listen by a relay or themselves.
#[test]
fn a_run_of_those_who_came_by_an_invite_is_closed_to_others() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let key = folder.join("ours.key").to_str().unwrap().to_owned();
    assert!(umbel(&["swarm", "new", &key]).status.success());
    let tcp = ["/ip4/127.0.0.1/tcp/0"];
    let server = serve_on(&tcp, &[&checkpoint("llama"), "--swarm", &key, "--relay"]);
    let invite = umbel(&["swarm", "invite", &key, server.address()]).stdout.trim().to_owned();
    let join = ["--join", &invite];
    let first = [&join[..], &["--relayed", "--together"]].concat();
    let first = Trainer::start_behind(folder, 1, &first);
    assert!(first.address().contains("/p2p-circuit/"), "{}", first.address());
    let with = [&join[..], &["--with", first.address()]].concat();
    let second = Trainer::start_behind(folder, 2, &[&with[..], &["--relayed"]].concat());
    // One that listens where trainers do unless they are told otherwise: over TCP alone here.
    let third = Trainer::start_behind(folder, 3, &with);
    await_round(&[&first, &second, &third], 0, 3);
    let (model, out) = (checkpoint("llama"), folder.join("out"));
    let data = folder.join("1.jsonl");
    let fixed = ["train", &model, "--local", "--data", data.to_str().unwrap(), "--out"];
    let stranger = [out.to_str().unwrap(), "--round-seconds", "1", "--with", third.address()];
    umbel(&[&fixed[..], &stranger].concat()).refused("one side is in a private swarm");
    end([first, second, third]);
    server.assert_no_errors();
}

#[test]
fn who_asks_a_server_to_relay_that_does_not_is_told_so() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data.jsonl");
    fs::write(&data, "{\"token_ids\": [1, 2, 3]}\n").unwrap();
    let server = serve(&[&checkpoint("llama"), "--blocks", "0..4"]);
    let (model, out) = (checkpoint("llama"), scratch.path().join("out"));
    let fixed = ["train", &model, "--local", "--data", data.to_str().unwrap(), "--validation", "0"];
    let fixed = [&fixed[..], &["--out", out.to_str().unwrap(), "--together", "--relayed"]].concat();
    let bare = server.address().split("/p2p/").next().unwrap();
    for (more, said) in [
        (&["--meet", server.address()][..], "p2p-circuit"),
        (&["--meet", bare], "with /p2p/ and its name"),
        (&[], "--relayed by whom?"),
    ] {
        let output = umbel(&[&fixed[..], more].concat());
        output.refused(said);
    }
    server.assert_no_errors();
}

#[test]
fn a_name_without_a_place_to_find_it_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data.jsonl");
    fs::write(&data, "{\"token_ids\": [1, 2, 3]}\n").unwrap();
    let (model, out) = (checkpoint("llama"), scratch.path().join("out"));
    let fixed = ["train", &model, "--local", "--data", data.to_str().unwrap(), "--validation", "0"];
    let fixed = [&fixed[..], &["--out", out.to_str().unwrap()]].concat();
    let nowhere = "/ip4/127.0.0.1/udp/1/quic-v1";
    for (more, said) in [
        (&["--with", "letters"][..], "where is a run called letters found?"),
        (&["--with", "letters", "--with", "others"], "a trainer is in one run"),
        (&["--together", "--meet", nowhere], "--meet is for --relayed, and runs with a name"),
        (&["--with", "10.0.0.8:4002"], "/ip4/10.0.0.8/tcp/4002"),
        (&["--together", "two words"], "a run's name has 1 to 64 letters"),
    ] {
        let output = umbel(&[&fixed[..], more].concat());
        output.refused(said);
        fs::remove_dir_all(&out).ok();
    }
}

#[test]
fn a_run_of_another_adapter_is_not_joined() {
    let scratch = tempfile::tempdir().unwrap();
    let first = Trainer::start(scratch.path(), 1, &["--local", "--together"]);
    let (model, out) = (checkpoint("llama"), scratch.path().join("out"));
    let data = scratch.path().join("1.jsonl");
    let fixed = ["train", &model, "--local", "--data", data.to_str().unwrap(), "--out"];
    let more = [out.to_str().unwrap(), "--with", first.address(), "--round-seconds", "1"];
    let others: [&[&str]; 4] =
        [&["--rank", "4"], &["--dora"], &["--method", "ptune"], &["--round-seconds", "2"]];
    for other in others {
        let more = if other[0] == "--round-seconds" { &more[..3] } else { &more[..] };
        let output = umbel(&[&fixed[..], more, other].concat());
        output.refused("are in another run");
    }
    assert!(first.process.stderr().contains("refused a trainer of another run"));
    end([first]);
}

#[test]
fn a_run_that_nobody_is_in_is_not_joined() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data.jsonl");
    fs::write(&data, "{\"token_ids\": [1, 2, 3]}\n").unwrap();
    let (model, out) = (checkpoint("llama"), scratch.path().join("out"));
    let nobody =
        "/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3KooWB5V3r49sPGbFLPUyxX4ZiMDjSUt6Rp1TG7UYqkM7yoJc";
    let output = umbel(&[
        "train",
        &model,
        "--local",
        "--data",
        data.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--validation",
        "0",
        "--with",
        nobody,
    ]);
    output.refused(nobody);
}
