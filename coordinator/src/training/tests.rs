//! The host against trainers that come back, fail, and ask for too much.

use umbel_protocol::training::{
    AdamWSettings, AdapterSettings, ForwardMicrobatch, OptimizerStep, STATE_VALUES_MAX, StateKind,
    StateValues, TargetModule, TrainingSequence,
};
use umbel_protocol::{DType, Tensor};

use super::*;

const MODEL: ModelId = ModelId::from_bytes([3; 32]);
const ANNA: PeerId = PeerId::from_public_key([1; 32]);
const BEN: PeerId = PeerId::from_public_key([2; 32]);
const HIDDEN: u32 = 2;

fn host(bytes_max: u64) -> Host {
    Host::new(HostConfig {
        model: MODEL,
        span: Span::new(2, 6).unwrap(),
        hidden_size: HIDDEN,
        module_shapes: [
            Some([2, 2]),
            Some([1, 2]),
            Some([1, 2]),
            Some([2, 2]),
            Some([6, 2]),
            None,
            Some([2, 6]),
        ],
        context_tokens: 16,
        bytes_max,
    })
}

fn opening(session: u128) -> OpenTraining {
    OpenTraining {
        session: SessionId::new(session),
        model: MODEL,
        blocks: Span::new(3, 5).unwrap(),
        adapter: AdapterSettings {
            rank: 2,
            alpha: 4.0,
            rank_stabilized: false,
            dropout: 0.0,
            target_modules: vec![TargetModule::Query, TargetModule::Down],
            block_prompt_tokens: 0,
            weight_decomposed: false,
        },
        optimizer: AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 },
        seed: 1,
        steps: 0,
        tokens_max: 10,
    }
}

/// Of the session above: 4 rows of 2 * (4 + 8) * 2 values, 10 tokens in 2 blocks, and 3 messages of a
/// state.
const BYTES: u64 = 4 * 4 * 48 + 10 * 2 * 4 * 2 + 3 * 4 * (1 << 18);

fn rows(tokens: u32) -> Tensor {
    let bytes = vec![0; (tokens * HIDDEN * 4) as usize];
    Tensor::new(DType::F32, vec![tokens, HIDDEN], bytes.into()).unwrap()
}

fn forward(microbatch: u64, tokens: u32) -> TrainerMessage {
    let sequences = vec![TrainingSequence { tokens, dropout_seed: 0 }];
    let hidden = rows(tokens);
    TrainerMessage::Forward(ForwardMicrobatch { microbatch, sequences, evaluate: false, hidden })
}

fn backward(microbatch: u64, tokens: u32) -> TrainerMessage {
    TrainerMessage::Backward { microbatch, gradient: rows(tokens), apart: false }
}

fn step(number: u64) -> TrainerMessage {
    TrainerMessage::Step(OptimizerStep { number, learning_rate: 0.1, factor: 1.0 })
}

/// A host with an accelerator that answers at once, and counts the steps that it takes.
struct World {
    host: Host,
    now: Time,
    /// Work that was given out, in order; none is answered where `holds`.
    work: Vec<(u128, &'static str)>,
    holds: bool,
    steps_taken: Vec<u64>,
    sent: Vec<(u64, TrainingAnswer)>,
    closed: Vec<u64>,
}

impl World {
    fn new(bytes_max: u64) -> Self {
        Self {
            host: host(bytes_max),
            now: Time::START,
            work: Vec::new(),
            holds: false,
            steps_taken: Vec::new(),
            sent: Vec::new(),
            closed: Vec::new(),
        }
    }

    fn say(&mut self, from: PeerId, link: u64, message: TrainerMessage) {
        let link = LinkId(link);
        self.host.handle(Input::Received { link, from, message }, self.now).unwrap();
        self.go_on();
    }

    fn refused(&mut self, from: PeerId, link: u64, message: TrainerMessage) -> ProtocolViolation {
        let link = LinkId(link);
        self.host.handle(Input::Received { link, from, message }, self.now).unwrap_err()
    }

    fn lose(&mut self, link: u64) {
        self.host.handle(Input::LinkClosed { link: LinkId(link) }, self.now).unwrap();
        self.go_on();
    }

    /// The accelerator finishes what it was given last.
    fn finish(&mut self, answer: Option<TrainingAnswer>) {
        self.host.handle(Input::Computed(Ok(answer)), self.now).unwrap();
        self.go_on();
    }

