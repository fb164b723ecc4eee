//! A journal against the plain list of the rows that it should hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use umbel_protocol::DType;

use super::*;

/// A row for each value.
fn tensor(values: &[u8]) -> Tensor {
    let rows = u32::try_from(values.len()).unwrap();
    let payload: Vec<u8> = values.iter().flat_map(|value| [*value; 4]).collect();
    Tensor::new(DType::F32, vec![rows, 1], Bytes::from(payload)).unwrap()
}

fn values(hidden: &Tensor) -> Vec<u8> {
    hidden.payload().chunks(4).map(|row| row[0]).collect()
}

fn step(position: u32, rows: &[u8], replay: bool) -> Step {
    let session = SessionId::new(1);
    let hidden = tensor(rows);
    Step {
        session,
        step: StepId(0),
        position,
        hidden,
        trace: Vec::new(),
        replay,
        answer_rows: AnswerRows::All,
        goes_on: false,
    }
}

fn record(journal: &mut Journal, number: u64, position: u32, rows: &[u8]) {
    journal.record(&Step { step: StepId(number), ..step(position, rows, false) });
}

proptest! {
    #[test]
    fn a_journal_holds_the_newest_row_of_each_position(
        steps in proptest::collection::vec((0..100usize, 1usize..700, any::<bool>()), 1..12),
        from in 0..100usize,
        settled in 0..100usize,
    ) {
        let mut journal = Journal::default();
        let mut expected: Vec<u8> = Vec::new();
        for (number, (back, count, rolls_back)) in steps.iter().enumerate() {
            let position = if *rolls_back { expected.len() * back / 100 } else { expected.len() };
            let rows = vec![u8::try_from(number).unwrap(); *count];
            expected.truncate(position);
            expected.extend(&rows);
            record(&mut journal, number as u64, u32::try_from(position).unwrap(), &rows);
        }
        let end = expected.len();
        prop_assert_eq!(journal.end() as usize, end);
        prop_assert_eq!(journal.bytes(), 4 * end);
        let from = end * from / 100;
        let settled = u32::try_from(end * settled / 100).unwrap();
        let chunks = journal.replay(u32::try_from(from).unwrap(), settled).unwrap();
        let mut position = from;
        for chunk in &chunks {
            prop_assert_eq!(chunk.position as usize, position);
            let rows = values(&chunk.hidden);
            position += rows.len();
            let chunk_end = chunk.position + u32::try_from(rows.len()).unwrap();
            prop_assert_eq!(chunk.replay, chunk_end <= settled);
            prop_assert!(!chunk.replay || rows.len() <= REPLAY_CHUNK_TOKENS as usize);
            prop_assert_eq!(&rows, &expected[chunk.position as usize..position]);
            if !chunk.replay {
                prop_assert!(chunk.position >= settled);
                prop_assert_eq!(chunk.step.0, u64::from(rows[0]), "the step that it came in");
            }
        }
        prop_assert_eq!(position, end);
    }
}

/// A payload that is counted for as long as anybody holds some of it.
struct Held {
    bytes: Vec<u8>,
    all: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[test]
fn rows_that_are_taken_back_are_not_held_in_memory() {
    let all = Arc::new(AtomicUsize::new(0));
    let mut journal = Journal::default();
    for position in 0..20 {
        let rows = vec![7; 100];
        let mut recorded = step(position, &rows, false);
        let bytes = recorded.hidden.payload().to_vec();
        all.fetch_add(bytes.len(), Ordering::Relaxed);
        let payload = Bytes::from_owner(Held { bytes, all: Arc::clone(&all) });
        recorded.hidden = Tensor::new(DType::F32, vec![100, 1], payload).unwrap();
        journal.record(&recorded);
        drop(recorded);
        // The last step is held as it came, of those before it one row each, which is a copy.
        assert_eq!(all.load(Ordering::Relaxed), 400, "{position}");
        assert_eq!(journal.bytes(), 400 + 4 * position as usize);
    }
    assert_eq!(values(&journal.replay(0, 119).unwrap()[0].hidden), [7; 119]);
}

#[test]
fn what_was_evicted_cannot_be_replayed_but_what_came_after_can() {
    let mut journal = Journal::default();
    record(&mut journal, 0, 0, &[1, 2, 3]);
    journal.evict();
    assert_eq!((journal.begin(), journal.end(), journal.bytes()), (3, 3, 0));
    record(&mut journal, 1, 3, &[4]);
    assert_eq!(journal.replay(0, 3), None);
    assert_eq!(journal.replay(3, 3).unwrap().len(), 1);
    record(&mut journal, 2, 0, &[9]);
    assert_eq!(journal.replay(0, 1).unwrap().len(), 1, "begun anew");
}

#[test]
fn an_outlet_sends_each_replayed_row_once_and_nothing_beyond_a_gap() {
    let mut outlet = Outlet::new(2, StepId(0));
    assert_eq!(outlet.pass(step(3, &[3], false)), None, "a gap");
    assert_eq!(outlet.pass(step(0, &[0, 1], true)), None, "it has those");
    let cut = outlet.pass(step(0, &[0, 1, 2, 3], true)).unwrap();
    assert_eq!((cut.position, values(&cut.hidden)), (2, vec![2, 3]));
    let rolled_back = outlet.pass(step(1, &[7], false)).unwrap();
    assert_eq!((rolled_back.position, values(&rolled_back.hidden)), (1, vec![7]));
    assert!(outlet.pass(step(2, &[8], false)).is_some());
    assert_eq!(outlet.pass(step(4, &[8], false)), None, "a gap");
}

#[test]
fn a_refill_leaves_no_gap_to_what_follows() {
    let mut journal = Journal::default();
    record(&mut journal, 0, 0, &[1, 2, 3]);
    let mut outlet = Outlet::new(0, StepId(0));
    let steps = outlet.refill(&journal, 2, SessionId::new(5)).unwrap();
    let shown: Vec<_> =
        steps.iter().map(|step| (step.position, values(&step.hidden), step.replay)).collect();
    assert_eq!(shown, [(0, vec![1, 2], true), (2, vec![3], false)]);
    assert!(outlet.pass(step(3, &[4], false)).is_some());
}

#[test]
fn nothing_of_a_step_that_is_over_goes_to_who_has_its_results() {
    let mut journal = Journal::default();
    record(&mut journal, 3, 0, &[1, 2, 3]);
    let mut outlet = Outlet::new(1, StepId(4));
    assert!(outlet.refill(&journal, 1, SessionId::new(5)).unwrap().is_empty());
    assert_eq!(outlet.pass(step(1, &[9], false)), None, "step 0");
    let newer = Step { step: StepId(4), ..step(1, &[9], false) };
    assert!(outlet.pass(newer).is_some());
}

#[test]
fn an_unused_outlet_begins_with_the_first_step_that_is_not_outdated() {
    let mut outlet = Outlet::unused(StepId(5));
    let numbered = |number, position, rows: &[u8]| Step {
        step: StepId(number),
        ..step(position, rows, false)
    };
    assert!(outlet.pass(numbered(4, 0, &[1; 20])).is_none(), "outdated");
    assert!(outlet.pass(numbered(5, 32, &[1; 4])).is_some());
    assert!(outlet.pass(numbered(6, 37, &[1; 4])).is_none(), "a gap");
    assert!(outlet.pass(numbered(6, 36, &[1; 4])).is_some());
    assert!(outlet.pass(numbered(7, 20, &[1])).is_some(), "a rollback below what was taken over");
}
