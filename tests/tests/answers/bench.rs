//! `umbel bench` measures what it says, of processes that are real. How fast is no matter of a test.

use serde_json::Value;
use umbel_tests::swarm::{checkpoint, report, umbel};

/// A run that measures little: what it says is of no use, but all of it is there.
fn bench(arguments: &[&str]) -> Value {
    let model = checkpoint("llama");
    let few = ["--prompt-tokens", "24", "--new-tokens", "12", "--rounds", "1", "--json"];
    report(&umbel(&[&["bench", &model], &few[..], arguments].concat()))
}

fn is_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value.is_finite() && value > 0.0)
}

#[test]
fn one_process_is_compared_with_swarms_and_with_thin_sessions() {
    // Over the network's way, where the system counts the bytes.
    let report = bench(&["--servers", "2", "--thin", "--no-local-links"]);
    let results = report["results"].as_array().expect("a list");
    let names: Vec<_> = results.iter().filter_map(|result| result["name"].as_str()).collect();
    assert_eq!(names, ["one process", "swarm of 2", "thin, of 2"]);
    for result in results {
        for figure in ["decode_tokens_per_second", "decode_of_local", "prefill_tokens_per_second"] {
            assert!(is_positive(&result[figure]), "{figure}: {result}");
        }
        assert!(is_positive(&result["gap_ms"]["p99"]), "{result}");
    }
    assert!(is_positive(&results[1]["wire_bytes_per_token"]), "no link is crossed: {report}");
}

#[test]
fn clients_at_once_are_measured_while_another_reads() {
    let report = bench(&["--servers", "1", "--clients", "1,3", "--reader-tokens", "32"]);
    let results = report["results"].as_array().expect("a list");
    let clients: Vec<_> = results.iter().filter_map(|result| result["clients"].as_u64()).collect();
    assert_eq!(clients, [1, 3], "{report}");
    assert!(results.iter().all(|result| is_positive(&result["tokens_per_second"])), "{report}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let model = checkpoint("llama");
    let bench = |arguments: &[&str]| umbel(&[&["bench", &model], arguments].concat());
    let few = ["--prompt-tokens", "24", "--new-tokens", "12"];
    bench(&["--prompt-tokens", "0"]).refused("measure at least one token of prompt");
    bench(&["--new-tokens", "1"]).refused("measure at least one token of prompt and two new ones");
    bench(&["--prompt-tokens", "100000"]).refused("measure fewer");
    let llama = bench(&[&few[..], &["--llama-bench", "/nowhere"]].concat());
    llama.refused("llama.cpp reads GGUF files");
    let clients = bench(&[&few[..], &["--clients", "2", "--reader-tokens", "256"]].concat());
    clients.refused("let --reader-tokens be fewer");
    bench(&["--thin", "--clients", "2"]).refused("cannot be used with");
}