    fn go_on(&mut self) {
        while let Some(output) = self.host.poll() {
            match output {
                Output::Send { link, answer } => self.sent.push((link.0, answer)),
                Output::Close { link } => self.closed.push(link.0),
                Output::Compute { session, work } => {
                    let (name, answer) = self.compute(work);
                    self.work.push((session.number(), name));
                    if !self.holds {
                        self.host.handle(Input::Computed(Ok(answer)), self.now).unwrap();
                    }
                }
            }
        }
    }

    fn compute(&mut self, work: Work) -> (&'static str, Option<TrainingAnswer>) {
        match work {
            Work::Begin { .. } => ("begin", None),
            Work::Reset => ("reset", None),
            Work::Forget => ("forget", None),
            Work::Message(TrainerMessage::Forward(ForwardMicrobatch {
                microbatch,
                hidden,
                ..
            })) => ("forward", Some(TrainingAnswer::Forwarded { microbatch, hidden })),
            Work::Message(TrainerMessage::Backward { microbatch, gradient, .. }) => {
                ("backward", Some(TrainingAnswer::Backwarded { microbatch, gradient }))
            }
            Work::Message(TrainerMessage::Step(step)) => {
                self.steps_taken.push(step.number);
                ("step", Some(stepped(step.number)))
            }
            Work::Message(_) => ("other", Some(TrainingAnswer::Written)),
        }
    }

    fn opened(&self, link: u64) -> Option<(u64, bool)> {
        self.sent.iter().rev().filter(|(of, _)| *of == link).find_map(|(_, answer)| {
            let TrainingAnswer::Opened { steps, resumed, .. } = answer else { return None };
            Some((*steps, *resumed))
        })
    }

    fn error(&self, link: u64) -> Option<ErrorCode> {
        self.sent.iter().rev().filter(|(of, _)| *of == link).find_map(|(_, answer)| {
            let TrainingAnswer::Error { code, .. } = answer else { return None };
            Some(*code)
        })
    }
}

fn stepped(number: u64) -> TrainingAnswer {
    TrainingAnswer::Stepped { number, digest: [7; 32] }
}

#[test]
fn a_step_whose_answer_was_lost_is_answered_and_not_taken_again() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    assert_eq!(world.opened(1), Some((0, false)));
    world.say(ANNA, 1, forward(1, 4));
    world.say(ANNA, 1, backward(1, 4));
    world.holds = true;
    world.say(ANNA, 1, step(1));
    // The link is gone while the step is taken.
    world.lose(1);
    world.holds = false;
    world.finish(Some(stepped(1)));
    assert!(!world.sent.contains(&(1, stepped(1))), "nobody hears it on a link that is gone");
    world.say(ANNA, 2, TrainerMessage::Open(opening(5)));
    assert_eq!(world.opened(2), Some((1, true)));
    world.say(ANNA, 2, step(1));
    assert_eq!(world.sent.last(), Some(&(2, stepped(1))));
    world.say(ANNA, 2, step(2));
    assert_eq!(world.steps_taken, [1, 2]);
}

#[test]
fn a_step_out_of_order_ends_the_session() {
    for message in [step(2), step(0)] {
        let mut world = World::new(BYTES * 2);
        world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
        world.say(ANNA, 1, message);
        assert_eq!(world.error(1), Some(ErrorCode::WrongPosition));
        assert_eq!((world.closed, world.steps_taken), (vec![1], vec![]));
        assert_eq!((world.host.session_count(), world.host.bytes_free()), (0, BYTES * 2));
        assert_eq!(world.work.last(), Some(&(5, "forget")));
    }
}

#[test]
fn what_was_under_way_when_a_link_closed_is_dropped_before_the_trainer_goes_on() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    world.say(ANNA, 1, forward(1, 4));
    world.holds = true;
    world.say(ANNA, 1, backward(1, 4));
    world.say(ANNA, 1, forward(2, 4));
    // The trainer comes back before its former link is known to be gone.
    world.say(ANNA, 2, TrainerMessage::Open(opening(5)));
    assert_eq!(world.closed, [1]);
    world.holds = false;
    world.finish(Some(TrainingAnswer::Backwarded { microbatch: 1, gradient: rows(4) }));
    world.lose(1);
    assert_eq!(world.opened(2), Some((0, false)));
    world.say(ANNA, 2, forward(1, 4));
    let names: Vec<_> = world.work.iter().map(|(_, name)| *name).collect();
    assert_eq!(names, ["begin", "forward", "backward", "reset", "forward"]);
    assert!(matches!(world.sent.last(), Some((2, TrainingAnswer::Forwarded { .. }))));
}

