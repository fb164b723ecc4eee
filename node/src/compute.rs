//! The thread that owns the engine: jobs in, results out.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use umbel_coordinator::server::{ComputeFailure, Job, JobId, ShardId};
use umbel_engine::{HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_protocol::error::ErrorCode;
use umbel_protocol::{DType, SessionId, Span, Tensor};

/// Commands that wait for the thread: of each session one to open its cache, one to free it, and
/// one job for all of them.
pub const COMMANDS_WAITING_MAX: usize = 2 * umbel_coordinator::server::SESSIONS_MAX + 16;

/// Blocks and the arena of their keys and values.
pub struct Shard {
    /// The blocks.
    pub blocks: HostedSpan,
    /// Room for the keys and values of all sessions on them.
    pub arena: KvArena,
}

/// What the thread is told.
pub enum Command {
    /// Take up blocks on which sessions will open.
    Add {
        /// Their name.
        id: ShardId,
        /// The blocks.
        shard: Shard,
    },
    /// Drop blocks that no session uses any more.
    Drop {
        /// Their name.
        id: ShardId,
    },
    /// Make room for a session.
    Open {
        /// Whose.
        session: SessionId,
        /// On which blocks of those that are held.
        shard: ShardId,
        /// In which blocks.
        blocks: Span,
        /// For how many tokens.
        tokens: u32,
        /// How its results are written.
        results: DType,
    },
    /// Compute a step.
    Step(Job),
    /// Free a session's cache.
    Forget {
        /// Whose.
        session: SessionId,
    },
}

/// A job that is done.
#[derive(Debug)]
pub struct Computed {
    /// Which.
    pub job: JobId,
    /// What leaves its last block.
    pub result: Result<Tensor, ComputeFailure>,
    /// How long it took.
    pub compute: Duration,
}

/// Starts the thread, which ends when the sender is dropped.
///
/// # Panics
/// If the system cannot start a thread.
pub fn start(
    shard: Shard,
    done: impl Fn(Computed) + Send + 'static,
) -> (mpsc::Sender<Command>, JoinHandle<()>) {
    let (send, receive) = mpsc::channel(COMMANDS_WAITING_MAX);
    let shards = BTreeMap::from([(ShardId::default(), shard)]);
    let engine = Engine { shards, tables: BTreeMap::new() };
    let thread = std::thread::Builder::new()
        .name("compute".to_owned())
        .spawn(move || engine.run(receive, done))
        .expect("the system can start a thread");
    (send, thread)
}

struct Engine {
    shards: BTreeMap<ShardId, Shard>,
    tables: BTreeMap<SessionId, (ShardId, KvTable, DType)>,
}

impl Engine {
    fn run(mut self, mut commands: mpsc::Receiver<Command>, done: impl Fn(Computed)) {
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Add { id, shard } => {
                    self.shards.insert(id, shard);
                }
                Command::Drop { id } => {
                    self.shards.remove(&id);
                }
                Command::Open { session, shard, blocks, tokens, results } => {
                    self.open(session, shard, blocks, tokens, results);
                }
                Command::Step(job) => {
                    let started = Instant::now();
                    let id = job.id;
                    let result = self.step(&job);
                    done(Computed { job: id, result, compute: started.elapsed() });
                }
                Command::Forget { session } => {
                    if let Some((shard, table, _)) = self.tables.remove(&session)
                        && let Some(shard) = self.shards.get(&shard)
                    {
                        shard.arena.close(table);
                    }
                }
            }
        }
    }

    fn open(&mut self, session: SessionId, id: ShardId, blocks: Span, tokens: u32, results: DType) {
        let shard = self.shards.get(&id).expect("blocks are held as long as sessions use them");
        match shard.arena.open(blocks, tokens as usize) {
            Ok(table) => {
                self.tables.insert(session, (id, table, results));
            }
            // Admission counts as the arena does, so this is a bug; the session's first step will
            // report it to the client.
            Err(error) => tracing::error!(%session, %error, "admitted, but there is no room"),
        }
    }

    fn step(&mut self, job: &Job) -> Result<Tensor, ComputeFailure> {
        let (id, table, results) =
            self.tables.get_mut(&job.session).ok_or_else(|| ComputeFailure {
                code: ErrorCode::Internal,
                detail: "the session has no cache".to_owned(),
            })?;
        let blocks = &self.shards.get(id).expect("sessions use only what is held").blocks;
        let hidden =
            HiddenStates::from_wire(&job.hidden, blocks.hidden_size()).map_err(|error| {
                ComputeFailure { code: ErrorCode::WrongShape, detail: error.to_string() }
            })?;
        table.truncate(job.position as usize).map_err(|error| ComputeFailure {
            code: ErrorCode::WrongPosition,
            detail: error.to_string(),
        })?;
        let hidden = blocks.forward(table, &hidden).map_err(|error| ComputeFailure {
            code: ErrorCode::Internal,
            detail: error.to_string(),
        })?;
        Ok(hidden.to_wire_as(*results))
    }
}
