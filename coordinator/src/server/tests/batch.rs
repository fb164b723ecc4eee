//! Passes that many sessions share.

use umbel_protocol::inference::HopTiming;

use super::*;
use crate::server::schedule::DECODE_TOKENS_MAX;

/// A server and an accelerator that takes a fixed time for a pass and some for each token.
struct Bench {
    server: Server,
    now: Time,
    pass: Duration,
    token: Duration,
    running: Option<Batch>,
    /// What left the server for its clients: session, step, and what the tokens are.
    answers: Vec<(u128, u64, Vec<f32>)>,
    timings: Vec<HopTiming>,
}

fn client(name: u8) -> PeerId {
    PeerId::from_public_key([100 + name; 32])
}

/// Tokens that say of which session and where in it they are.
fn tokens(session: u128, number: u64, position: u32, count: u32) -> Step {
    let value = |token: u32| [session as f32, (position + token) as f32];
    let values: Vec<f32> = (0..count).flat_map(value).collect();
    let hidden = Tensor::from_f32(vec![count, HIDDEN], &values).unwrap();
    Step { hidden, ..step(session, number, position, count) }
}

impl Bench {
    fn new(pass: Duration, token: Duration) -> Self {
        let mut server = server(1_000_000);
        server.config.context_tokens = 8_192;
        let (running, answers, timings) = (None, Vec::new(), Vec::new());
        Self { server, now: Time::START, pass, token, running, answers, timings }
    }

    fn hear(&mut self, from: u8, message: ClientMessage) {
        self.tell(from, message);
        self.drain();
    }

    /// Tells the server of what is not all that has come.
    fn tell(&mut self, from: u8, message: ClientMessage) {
        let (link, from) = (LinkId(u64::from(from)), client(from));
        self.server.handle(Input::Received { link, from, message }, self.now).unwrap();
    }

    fn open(&mut self, from: u8, session: u128) {
        let open = OpenSession { tokens_max: 8_192, ..opening(session) };
        self.hear(from, ClientMessage::Open(open));
    }

    fn step(&mut self, from: u8, step: Step) {
        self.hear(from, ClientMessage::Step(step));
    }

    fn drain(&mut self) {
        self.server.begin_pass(self.now);
        while let Some(output) = self.server.poll() {
            if let Output::Send { message: ServerMessage::Output(step), .. } = output {
                let values = step.hidden.to_f32();
                self.answers.push((step.session.number(), step.step.0, values));
                self.timings.extend(step.trace);
            } else if let Output::Compute(batch) = output {
                assert!(self.running.is_none(), "one pass at a time");
                assert!(!batch.jobs.is_empty(), "a pass has something to do");
                self.running = Some(batch);
            }
        }
    }

    /// Session, position and tokens of what is computed.
    fn running(&self) -> Vec<(u128, u32, u32)> {
        let jobs = self.running.iter().flat_map(|batch| &batch.jobs);
        jobs.map(|job| (job.session.number(), job.position, job.hidden.shape()[0])).collect()
    }

    fn duration(&self) -> Duration {
        let tokens: u32 = self.running().iter().map(|(_, _, tokens)| tokens).sum();
        self.pass + self.token * tokens
    }

    /// Lets the time pass until a pass begins that waits for sessions that are due.
    fn wait(&mut self) {
        while let Some(begin) = self.server.schedule.waits() {
            assert!(self.running.is_none(), "only the next pass waits");
            self.now = self.now.max(begin);
            self.server.handle_timeout(self.now);
            self.drain();
        }
    }

    /// Lets the accelerator finish; how long it took.
    fn finish(&mut self) -> Duration {
        let compute = self.duration();
        let batch = self.running.take().expect("a pass runs");
        let results = batch.jobs.iter().map(|job| Ok(job.hidden.clone())).collect();
        self.finish_with(batch.id, results, compute);
        compute
    }

