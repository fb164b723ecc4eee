//! Commands are carried out in the order in which they were given, on whichever thread; and what passes of
//! a tiny model come to.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use umbel_coordinator::server::{
    Batch, ComputeFailure, DrawJob, Job, JobId, SESSIONS_MAX, ShardId,
};
use umbel_engine::train::{Adapter, AdapterConfig, TargetModule};
use umbel_engine::{Head, HostedSpan};
use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::Sampling;
use umbel_protocol::{DType, SessionId, Span, Tensor};
use umbel_shard::layout::FINAL_NORM;
use umbel_shard::{Cache, Model, ModelSource, Part, PartsNeeded, Silent, Weight, Weights};

use super::floor::Floor;
use super::{
    COMMANDS_WAITING_MAX, Command, Compute, Computed, Engine, OpenAdapter, ServedHead, Shard,
    ShardEnds, Shards, TableWanted,
};

/// How long a thread may take on a machine with much to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// The session that every test opens.
const SESSION: SessionId = SessionId::new(1);

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
    let deadline = Instant::now() + PATIENCE;
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
        compute.tell(open(SessionId::new(session as u128), None));
    }
    for session in 0..SESSIONS_MAX {
        compute.tell(Command::Pages(Vec::new()));
        compute.tell(Command::Forget { session: SessionId::new(session as u128) });
    }
    let_go.send(()).expect("the engine waits");
}

fn open(session: SessionId, adapter: Option<OpenAdapter>) -> Command {
    let table =
        TableWanted { shard: ShardId::default(), blocks: blocks(), tokens: 8, cache: DType::F32 };
    Command::Open { session, table, results: DType::F32, prefix: Vec::new(), adapter }
}

/// Those of [`llama`].
fn blocks() -> Span {
    Span::new(0, 4).expect("it has blocks")
}

/// A tiny Llama, and its weights.
pub(crate) fn llama() -> (Model, Weights) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama");
    let source = ModelSource::parse(folder.to_str().unwrap()).unwrap();
    let cache = Cache::new(tempfile::tempdir().unwrap().path());
    let parts = PartsNeeded { head: true, ..PartsNeeded::span(blocks()) };
    let model = Model::open(&source, &cache, parts, &Silent).unwrap();
    let weights = model.weights(Part::Blocks(blocks())).unwrap();
    let weights = weights.and(model.weights(Part::Head).unwrap());
    (model, weights)
}

/// An engine that has its blocks and its head.
fn shards(model: &Model, weights: &Weights) -> (Shards, HostedSpan) {
    let hosted = HostedSpan::load(model.config(), weights, blocks()).unwrap();
    let arena = hosted.arena(model.config(), 64).unwrap();
    let head = ServedHead::Processor(Head::load(model.config(), weights).unwrap());
    let ends = ShardEnds { embedding: None, head: Some(head) };
    let shard = Shard { blocks: hosted.clone(), arena, ends };
    (Shards::new(shard, Floor::default()).0, hosted)
}

/// What comes of one token in a session of its own.
fn token(shards: &mut Shards, value: f32, draw: Option<DrawJob>) -> Result<Tensor, ComputeFailure> {
    shards.run(open(SESSION, None));
    let hidden = Tensor::from_f32(vec![1, 64], &[value; 64]).unwrap();
    let job = Job { session: SESSION, blocks: blocks(), position: 0, hidden, draw };
    let computed = shards.run(Command::Pass(Batch { id: JobId(1), jobs: vec![job] }));
    computed.unwrap().results.pop().unwrap()
}

/// The weights with a norm that has no number.
fn spoiled(weights: &Weights, norm: &str) -> Weights {
    let like = weights.get(norm).unwrap();
    let nothing = f32::NAN.to_le_bytes().repeat(like.columns());
    let nothing = Weight::new(like.weight_type(), vec![like.columns()], nothing).unwrap();
    weights.clone().and([(norm.to_owned(), nothing)].into_iter().collect())
}

#[test]
fn where_numbers_become_none_the_server_says_so_and_where_they_were_none_the_client_sees_it() {
    let (model, weights) = llama();
    let values = |result: Result<Tensor, ComputeFailure>| result.unwrap().to_f32();
    let (mut sound, _) = shards(&model, &weights);
    assert!(values(token(&mut sound, 1.0, None)).iter().all(|value| value.is_finite()));
    let (mut sound, _) = shards(&model, &weights);
    assert!(values(token(&mut sound, f32::NAN, None)).iter().all(|value| value.is_nan()));

    let norm = "model.layers.2.input_layernorm.weight";
    let (mut broken, _) = shards(&model, &spoiled(&weights, norm));
    let failure = token(&mut broken, 1.0, None).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal, "another server may do better");
    assert!(failure.detail.contains("no number"), "{}", failure.detail);
}

#[test]
fn a_head_that_says_nothing_of_the_next_token_draws_none() {
    let (model, weights) = llama();
    let draw = || {
        let sampling = Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        };
        Some(DrawJob { position: 1, sampling, text: Vec::new() })
    };
    let (mut sound, _) = shards(&model, &weights);
    assert!(token(&mut sound, 1.0, draw()).unwrap().to_ids().is_some());
    let (mut broken, _) = shards(&model, &spoiled(&weights, FINAL_NORM));
    let failure = token(&mut broken, 1.0, draw()).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal, "another server may do better");
    assert!(failure.detail.contains("no number"), "{}", failure.detail);
}

/// An adapter with magnitudes (DoRA), whose norms nobody has computed.
fn decomposed(model: &Model) -> Arc<Adapter> {
    let config = AdapterConfig {
        rank: 4,
        alpha: 8.0,
        weight_decomposed: true,
        target_modules: vec![TargetModule::Query, TargetModule::Down],
        ..AdapterConfig::default()
    };
    Arc::new(Adapter::begin(config, model.config(), blocks(), 7).unwrap())
}

#[tokio::test]
async fn the_first_pass_with_a_dora_adapter_finds_its_norms_computed() {
    let (model, weights) = llama();
    let (mut shards, hosted) = shards(&model, &weights);
    let adapter = decomposed(&model);
    assert!(!hosted.is_prepared(blocks(), &adapter));
    for session in [SESSION, SessionId::new(2)] {
        let (prepared, is_prepared) = oneshot::channel();
        let open_adapter = OpenAdapter { adapter: Arc::clone(&adapter), prepared: Some(prepared) };
        shards.run(open(session, Some(open_adapter)));
        let dropped = tokio::time::timeout(PATIENCE, is_prepared).await;
        assert!(dropped.expect("it comes to an end").is_err(), "nothing is sent");
        assert!(hosted.is_prepared(blocks(), &adapter), "{session}");
    }
}