#[test]
fn nobody_reaches_the_session_of_another() {
    let mut world = World::new(BYTES * 4);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    let refused = world.refused(BEN, 2, TrainerMessage::Open(opening(5)));
    assert_eq!(refused, ProtocolViolation::NotAllowed { message: "OpenTraining" });
    assert!(matches!(
        world.refused(BEN, 2, TrainerMessage::Close),
        ProtocolViolation::Unexpected { .. }
    ));
    let other = OpenTraining { seed: 2, ..opening(5) };
    assert!(matches!(
        world.refused(ANNA, 3, TrainerMessage::Open(other)),
        ProtocolViolation::Unexpected { .. }
    ));
    world.say(ANNA, 1, forward(1, 4));
    assert!(matches!(world.sent.last(), Some((1, TrainingAnswer::Forwarded { .. }))));
}

#[test]
fn trainers_take_turns() {
    let mut world = World::new(BYTES * 6);
    for (trainer, link) in [(ANNA, 1), (ANNA, 2), (BEN, 3)] {
        world.say(trainer, link, TrainerMessage::Open(opening(link.into())));
    }
    world.work.clear();
    world.holds = true;
    for _ in 0..2 {
        [(ANNA, 1), (ANNA, 2), (BEN, 3)]
            .into_iter()
            .for_each(|(trainer, link)| world.say(trainer, link, TrainerMessage::Write(state(0))));
    }
    for _ in 0..6 {
        world.finish(Some(TrainingAnswer::Written));
    }
    let sessions: Vec<_> = world.work.iter().map(|(session, _)| *session).collect();
    assert_eq!(sessions, [1, 3, 2, 3, 1, 2], "half of the time is each trainer's");
}

fn state(offset: u64) -> StateValues {
    let values = Tensor::from_f32(vec![2], &[0.0; 2]).unwrap();
    StateValues { kind: StateKind::Values, offset, values }
}

fn gradients(offset: u64) -> StateValues {
    StateValues { kind: StateKind::Gradients, ..state(offset) }
}

#[test]
fn gradients_may_be_written_before_any_step() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    for number in 1..3 {
        world.say(ANNA, 1, TrainerMessage::Write(gradients(0)));
        world.say(ANNA, 1, step(number));
    }
    assert_eq!((world.error(1), world.steps_taken), (None, vec![1, 2]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let open = |change: &dyn Fn(&mut OpenTraining), bytes_max| {
        let mut world = World::new(bytes_max);
        let mut open = opening(5);
        change(&mut open);
        world.say(ANNA, 1, TrainerMessage::Open(open));
        assert_eq!(world.closed.len(), usize::from(world.error(1).is_some()));
        world.error(1)
    };
    assert_eq!(open(&|_| {}, 2 * BYTES), None);
    assert_eq!(open(&|_| {}, 2 * BYTES - 1), Some(ErrorCode::KvFull));
    assert_eq!(open(&|open| open.adapter.rank = 3, 2 * BYTES), Some(ErrorCode::KvFull));
    assert_eq!(open(&|open| open.tokens_max = u32::MAX, u64::MAX / 2), None);
    assert_eq!(open(&|open| open.tokens_max = 0, u64::MAX), Some(ErrorCode::ContextExceeded));
    let elsewhere = Span::new(5, 7).unwrap();
    let code = open(&|open| open.blocks = elsewhere, u64::MAX);
    assert_eq!(code, Some(ErrorCode::BlocksNotServed));
    let nowhere = |open: &mut OpenTraining| open.adapter.target_modules = vec![TargetModule::Up];
    assert_eq!(open(&nowhere, u64::MAX), Some(ErrorCode::BlocksNotServed), "there are experts");
    let code = open(&|open| open.model = ModelId::from_bytes([9; 32]), u64::MAX);
    assert_eq!(code, Some(ErrorCode::UnknownModel));
}

#[test]
fn messages_that_do_not_fit_the_session_end_it() {
    let mut cases: Vec<(Vec<TrainerMessage>, ErrorCode)> = vec![
        (vec![forward(1, 11)], ErrorCode::ContextExceeded),
        (vec![forward(1, 6), forward(2, 5)], ErrorCode::ContextExceeded),
        (vec![forward(1, 2), forward(1, 2)], ErrorCode::WrongPosition),
        (vec![backward(1, 2)], ErrorCode::WrongPosition),
        (vec![forward(1, 2), backward(1, 3)], ErrorCode::WrongShape),
        (vec![forward(1, 2), step(1)], ErrorCode::WrongPosition),
        (vec![TrainerMessage::Write(state(47))], ErrorCode::WrongShape),
        (vec![step(1), TrainerMessage::Write(state(0))], ErrorCode::WrongShape),
    ];
    cases.push((vec![TrainerMessage::Write(gradients(47))], ErrorCode::WrongShape));
    let read = TrainerMessage::Read { kind: StateKind::Values, offset: 40, count: 9 };
    cases.push((vec![read], ErrorCode::WrongShape));
    for (messages, code) in cases {
        let mut world = World::new(BYTES * 2);
        world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
        messages.into_iter().for_each(|message| world.say(ANNA, 1, message));
        assert_eq!(world.error(1), Some(code));
    }
}

#[test]
fn tokens_are_free_again_when_a_microbatch_has_come_back() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    for number in 1..4 {
        world.say(ANNA, 1, forward(number, 10));
        world.say(ANNA, 1, backward(number, 10));
    }
    world.say(ANNA, 1, step(1));
    assert_eq!((world.error(1), world.steps_taken), (None, vec![1]));
}