    fn finish_with(
        &mut self,
        job: JobId,
        results: Vec<Result<Tensor, ComputeFailure>>,
        compute: Duration,
    ) {
        self.now = self.now + compute;
        self.server.handle(Input::Computed { job, results, compute }, self.now).unwrap();
        self.drain();
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn steps_of_all_sessions_share_a_pass_and_each_gets_its_own_result() {
    let mut bench = Bench::new(ms(5), Duration::ZERO);
    for session in 0..5 {
        bench.open(session % 3, u128::from(session));
    }
    for session in 0..5 {
        bench.step(session % 3, tokens(session.into(), 0, 0, 1 + u32::from(session)));
    }
    assert_eq!(bench.running(), [(0, 0, 1)]);
    bench.finish();
    let mut rest = bench.running();
    rest.sort_unstable();
    assert_eq!(rest, [(1, 0, 2), (2, 0, 3), (3, 0, 4), (4, 0, 5)]);
    bench.finish();
    bench.answers.sort_by_key(|(session, ..)| *session);
    let expected: Vec<_> = (0..5u8)
        .map(|session| {
            let whole = tokens(session.into(), 0, 0, 1 + u32::from(session));
            (u128::from(session), 0, whole.hidden.to_f32())
        })
        .collect();
    assert_eq!(bench.answers, expected);
    assert_eq!(bench.server.queue_depth(), 0);
}

#[test]
fn a_long_step_is_cut_where_others_may_decode_and_answered_in_one_piece() {
    let mut bench = Bench::new(ms(5), ms(1));
    bench.open(0, 1);
    bench.open(1, 2);
    bench.step(0, tokens(1, 0, 0, 300));
    bench.step(1, tokens(2, 0, 0, 1));
    let (mut decoded, mut seen) = (0, 0);
    while bench.running().iter().any(|(session, ..)| *session == 1) {
        for (session, position, count) in bench.running() {
            if session == 1 {
                assert_eq!(position, seen, "the parts follow each other");
                seen += count;
            }
        }
        bench.finish();
        if bench.answers.last().is_some_and(|(session, ..)| *session == 2) {
            decoded += 1;
            bench.step(1, tokens(2, decoded, u32::try_from(decoded).unwrap(), 1));
        }
    }
    assert_eq!(seen, 300);
    assert!(decoded >= 4, "the other decodes in between: {decoded} tokens");
    let answer = bench.answers.iter().find(|(session, ..)| *session == 1).unwrap();
    assert_eq!(answer.2, tokens(1, 0, 0, 300).hidden.to_f32());
    for timing in &bench.timings {
        assert_eq!(timing.queue + timing.compute, timing.hop, "it waits or is computed");
    }
}

#[test]
fn alone_a_step_is_one_pass_unless_it_is_huge() {
    let mut bench = Bench::new(ms(5), ms(1));
    bench.open(0, 1);
    bench.step(0, tokens(1, 0, 0, 600));
    assert_eq!(bench.running(), [(1, 0, 600)]);
    bench.finish();
    bench.step(0, tokens(1, 1, 600, 1_500));
    assert_eq!(bench.running(), [(1, 600, PART_TOKENS_MAX)]);
    bench.finish();
    assert_eq!(bench.running(), [(1, 1_624, 476)]);
    // One that has done nothing for long decodes no more.
    bench.finish();
    bench.open(1, 2);
    bench.now = bench.now + Duration::from_secs(60);
    bench.step(0, tokens(1, 2, 2_100, 600));
    assert_eq!(bench.running(), [(1, 2_100, 600)]);
}

#[test]
fn a_pass_has_all_steps_that_have_come_when_it_begins() {
    let mut bench = Bench::new(ms(5), Duration::ZERO);
    (0..3).for_each(|session| bench.open(0, session));
    for session in 0..2 {
        bench.tell(0, ClientMessage::Step(tokens(session, 0, 0, 1)));
    }
    assert_eq!(bench.server.poll().map(drop), None, "the engine is free, but more may have come");
    bench.step(0, tokens(2, 0, 0, 1));
    assert_eq!(bench.running(), [(0, 0, 1), (1, 0, 1), (2, 0, 1)]);
    // What a pass comes to is handed on before the next begins.
    bench.tell(0, ClientMessage::Step(tokens(0, 1, 1, 1)));
    let Batch { id, jobs } = bench.running.take().unwrap();
    let results = jobs.iter().map(|job| Ok(job.hidden.clone())).collect();
    bench.server.handle(Input::Computed { job: id, results, compute: ms(5) }, bench.now).unwrap();
    let outputs: Vec<_> = std::iter::from_fn(|| bench.server.poll()).collect();
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::Send { .. })).count(), 3);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Compute(_))));
}

