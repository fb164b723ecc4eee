//! Clients that ask a swarm again and again, whatever is done to it meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use umbel_client::{Chain, ClientModel, Speculate, Swarm};

use crate::workload::{Workload, ask};

/// What every client asks for, and what it must get.
#[derive(Clone)]
pub struct Question {
    /// The ends of the model.
    pub model: Arc<ClientModel>,
    /// What is asked.
    pub workload: Workload,
    /// The prompt and the answer of one process.
    pub expected: Vec<u32>,
}

/// Clients under way. They end when this is dropped.
pub struct Clients {
    stop: watch::Sender<bool>,
    /// How many tokens all of them have got; closed when the last one has ended.
    tokens: watch::Receiver<usize>,
    tasks: JoinSet<anyhow::Result<Answers>>,
}

/// What came of a client, or of all of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answers {
    /// Answers that were as expected; the first that is not ends the client with an error.
    pub count: usize,
    /// Hops that were replaced on the way.
    pub replaced: usize,
    /// The longest time that anyone waited for a session or a token.
    pub longest_wait: Duration,
}

impl Clients {
    /// Starts a client for each of these swarms.
    #[must_use]
    pub fn start(swarms: Vec<Arc<Swarm>>, question: &Question) -> Self {
        let (stop, tokens) = (watch::Sender::new(false), watch::Sender::new(0));
        let got = tokens.subscribe();
        let mut tasks = JoinSet::new();
        for swarm in swarms {
            tasks.spawn(client(swarm, question.clone(), stop.subscribe(), tokens.clone()));
        }
        Self { stop, tokens: got, tasks }
    }

    /// Waits until they have got so many tokens more, or have all failed.
    pub async fn go_on(&mut self, tokens: usize) {
        let goal = *self.tokens.borrow() + tokens;
        // Why they have failed is said at the end.
        let _failed = self.tokens.wait_for(|got| *got >= goal).await;
    }

    /// Lets each end the answer that it is at; each has had one at least.
    ///
    /// # Errors
    /// Where one of them failed, or got an answer that it should not have got.
    pub async fn stop(mut self) -> anyhow::Result<Answers> {
        self.stop.send_replace(true);
        let mut all = Answers::default();
        while let Some(answers) = self.tasks.join_next().await {
            let answers = answers??;
            all.count += answers.count;
            all.replaced += answers.replaced;
            all.longest_wait = all.longest_wait.max(answers.longest_wait);
        }
        Ok(all)
    }
}

async fn client(
    swarm: Arc<Swarm>,
    question: Question,
    stop: watch::Receiver<bool>,
    tokens: watch::Sender<usize>,
) -> anyhow::Result<Answers> {
    let mut answers = Answers::default();
    loop {
        let nth = answers.count + 1;
        let mut waiting = Instant::now();
        let mut waited = |answers: &mut Answers| {
            answers.longest_wait = answers.longest_wait.max(waiting.elapsed());
            waiting = Instant::now();
        };
        let asked =
            ask(Arc::clone(&swarm), &question.model, &question.workload, &Speculate::Off).await;
        let mut generation = asked.with_context(|| format!("opening session {nth}"))?;
        waited(&mut answers);
        while generation.next().await.with_context(|| format!("in answer {nth}"))?.is_some() {
            waited(&mut answers);
            tokens.send_modify(|tokens| *tokens += 1);
        }
        ensure!(generation.tokens() == question.expected, "answer {nth} is another one");
        answers.count = nth;
        if let Chain::Remote(chain) = generation.chain() {
            answers.replaced += chain.failures().len();
        }
        generation.into_chain().0.close().await;
        if *stop.borrow() {
            return Ok(answers);
        }
    }
}