#[test]
fn a_session_ends_with_its_lease() {
    let mut world = World::new(BYTES * 2);
    assert_eq!(world.host.poll_timeout(), None);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    assert_eq!(world.host.poll_timeout(), Some(Time::START + IDLE_LEASE));
    world.lose(1);
    let end = Time::START + ORPHAN_LEASE;
    assert_eq!(world.host.poll_timeout(), Some(end));
    world.host.handle_timeout(Time::START + ORPHAN_LEASE / 2);
    assert_eq!(world.host.session_count(), 1);
    world.host.handle_timeout(end);
    world.go_on();
    assert_eq!((world.host.session_count(), world.host.bytes_free()), (0, BYTES * 2));
    assert_eq!(world.work.last(), Some(&(5, "forget")));
}

#[test]
fn what_a_trainer_has_lost_makes_room_for_what_it_opens_instead() {
    let mut world = World::new(BYTES * 3);
    world.say(BEN, 1, TrainerMessage::Open(opening(1)));
    world.lose(1);
    for session in 5..9 {
        // The one that was lost first goes first.
        world.now = world.now + Duration::from_secs(1);
        world.say(ANNA, session, TrainerMessage::Open(opening(session.into())));
        assert_eq!(world.opened(session), Some((0, false)), "{session}");
        world.lose(session);
    }
    let forgotten: Vec<_> = world.work.iter().filter(|(_, name)| *name == "forget").collect();
    assert_eq!(forgotten, [&(5, "forget"), &(6, "forget")]);
    world.say(BEN, 2, TrainerMessage::Open(opening(1)));
    assert_eq!(world.opened(2), Some((0, false)), "nobody takes the room of another");

    // One that would be too large in any case takes nothing from those that may come back.
    world.say(ANNA, 9, TrainerMessage::Open(OpenTraining { tokens_max: 1 << 20, ..opening(9) }));
    assert_eq!((world.error(9), world.host.session_count()), (Some(ErrorCode::KvFull), 3));

    // What has a link stays.
    world.say(ANNA, 11, TrainerMessage::Open(opening(7)));
    world.say(ANNA, 12, TrainerMessage::Open(opening(8)));
    world.say(ANNA, 13, TrainerMessage::Open(opening(9)));
    assert_eq!((world.error(13), world.host.session_count()), (Some(ErrorCode::KvFull), 3));
}

#[test]
fn a_trainer_with_as_many_sessions_as_it_may_have_opens_one_in_the_place_of_one_that_it_lost() {
    let most = SESSIONS_PER_TRAINER_MAX as u64;
    let mut world = World::new(BYTES * (most + 1));
    for session in 1..=most {
        world.say(ANNA, session, TrainerMessage::Open(opening(session.into())));
    }
    world.say(ANNA, 20, TrainerMessage::Open(opening(20)));
    assert_eq!(world.error(20), Some(ErrorCode::Busy));
    world.lose(3);
    world.say(ANNA, 21, TrainerMessage::Open(opening(21)));
    assert_eq!((world.opened(21), world.work.last()), (Some((0, false)), Some(&(21, "begin"))));
}