#[test]
fn progress_shows_while_a_step_is_computed_in_parts() {
    let mut bench = Bench::new(ms(5), ms(1));
    bench.open(0, 1);
    bench.open(1, 2);
    bench.step(0, tokens(1, 0, 0, 300));
    let (_, _, first) = bench.running()[0];
    assert!(first < 300);
    bench.finish();
    let (link, session) = (LinkId(0), SessionId::new(1));
    let message = ClientMessage::Ping { session };
    bench.server.handle(Input::Received { link, from: client(0), message }, bench.now).unwrap();
    let pong = drain(&mut bench.server).into_iter().find_map(|output| {
        let Output::Send { message: ServerMessage::Pong { received, computed, .. }, .. } = output
        else {
            return None;
        };
        Some((received, computed))
    });
    assert_eq!(pong, Some((300, first)));
}

#[test]
fn a_row_that_fails_ends_its_session_and_no_other() {
    let mut bench = Bench::new(ms(5), Duration::ZERO);
    for session in 0..4 {
        bench.open(0, session);
    }
    for session in 0..4 {
        bench.step(0, tokens(session, 0, 0, 1));
    }
    bench.finish();
    let batch = bench.running.take().unwrap();
    let failure = ComputeFailure { code: ErrorCode::Internal, detail: "broken".to_owned() };
    let result = |job: &Job| match job.session.number() {
        2 => Err(failure.clone()),
        _ => Ok(job.hidden.clone()),
    };
    let results = batch.jobs.iter().map(result).collect();
    bench.finish_with(batch.id, results, ms(5));
    let answered: Vec<_> = bench.answers.iter().map(|(session, ..)| *session).collect();
    assert_eq!(answered, [0, 1, 3]);
    assert_eq!(bench.server.session_count(), 3);
    bench.step(0, tokens(2, 1, 1, 1));
    assert!(bench.running.is_none(), "it is not open any more");
}

#[test]
fn results_for_sessions_that_ended_meanwhile_are_dropped() {
    let mut bench = Bench::new(ms(5), ms(1));
    for session in 0..3 {
        bench.open(0, session);
    }
    bench.step(0, tokens(0, 0, 0, 1));
    bench.step(0, tokens(1, 0, 0, 200));
    bench.step(0, tokens(2, 0, 0, 1));
    bench.finish();
    assert_eq!(bench.running().len(), 2);
    let session = SessionId::new(1);
    bench.hear(0, ClientMessage::Close { session });
    // Its name is free again, and what comes under it is not what was.
    bench.open(0, 1);
    bench.step(0, tokens(1, 0, 0, 2));
    bench.finish();
    let answered: Vec<_> = bench.answers.iter().map(|(session, ..)| *session).collect();
    assert_eq!(answered, [0, 2]);
    assert_eq!(bench.running(), [(1, 0, 2)]);
    bench.finish();
    assert_eq!(bench.answers[2].2, tokens(1, 0, 0, 2).hidden.to_f32());
    assert_eq!(bench.server.queue_depth(), 0);
}

