//! The engine and its thread: passes in, results out.

mod ends;
pub mod floor;
mod pages;
mod prepare;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use umbel_coordinator::server::{
    Batch, ComputeFailure, Job, JobId, PageId, PageOrder, SESSIONS_MAX, ShardId,
};
use umbel_engine::train::TrainError;
use umbel_engine::{ForwardError, GpuError, HiddenStates, HostedSpan, KvArena, KvTable};
use umbel_protocol::error::ErrorCode;
use umbel_protocol::{DType, SessionId, Span, Tensor};

use crate::driver::EVENTS_WAITING_MAX;
use ends::DrawError;
pub use ends::{ServedHead, ShardEnds};
use floor::Floor;
use pages::Pages;
pub use prepare::OpenAdapter;
use prepare::Preparer;

/// Commands beyond which no client opens a session: every session that there can be, opened and freed
/// again while one pass runs.
const BEHIND: usize = 2 * SESSIONS_MAX + 16;

/// Commands that wait for the thread. When there are [`BEHIND`], sessions can still take two commands
/// each to open and two to be freed, of which one says before the other what becomes of pages: all that
/// are open or wait for their adapter, which one part of it may open, and those whose messages were taken
/// together, before it was known how many commands they come to. Besides them there is one pass, with its
/// pages, and blocks that come or go.
const COMMANDS_WAITING_MAX: usize = BEHIND + 4 * (SESSIONS_MAX + EVENTS_WAITING_MAX) + 16;

/// Blocks and the arena of their keys and values.
pub struct Shard {
    /// The blocks.
    pub blocks: HostedSpan,
    /// Room for the keys and values of all sessions on them.
    pub arena: KvArena,
    /// What thin sessions need besides.
    pub ends: ShardEnds,
}

/// What the thread is told.
pub enum Command {
    /// Take up blocks on which sessions will open.
    Add {
        /// Their name.
        id: ShardId,
        /// The blocks.
        shard: Box<Shard>,
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
        /// What is to be opened.
        table: TableWanted,
        /// How its results are written.
        results: DType,
        /// Pages with which it begins.
        prefix: Vec<PageId>,
        /// What is added to the matrices for its tokens.
        adapter: Option<OpenAdapter>,
    },
    /// Keep pages, or drop them.
    Pages(Vec<PageOrder>),
    /// Compute a pass.
    Pass(Batch),
    /// Free a session's cache.
    Forget {
        /// Whose.
        session: SessionId,
    },
}

/// Keys and values of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableWanted {
    /// On which blocks of those that are held.
    pub shard: ShardId,
    /// In which blocks.
    pub blocks: Span,
    /// For how many tokens.
    pub tokens: u32,
    /// How they are kept.
    pub cache: DType,
}

/// A pass that is done.
#[derive(Debug)]
pub struct Computed {
    /// Which.
    pub job: JobId,
    /// What leaves the last block of each job, in the order of the jobs.
    pub results: Vec<Result<Tensor, ComputeFailure>>,
    /// How long it took.
    pub compute: Duration,
}

/// What carries commands out: an engine, or what stands for one where all else is measured.
pub trait Engine: Send + 'static {
    /// Carries it out; a pass has a result.
    fn run(&mut self, command: Command) -> Option<Computed>;
}

/// An engine with a thread of its own, for whoever alone gives it commands.
pub struct Compute {
    engine: Arc<Mutex<dyn Engine>>,
    commands: mpsc::Sender<Command>,
    /// Commands that the thread has been given and has not carried out.
    unfinished: Arc<AtomicUsize>,
}

impl Compute {
    /// Starts the thread, which ends when the result is dropped, and hands what it computes to
    /// `done`.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn start(engine: impl Engine, done: impl Fn(Computed) + Send + 'static) -> Self {
        let engine: Arc<Mutex<dyn Engine>> = Arc::new(Mutex::new(engine));
        let unfinished = Arc::new(AtomicUsize::new(0));
        let (commands, mut waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
        let (own, left) = (Arc::clone(&engine), Arc::clone(&unfinished));
        std::thread::Builder::new()
            .name("compute".to_owned())
            .spawn(move || {
                while let Some(command) = waiting.blocking_recv() {
                    let computed = lock(&own).run(command);
                    // Before the result is known, so that whoever knows it finds the engine free.
                    left.fetch_sub(1, Ordering::Release);
                    if let Some(computed) = computed {
                        done(computed);
                    }
                }
            })
            .expect("the system can start a thread");
        Self { engine, commands, unfinished }
    }