#[test]
fn who_leaves_waits_for_the_work_of_nobody_else() {
    let mut world = World::new(BYTES * 4);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    world.say(BEN, 2, TrainerMessage::Open(opening(6)));
    world.holds = true;
    world.say(BEN, 2, forward(1, 4));
    world.say(ANNA, 1, TrainerMessage::Close);
    assert_eq!(world.sent.last(), Some(&(1, TrainingAnswer::Closed)));
    assert_eq!(world.host.bytes_free(), BYTES * 3);

    // Its own work it does wait for, but it leaves nothing behind where it does not.
    world.say(BEN, 2, TrainerMessage::Close);
    assert_eq!(world.sent.last(), Some(&(1, TrainingAnswer::Closed)));
    world.lose(2);
    assert_eq!((world.host.session_count(), world.host.bytes_free()), (0, BYTES * 4));
    world.holds = false;
    world.finish(Some(TrainingAnswer::Forwarded { microbatch: 1, hidden: rows(4) }));
    assert_eq!(world.work[world.work.len() - 2..], [(5, "forget"), (6, "forget")]);
}

#[test]
fn a_server_that_leaves_ends_all_trainings() {
    let shard = ShardId(1);
    let moved = Input::Serve { shard, span: Span::new(0, 3).unwrap() };
    for (input, code) in [(Input::Drain, ErrorCode::Draining), (moved, ErrorCode::BlocksNotServed)]
    {
        let mut world = World::new(BYTES * 2);
        world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
        world.host.handle(input, world.now).unwrap();
        world.go_on();
        assert_eq!((world.error(1), world.host.session_count()), (Some(ErrorCode::Draining), 0));
        world.say(ANNA, 2, TrainerMessage::Open(opening(5)));
        assert_eq!(world.error(2), Some(code));
    }
}

#[test]
fn a_server_that_goes_on_takes_trainings_again() {
    for span in [Span::new(2, 6).unwrap(), Span::new(3, 8).unwrap()] {
        let mut world = World::new(BYTES * 2);
        world.host.handle(Input::Drain, world.now).unwrap();
        world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
        assert_eq!(world.error(1), Some(ErrorCode::Draining));
        world.host.handle(Input::Serve { shard: ShardId(1), span }, world.now).unwrap();
        world.say(ANNA, 2, TrainerMessage::Open(opening(5)));
        assert_eq!((world.opened(2), world.error(2)), (Some((0, false)), None));
    }
}

#[test]
fn a_trainer_that_does_not_wait_for_answers_is_cut_off() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    world.holds = true;
    for _ in 0..MESSAGES_UNANSWERED_MAX {
        world.say(ANNA, 1, TrainerMessage::Write(state(0)));
    }
    let violation = world.refused(ANNA, 1, TrainerMessage::Write(state(0)));
    assert!(matches!(violation, ProtocolViolation::TooMany { .. }));
}

#[test]
fn a_trainer_has_no_less_without_an_answer_while_the_work_of_another_is_computed() {
    let mut world = World::new(BYTES * 4);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    world.say(BEN, 2, TrainerMessage::Open(opening(6)));
    world.holds = true;
    world.say(BEN, 2, TrainerMessage::Write(state(0)));
    for _ in 0..MESSAGES_UNANSWERED_MAX {
        world.say(ANNA, 1, TrainerMessage::Write(state(0)));
    }
    let violation = world.refused(ANNA, 1, TrainerMessage::Write(state(0)));
    assert!(matches!(violation, ProtocolViolation::TooMany { .. }));
    for _ in 0..=MESSAGES_UNANSWERED_MAX {
        world.finish(Some(TrainingAnswer::Written));
    }
    let answered = world.sent.iter().filter(|sent| **sent == (1, TrainingAnswer::Written));
    assert_eq!(answered.count(), MESSAGES_UNANSWERED_MAX);
}

#[test]
fn a_message_that_is_larger_than_any_of_its_session_is_a_violation() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    let tokens = u32::try_from(STATE_VALUES_MAX).unwrap() / HIDDEN;
    world.say(ANNA, 1, forward(1, tokens));
    assert_eq!(world.error(1), Some(ErrorCode::ContextExceeded));
    world.say(ANNA, 2, TrainerMessage::Open(opening(6)));
    let violation = world.refused(ANNA, 2, forward(1, tokens + 1));
    assert!(matches!(violation, ProtocolViolation::OutOfBounds { .. }));
}