#[test]
fn parts_that_do_not_fit_each_other_end_the_session() {
    let mut bench = Bench::new(ms(5), ms(1));
    bench.open(0, 1);
    bench.open(1, 2);
    bench.step(0, tokens(1, 0, 0, 100));
    bench.finish();
    while let Some(batch) = bench.running.take() {
        let narrow = |job: &Job| {
            let count = job.hidden.shape()[0];
            Ok(Tensor::from_f32(vec![count, 1], &vec![0.0; count as usize]).unwrap())
        };
        let results = batch.jobs.iter().map(narrow).collect();
        bench.finish_with(batch.id, results, ms(50));
    }
    assert!(bench.answers.is_empty());
    assert_eq!(bench.server.session_count(), 1);
}

#[test]
fn clients_take_turns_however_many_sessions_one_has() {
    let mut bench = Bench::new(ms(5), ms(1));
    for session in 0..20 {
        bench.open(0, session);
    }
    bench.open(1, 100);
    for session in 0..20 {
        bench.step(0, tokens(session, 0, 0, 200));
    }
    bench.step(1, tokens(100, 0, 0, 200));
    let (mut greedy, mut modest) = (0, 0);
    while modest < 200 {
        for (session, _, count) in bench.running() {
            let tokens = if session == 100 { &mut modest } else { &mut greedy };
            *tokens += count;
        }
        bench.finish();
    }
    // The first pass was begun before the other came.
    assert!(greedy <= 2 * modest, "{greedy} tokens of one client, {modest} of the other");
}

#[test]
fn passes_with_prefill_are_as_long_as_they_may_be_and_no_longer() {
    // Weights are read in 5 or in 200 ms; a token takes 1 ms.
    for (pass, at_most) in [(5, 55), (200, 420)] {
        let mut bench = Bench::new(ms(pass), ms(1));
        bench.open(0, 1);
        bench.open(1, 2);
        bench.step(1, tokens(2, 0, 0, 1));
        for number in 1..4 {
            bench.finish();
            bench.step(1, tokens(2, number, u32::try_from(number).unwrap(), 1));
        }
        for number in 0..8 {
            bench.step(0, tokens(1, number, 512 * u32::try_from(number).unwrap(), 512));
        }
        let mut durations = Vec::new();
        for number in 4.. {
            let reads = bench.running().iter().any(|(session, ..)| *session == 1);
            if !reads && !durations.is_empty() {
                break;
            }
            let duration = bench.finish();
            durations.extend(reads.then_some(duration));
            bench.step(1, tokens(2, number, u32::try_from(number).unwrap(), 1));
        }
        let settled = &mut durations[10..];
        settled.sort();
        assert!(settled[settled.len() - 1] <= ms(at_most), "{settled:?}");
        assert!(settled[settled.len() / 2] * 10 >= ms(at_most) * 8, "{settled:?}");
    }
}

proptest! {
    /// Whoever asks for what and when: every step is answered once, in the order of its session,
    /// and no step of one token waits for more than the pass that runs when it comes.
    #[test]
    fn every_step_is_computed_once_and_nobody_waits_for_ever(
        arrivals in proptest::collection::vec((0u8..6, 1u32..120, 0u8..4), 1..60),
        pass_ms in 1u64..80,
        token_us in 1u64..20_000,
    ) {
        let mut bench = Bench::new(ms(pass_ms), Duration::from_micros(token_us));
        for session in 0..6u8 {
            bench.open(session / 2, session.into());
        }
        let mut ends = [(0, 0); 6];
        let mut expected = Vec::new();
        for (session, count, passes) in arrivals {
            let count = if count < 60 { 1 } else { count };
            let (number, position) = ends[usize::from(session)];
            ends[usize::from(session)] = (number + 1, position + count);
            let step = tokens(session.into(), number, position, count);
            expected.push((u128::from(session), number, step.hidden.to_f32()));
            bench.step(session / 2, step);
            for _ in 0..passes {
                if bench.running.is_none() {
                    break;
                }
                let before = bench.running();
                let heads = heads(&bench);
                bench.finish();
                bench.wait();
                for head in heads {
                    let was = before.iter().any(|(session, ..)| *session == head);
                    let is = bench.running().iter().any(|(session, ..)| *session == head);
                    prop_assert!(was || is, "session {} waits for a second pass", head);
                }
            }
        }
        bench.wait();
        let mut passes = 0;
        while bench.running.is_some() {
            bench.finish();
            bench.wait();
            passes += 1;
            prop_assert!(passes < 1_000, "everything comes to its end");
        }
        for session in 0..6 {
            let of = |all: &[(u128, u64, Vec<f32>)]| -> Vec<_> {
                all.iter().filter(|(of, ..)| *of == session).cloned().collect()
            };
            prop_assert_eq!(of(&bench.answers), of(&expected));
        }
        prop_assert_eq!(bench.server.queue_depth(), 0);
    }
}