    /// Whether so many commands wait that no session is to open: who opens sessions and closes them again
    /// while a pass runs could fill the queue. What is left is enough for all that may still come.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed) > BEHIND
    }

    /// Leaves a command to the thread.
    ///
    /// # Panics
    /// If more wait than the machine of a server can ask for, or if the thread has panicked.
    pub fn tell(&self, command: Command) {
        self.unfinished.fetch_add(1, Ordering::Relaxed);
        self.commands.try_send(command).expect("the queue has room for every session's commands");
    }

    /// Carries a command out on the calling thread, if the engine has nothing else to do: for what is
    /// so short that two threads' waking each other would be a large part of it.
    ///
    /// # Errors
    /// The command, where the thread has others to carry out first.
    ///
    /// # Panics
    /// If the engine has panicked before.
    pub fn run_here(&self, command: Command) -> Result<Option<Computed>, Command> {
        if self.unfinished.load(Ordering::Acquire) > 0 {
            return Err(command);
        }
        Ok(lock(&self.engine).run(command))
    }
}

fn lock(engine: &Mutex<dyn Engine>) -> MutexGuard<'_, dyn Engine> {
    engine.lock().expect("an engine that has panicked computes nothing more")
}

/// Blocks, and the caches of the sessions on them.
pub struct Shards {
    shards: BTreeMap<ShardId, Shard>,
    tables: BTreeMap<SessionId, (ShardId, KvTable, DType)>,
    pages: Pages,
    preparer: Preparer,
    lost: Arc<Notify>,
}

impl Shards {
    /// The first blocks, and no session yet; and what says that their GPU is lost, after which no
    /// pass is computed any more. Adapters are prepared where the `floor` is free.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    #[must_use]
    pub fn new(first: Shard, floor: Floor) -> (Self, Arc<Notify>) {
        let shards = BTreeMap::from([(ShardId::default(), first)]);
        let lost = Arc::new(Notify::new());
        let (tables, pages) = (BTreeMap::new(), Pages::default());
        let preparer = Preparer::start(floor);
        (Self { shards, tables, pages, preparer, lost: Arc::clone(&lost) }, lost)
    }

    fn order_pages(&mut self, orders: Vec<PageOrder>) {
        let mut idle = Vec::new();
        for order in orders {
            match order {
                PageOrder::Keep { session, number, page } => {
                    let table = self.tables.get(&session).map(|(_, table, _)| table);
                    self.pages.keep(table, number, page);
                }
                PageOrder::Idle(page) => idle.push(page),
                PageOrder::Drop(page) => self.pages.drop_page(page),
            }
        }
        // What is dropped makes room for what became idle before it. All arenas share one budget.
        self.pages.charge(&idle, self.shards.values().next().map(|shard| &shard.arena));
    }

    fn open(
        &mut self,
        session: SessionId,
        wanted: TableWanted,
        results: DType,
        (prefix, adapter): (&[PageId], Option<OpenAdapter>),
    ) {
        let TableWanted { shard: id, blocks, tokens, cache } = wanted;
        self.pages.uncharge(prefix);
        let shard = self.shards.get(&id).expect("blocks are held as long as sessions use them");
        match shard.arena.open_as(cache, blocks, tokens as usize) {
            Ok(mut table) => {
                if let Some(open) = &adapter
                    && let Err(error) = shard.blocks.adapt(&mut table, Arc::clone(&open.adapter))
                {
                    // The session's first step reports it.
                    if let TrainError::Gpu(reason) = error {
                        tracing::warn!(%session, %reason, "the GPU cannot take up an adapter");
                        self.note_loss(&reason.into());
                    } else {
                        // It was made for this model.
                        tracing::error!(%session, %error, "an adapter that was made here does not fit");
                    }
                    return;
                }
                if let Some(open) = adapter {
                    self.preparer.prepare(&shard.blocks, blocks, open);
                }
                self.pages.begin(&mut table, prefix);
                self.tables.insert(session, (id, table, results));
            }
            // Admission counts as the arena does, so this is a bug; the session's first step will
            // report it to the client.
            Err(error) => tracing::error!(%session, %error, "admitted, but there is no room"),
        }
    }