#[test]
fn a_name_is_not_taken_again_before_the_accelerator_has_let_go_of_it() {
    let mut world = World::new(BYTES * 2);
    world.say(ANNA, 1, TrainerMessage::Open(opening(5)));
    world.holds = true;
    world.say(ANNA, 1, TrainerMessage::Close);
    assert_eq!(world.sent.last(), Some(&(1, TrainingAnswer::Closed)));
    world.say(ANNA, 2, TrainerMessage::Open(opening(5)));
    assert_eq!(world.error(2), Some(ErrorCode::Busy));
    world.finish(None);
    world.holds = false;
    world.say(ANNA, 3, TrainerMessage::Open(opening(5)));
    assert_eq!(world.opened(3), Some((0, false)));
}

/// Of 2 blocks with 3 tokens of 2 values each, and of blocks that are frozen.
#[test]
fn prompts_of_blocks_are_counted_and_frozen_blocks_have_nothing() {
    for (tokens, values) in [(3, 12), (0, 0)] {
        let adapter = AdapterSettings {
            rank: 0,
            alpha: 0.0,
            rank_stabilized: false,
            dropout: 0.0,
            target_modules: Vec::new(),
            block_prompt_tokens: tokens,
            weight_decomposed: false,
        };
        let open = || OpenTraining { adapter: adapter.clone(), ..opening(1) };
        let bytes = BYTES - 4 * 4 * 48 + 4 * 4 * values;
        // Half of what there is may be one session's.
        let mut world = World::new(2 * bytes - 1);
        world.say(ANNA, 1, TrainerMessage::Open(open()));
        let refused = |sent: &TrainingAnswer| {
            matches!(sent, TrainingAnswer::Error { code: ErrorCode::KvFull, .. })
        };
        assert!(refused(&world.sent[0].1), "{:?}", world.sent);
        let mut world = World::new(2 * bytes);
        world.say(ANNA, 1, TrainerMessage::Open(open()));
        let opened = TrainingAnswer::Opened { steps: 0, resumed: false, value_count: values };
        assert_eq!(world.sent[0].1, opened);
        assert_eq!(world.host.bytes_free(), bytes);
        // A value more than there is.
        let count = u32::try_from(values + 1).unwrap();
        world.say(ANNA, 1, TrainerMessage::Read { kind: StateKind::Values, offset: 0, count });
        let last = &world.sent.last().unwrap().1;
        assert!(
            matches!(last, TrainingAnswer::Error { code: ErrorCode::WrongShape, .. }),
            "{last:?}"
        );
    }
}

/// Two rows of each of two modules in 2 blocks: a value in four rows and two scales for each.
#[test]
fn magnitudes_are_counted_and_no_norms_beyond_them_are_computed() {
    let open = || {
        let open = opening(1);
        let adapter = AdapterSettings { weight_decomposed: true, ..open.adapter };
        OpenTraining { adapter, ..open }
    };
    let (values, magnitudes) = (56, 8);
    let bytes = BYTES + magnitudes * (4 * 4 + 2 * 4);
    let mut world = World::new(2 * bytes - 1);
    world.say(ANNA, 1, TrainerMessage::Open(open()));
    assert_eq!(world.error(1), Some(ErrorCode::KvFull));
    let mut world = World::new(2 * bytes);
    world.say(ANNA, 1, TrainerMessage::Open(open()));
    let opened = TrainingAnswer::Opened { steps: 0, resumed: false, value_count: values };
    assert_eq!(world.sent[0].1, opened);
    world.say(ANNA, 1, TrainerMessage::RowNorms { offset: 3, count: 5 });
    assert_eq!((world.work.len(), world.error(1)), (2, None));
    world.say(ANNA, 1, TrainerMessage::RowNorms { offset: 4, count: 5 });
    assert_eq!((world.work.len(), world.error(1)), (3, Some(ErrorCode::WrongShape)));
    assert_eq!(world.work[2].1, "forget");
    for (link, offset) in [(2, 0), (3, u64::MAX)] {
        // One without magnitudes has none at all.
        world.say(ANNA, link, TrainerMessage::Open(opening(link.into())));
        world.say(ANNA, link, TrainerMessage::RowNorms { offset, count: 1 });
        assert_eq!(world.error(link), Some(ErrorCode::WrongShape));
    }
}
