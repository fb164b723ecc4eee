//! Commands are carried out in the order in which they were given, on whichever thread.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use umbel_coordinator::server::{Batch, JobId, SESSIONS_MAX, ShardId};
use umbel_protocol::{DType, SessionId, Span};

use super::{COMMANDS_WAITING_MAX, Command, Compute, Computed, Engine, TableWanted};

/// Writes down what it is given, and waits with every pass until it is let go.
struct Recorder {
    seen: Sender<(&'static str, ThreadId)>,
    go: Receiver<()>,
}

impl Engine for Recorder {
    fn run(&mut self, command: Command) -> Option<Computed> {
        let name = if matches!(command, Command::Pass(_)) { "pass" } else { "forget" };
        self.seen.send((name, std::thread::current().id())).expect("the test listens");
        let Command::Pass(batch) = command else {
            return None;
        };
        self.go.recv().expect("the test lets it go");
        Some(Computed { job: batch.id, results: Vec::new(), compute: Duration::ZERO })
    }
}

fn pass(id: u64) -> Command {
    Command::Pass(Batch { id: JobId(id), jobs: Vec::new() })
}

#[test]
fn what_is_carried_out_here_comes_after_what_the_thread_was_given() {
    let (seen, recorded) = channel();
    let (let_go, go) = channel();
    let (finished, done) = channel();
    let compute = Compute::start(Recorder { seen, go }, move |computed: Computed| {
        finished.send(computed.job).expect("the test listens");
    });
    compute.tell(pass(1));
    compute.tell(Command::Forget { session: SessionId::new(7) });

    let refused = compute.run_here(pass(2));
    assert!(matches!(refused, Err(Command::Pass(batch)) if batch.id == JobId(2)));

    let_go.send(()).expect("the engine waits");
    assert_eq!(done.recv(), Ok(JobId(1)));
    let (first, thread) = recorded.recv().expect("the thread computed");
    let second = recorded.recv().expect("the thread forgot");
    assert_eq!((first, second), ("pass", ("forget", thread)));

    // The thread has counted down a moment after it has written that down.
    let_go.send(()).expect("the engine waits");
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut command = pass(2);
    let computed = loop {
        match compute.run_here(command) {
            Ok(computed) => break computed,
            Err(back) => command = back,
        }
        assert!(Instant::now() < deadline, "the thread never counts down");
        std::thread::yield_now();
    };
    assert_eq!(computed.map(|computed| computed.job), Some(JobId(2)));
    assert_eq!(recorded.recv(), Ok(("pass", std::thread::current().id())));
    assert!(done.try_recv().is_err(), "whoever computes here has the result already");
}

#[test]
fn a_thread_that_is_behind_has_room_to_open_and_free_every_session() {
    let (seen, _recorded) = channel();
    let (let_go, go) = channel();
    let compute = Compute::start(Recorder { seen, go }, |_| {});
    compute.tell(pass(1));
    let mut opened = 0;
    while !compute.is_behind() {
        opened += 1;
        assert!(opened <= COMMANDS_WAITING_MAX, "it is never behind");
        compute.tell(Command::Forget { session: SessionId::new(opened as u128) });
    }
    // One part of an adapter opens all sessions that wait for it, and one link that closes frees them;
    // each with what becomes of pages before it.
    for session in 0..SESSIONS_MAX {
        compute.tell(Command::Pages(Vec::new()));
        compute.tell(open(session as u128));
    }
    for session in 0..SESSIONS_MAX {
        compute.tell(Command::Pages(Vec::new()));
        compute.tell(Command::Forget { session: SessionId::new(session as u128) });
    }
    let_go.send(()).expect("the engine waits");
}

fn open(session: u128) -> Command {
    let table = TableWanted {
        shard: ShardId::default(),
        blocks: Span::new(0, 1).expect("it has a block"),
        tokens: 1,
        cache: DType::F32,
    };
    Command::Open {
        session: SessionId::new(session),
        table,
        results: DType::F32,
        prefix: Vec::new(),
        adapter: None,
    }
}