    /// Computes all jobs together: one pass for each lot of blocks, and mostly there is one lot.
    fn pass(&mut self, jobs: &[Job]) -> Vec<Result<Tensor, ComputeFailure>> {
        let mut results: Vec<_> = jobs.iter().map(|_| None).collect();
        let mut ready: BTreeMap<ShardId, Vec<Ready>> = BTreeMap::new();
        for (index, job) in jobs.iter().enumerate() {
            match self.prepare(index, job) {
                Ok((shard, job)) => ready.entry(shard).or_default().push(job),
                Err(failure) => results[index] = Some(Err(failure)),
            }
        }
        for (id, mut ready) in ready {
            let shard = self.shards.get(&id).expect("sessions use only what is held");
            let mut batch: Vec<_> =
                ready.iter_mut().map(|ready| (&mut ready.table, &ready.input)).collect();
            let outputs = shard.blocks.forward_batch(&mut batch);
            let (mut drawing, mut draws, mut rows) = (Vec::new(), Vec::new(), Vec::new());
            for (job, output) in ready.into_iter().zip(outputs) {
                let output = output.map_err(|error| self.failed(&error));
                match (&jobs[job.index].draw, output.and_then(|left| numbers(&job.input, left))) {
                    (Some(draw), Ok(hidden)) => {
                        drawing.push(job.index);
                        draws.push(draw);
                        rows.push(hidden.last_row());
                    }
                    (_, output) => {
                        let result = output.map(|hidden| hidden.to_wire_as(job.results));
                        results[job.index] = Some(result);
                    }
                }
                self.tables.insert(job.session, (id, job.table, job.results));
            }
            for (index, drawn) in drawing.into_iter().zip(shard.ends.draw(&draws, &rows)) {
                results[index] = Some(drawn.map_err(|error| match error {
                    DrawError::Gpu(error) => self.failed_on_gpu(&error),
                    DrawError::Failed(failure) => failure,
                }));
            }
        }
        let done = |result: Option<_>| result.expect("every job is ready or has failed");
        results.into_iter().map(done).collect()
    }

    /// What the client hears of a pass that was not computed.
    fn failed(&self, error: &ForwardError) -> ComputeFailure {
        match error {
            ForwardError::Gpu { source } => self.failed_on_gpu(source),
            ForwardError::NotHosted { .. }
            | ForwardError::WrongHiddenSize { .. }
            | ForwardError::TableFull { .. }
            | ForwardError::Compute { .. } => internal(error.to_string()),
        }
    }

    fn failed_on_gpu(&self, error: &GpuError) -> ComputeFailure {
        tracing::warn!(reason = %error, "the GPU could not compute a pass");
        self.note_loss(error);
        internal("the GPU could not compute the pass".to_owned())
    }

    /// Tells of a GPU that can be used no more.
    fn note_loss(&self, error: &GpuError) {
        if error.is_fatal() {
            self.lost.notify_one();
        }
    }

    /// Takes the cache of a job's session, cut back to where the job begins. What cannot be computed
    /// leaves the cache in its place.
    fn prepare(&mut self, index: usize, job: &Job) -> Result<(ShardId, Ready), ComputeFailure> {
        let session = job.session;
        let (shard, table, _) = self
            .tables
            .get_mut(&session)
            .ok_or_else(|| internal("the session has no cache".to_owned()))?;
        let shard = *shard;
        let held = self.shards.get(&shard).expect("sessions use only what is held");
        let input = match job.hidden.to_ids() {
            Some(ids) => held.ends.embed(&ids)?,
            None => HiddenStates::from_wire(&job.hidden, held.blocks.hidden_size()).map_err(
                |error| ComputeFailure { code: ErrorCode::WrongShape, detail: error.to_string() },
            )?,
        };
        table.truncate(job.position as usize).map_err(|error| ComputeFailure {
            code: ErrorCode::WrongPosition,
            detail: error.to_string(),
        })?;
        let (_, table, results) = self.tables.remove(&session).expect("it was there just now");
        Ok((shard, Ready { index, session, table, results, input }))
    }
}

impl Engine for Shards {
    fn run(&mut self, command: Command) -> Option<Computed> {
        match command {
            Command::Add { id, shard } => {
                self.shards.insert(id, *shard);
            }
            Command::Drop { id } => {
                self.shards.remove(&id);
            }
            Command::Open { session, table, results, prefix, adapter } => {
                self.open(session, table, results, (&prefix, adapter));
            }
            Command::Pages(orders) => self.order_pages(orders),
            Command::Pass(batch) => {
                let started = Instant::now();
                let results = self.pass(&batch.jobs);
                return Some(Computed { job: batch.id, results, compute: started.elapsed() });
            }
            Command::Forget { session } => {
                self.tables.remove(&session);
            }
        }
        None
    }
}

/// A job that can be computed.
struct Ready {
    /// Its place among the jobs of the pass.
    index: usize,
    session: SessionId,
    table: KvTable,
    /// How what comes out is written.
    results: DType,
    input: HiddenStates,
}

/// What has `left` the blocks, where it is numbers, or what entered them was none: then who handed that in
/// is at fault, and sees what it comes to.
fn numbers(entered: &HiddenStates, left: HiddenStates) -> Result<HiddenStates, ComputeFailure> {
    if left.are_finite() || !entered.are_finite() {
        return Ok(left);
    }
    tracing::warn!("numbers have become none in the blocks; the session goes on elsewhere");
    Err(internal("what left its blocks is no number, though what entered them was".to_owned()))
}

fn internal(detail: String) -> ComputeFailure {
    ComputeFailure { code: ErrorCode::Internal, detail }
}