/// Lets eight sessions decode, which come back 3 ms after each result; four of them begin later. How
/// many the last passes had, and the time of a token.
fn decode_in_two_groups(pass: Duration, token: Duration) -> (Vec<usize>, Duration) {
    let mut bench = Bench::new(pass, token);
    let mut due: Vec<(Time, u128)> = (0..8).map(|session| (Time::START, session)).collect();
    for session in 0..8u8 {
        bench.open(session / 2, session.into());
    }
    due.iter_mut().skip(4).for_each(|(due, _)| *due = *due + ms(20));
    let (mut sizes, mut positions, mut began) = (Vec::new(), [0; 8], Vec::new());
    while sizes.len() < 200 {
        due.sort();
        let ends = bench.running.is_some().then(|| bench.now + bench.duration());
        let next = due.first().map(|(due, _)| *due);
        let waits = bench.server.schedule.waits();
        let soonest = [ends, next, waits].into_iter().flatten().min().expect("something happens");
        if next == Some(soonest) {
            let (_, session) = due.remove(0);
            let before = bench.now;
            bench.now = soonest;
            let position = &mut positions[session as usize];
            let step = tokens(session, u64::from(*position), *position, 1);
            *position += 1;
            bench.step(u8::try_from(session / 2).unwrap(), step);
            // A pass that runs ends when it would have ended.
            if ends.is_some() {
                bench.now = before;
            }
        } else if ends == Some(soonest) {
            let sessions = bench.running();
            sizes.push(sessions.len());
            bench.finish();
            began.push(bench.now);
            due.extend(sessions.iter().map(|(session, ..)| (bench.now + ms(3), *session)));
        } else {
            bench.wait();
        }
    }
    let took = began[199].since(began[99]);
    let tokens: usize = sizes[100..].iter().sum();
    (sizes.split_off(190), took * 8 / u32::try_from(tokens).unwrap())
}

#[test]
fn sessions_in_two_groups_become_one_where_weights_are_most_of_a_pass() {
    let (sizes, token) = decode_in_two_groups(ms(45), ms(1));
    assert!(sizes.iter().all(|size| *size == 8), "{sizes:?}");
    // A pass of all, and the way out and back; two passes of four would take 98 ms.
    assert!(token <= ms(57), "{token:?}");
    // Where the tokens are most of it nothing is to be gained, and nobody waits.
    let (_, token) = decode_in_two_groups(ms(1), ms(6));
    assert!(token <= ms(51), "{token:?}");
}

/// Sessions whose next step has one token.
fn heads(bench: &Bench) -> Vec<u128> {
    bench.server.schedule.heads().filter(|(_, tokens)| *tokens == 1).map(|(of, _)| of).collect()
}

#[test]
fn guesses_that_are_checked_count_as_decoding_and_are_not_cut() {
    let mut bench = Bench::new(ms(5), ms(40));
    for session in 0..3 {
        bench.open(0, session);
    }
    bench.step(0, tokens(0, 0, 0, 100));
    bench.step(0, tokens(1, 0, 0, DECODE_TOKENS_MAX));
    bench.step(0, tokens(2, 0, 0, DECODE_TOKENS_MAX + 1));
    bench.finish();
    assert_eq!(bench.running()[0], (1, 0, DECODE_TOKENS_MAX));
    assert_eq!(bench.running().len(), 2, "and a part of a prompt");
}
