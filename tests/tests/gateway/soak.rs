//! A gateway under streaming clients leaves nothing behind; `gateway_soak` among the examples is the
//! long version.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use umbel_tests::soak::{Load, run};

/// What the servers may grow by beyond what their caches can hold, and the gateway at all: the
/// buffers of as many answers as are given at once, and what an allocator cannot give back.
const GROWTH_BYTES_MAX: u64 = 150 << 20;

#[test]
fn clients_that_stream_come_and_go_and_no_session_is_left() {
    let load = Load {
        clients: 16,
        duration: Duration::from_secs(10),
        answers: 4,
        waiting: 8,
        answer_tokens: 16,
        kv_tokens: 1_024,
    };
    // Anything but an answer or a 429 is an error of it, and so is a session that is left.
    let outcome = run(&load).unwrap();
    let notes = &outcome.notes;
    assert!(notes.whole > 0 && notes.left > 0, "{notes:?}");
    assert!(notes.turned_away > 0, "16 clients, and room for 12: {notes:?}");
    let answers = u64::try_from(notes.whole + notes.left).unwrap();
    assert!(outcome.sessions_opened >= 3 * answers, "each goes through three servers: {outcome:?}");
    assert_eq!(outcome.resident.len(), 4);
    for process in &outcome.resident {
        let grown = process.last().unwrap().saturating_sub(process[0]);
        assert!(grown < GROWTH_BYTES_MAX, "{process:?}");
    }
}
