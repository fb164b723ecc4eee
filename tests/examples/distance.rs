//! Decode and speculation at a distance, measured: three servers of a real model as processes of
//! their own, with a delay on every link, and a client in this process.
//! `cargo run --release -p umbel-tests --example distance -- 50 96 5` takes the delay of a way in
//! milliseconds, the tokens of an answer, and how many blocks the drafting model lacks; and, where not
//! everything is to be measured, a part of the names of what is; `thin` is what the last server draws.
//!
//! With and without drafts come in turn, and so do links with and without delay, as the machine may
//! be busy at one time and not at another. There is no small model of the family at hand, so the one
//! that drafts is the model itself without some of its blocks: cheaper and worse, as a small model
//! is, though not by as much (`umbel_tests::thinned`).

#![allow(clippy::print_stdout, reason = "what it finds is what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use umbel_client::text::chat_template::Message;
use umbel_client::{
    Chain, ClientModel, Device, DraftModel, Drafts, Generate, LocalModel, Opening, RemoteChain,
    Sampling, SessionOptions, Speculate, Swarm, SwarmConfig,
};
use umbel_shard::{Cache, Model, ModelSource, PartsNeeded, Silent};
use umbel_tests::shape::{Shape, ShapedNetwork};
use umbel_tests::swarm::{Server, cache, serve_behind};
use umbel_tests::thinned::leave_out;
use umbel_tests::workload::client_model;

const NAME: &str = "smollm2-135m";

/// A third of the blocks each.
const SPANS: [&str; 3] = ["0..10", "10..20", "20..30"];

/// Client to the first of three servers, on to the second and the third, and back.
const WAYS: u32 = 4;

/// Blocks that a drafting model may lack, the least missed first: without each, in turn, the most
/// tokens of answers to six other questions were still the likeliest (83%, 74%, 67%, 62%, 58%, 54%,
/// 48%, 45%).
const LEFT_OUT: [u32; 8] = [5, 25, 17, 14, 19, 18, 6, 16];

/// Without its first block the model says nothing of use: hardly any draft is right, at the full
/// price.
const LEFT_OUT_USELESS: [u32; 1] = [0];

const PASSAGE: &str = "The harbour lies on the north side of the island. Ships with a draught of up \
to nine metres may enter at any tide; larger ones wait for a pilot at the outer buoy. Between \
October and March the wind is mostly from the west, and captains are advised to keep two anchors \
ready. Fresh water is sold at the second pier, and coal at the fourth.";

const CODE: &str = "fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n\nfn \
perimeter(width: u32, height: u32) -> u32 {\n    2 * (width + height)\n}\n";

const CHAT: [&str; 4] = [
    "What is gravity?",
    "Name three rivers in Europe and say where they end.",
    "How do I boil an egg?",
    "Why is the sky blue?",
];

/// A group of requests.
struct Group {
    name: &'static str,
    texts: Vec<String>,
    sampling: Sampling,
    speculate: Speculate,
}

fn groups(draft: &DraftModel, useless: &DraftModel) -> Vec<Group> {
    let copy = format!("Repeat the following text word for word:\n\n{PASSAGE}");
    let fix = format!("Write this code again, without any change:\n\n```rust\n{CODE}```");
    let chat: Vec<String> = CHAT.map(str::to_owned).into();
    let usual = Sampling { top_p: 0.9, ..Sampling::with_temperature(0.2, 7) };
    let hot = Sampling::with_temperature(3.0, 7);
    let group = |name, texts: &[String], sampling: &Sampling, speculate: &Speculate| Group {
        name,
        texts: texts.to_vec(),
        sampling: sampling.clone(),
        speculate: speculate.clone(),
    };
    let model = Speculate::Model(draft.clone());
    vec![
        group("repeats its prompt, text", &[copy, fix], &Sampling::greedy(), &Speculate::Auto),
        group("chat, draft model", &chat, &usual, &model),
        group("chat, text", &chat, &usual, &Speculate::Auto),
        group("temperature 3, draft model", &chat[..2], &hot, &model),
        group("temperature 3, text", &chat[..2], &hot, &Speculate::Auto),
        group("chat, useless model", &chat[..2], &usual, &Speculate::Model(useless.clone())),
    ]
}

/// Servers behind links that are shaped, and a client of theirs.
struct Far {
    servers: Vec<Server>,
    swarm: Arc<Swarm>,
    model: Arc<ClientModel>,
    delay: Duration,
}

/// What came of a request.
struct Answer {
    tokens: Vec<u32>,
    /// The largest logits behind each token.
    logits: Vec<Vec<(u32, u32)>>,
    /// From the first token to the last.
    took: Duration,
    /// From step to step.
    steps: Vec<Duration>,
    /// What servers computed in the median step.
    computed: Duration,
    drafts: Drafts,
}

impl Far {
    async fn start(model: Arc<ClientModel>, delay: Duration) -> anyhow::Result<Self> {
        let network = ShapedNetwork::new(Shape::of_delay(delay), 1);
        let mut servers: Vec<Server> = Vec::new();
        for span in SPANS {
            let front = network.front().await?;
            let [quic, tcp] = front.addresses();
            let mut arguments = vec![NAME, "--blocks", span, "--kv-tokens", "4096"];
            arguments.extend(servers.iter().flat_map(|server| ["--join", server.address()]));
            servers.push(serve_behind(front, &[&quic, &tcp], &arguments));
        }
        let addresses = servers.iter().map(|server| server.address().parse());
        let join = addresses.collect::<Result<_, _>>()?;
        let config = SwarmConfig { join, ..SwarmConfig::default() };
        let swarm = Arc::new(Swarm::join(config).await?);
        Ok(Self { servers, swarm, model, delay })
    }

    fn set_delay(&self, delay: Duration) {
        let fronts = self.servers.iter().filter_map(Server::front);
        fronts.for_each(|front| front.set_shape(Shape::of_delay(delay)));
    }

    async fn answer(&self, request: Generate) -> anyhow::Result<Answer> {
        self.answer_over(request, SessionOptions::default()).await
    }

    async fn answer_over(
        &self,
        request: Generate,
        options: SessionOptions,
    ) -> anyhow::Result<Answer> {
        let tokens_max = u32::try_from(request.prompt.len())? + request.max_tokens;
        let opening = Opening { tokens_max, options, ..Opening::default() };
        let chain = RemoteChain::open_with(Arc::clone(&self.swarm), &self.model, opening).await?;
        let chain = Chain::Remote(Box::new(chain));
        ensure!(chain.route().len() == SPANS.len(), "a route of {}", chain.route().len());
        let prompt = request.prompt.len();
        let mut generation = request.start(Arc::clone(&self.model), chain)?;
        let mut logits = Vec::new();
        let (mut began, mut last) = (Instant::now(), Instant::now());
        let (mut steps, mut computed) = (Vec::new(), Vec::new());
        while let Some(token) = generation.next().await? {
            let bits = |(token, logit): (u32, f32)| (token, logit.to_bits());
            let is_first = logits.is_empty();
            logits.push(token.top_logits.into_iter().map(bits).collect());
            if is_first {
                (began, last) = (Instant::now(), Instant::now());
            } else if token.time.total > Duration::ZERO {
                steps.push(last.elapsed());
                last = Instant::now();
                computed.push(token.time.hops.iter().map(|hop| hop.compute).sum());
            }
        }
        let (took, drafts) = (began.elapsed(), generation.drafts());
        let tokens = generation.tokens()[prompt..].to_vec();
        if let Chain::Remote(chain) = generation.chain() {
            // It changes no token, but a replay takes time.
            chain.failures().iter().for_each(|failure| println!("on the way: {failure}"));
        }
        generation.into_chain().0.close().await;
        let computed = median(&mut computed);
        Ok(Answer { tokens, logits, took, steps, computed, drafts })
    }

    fn request(&self, text: &str, tokens: u32, sampling: &Sampling) -> anyhow::Result<Generate> {
        let prompt = self.model.encode_chat(&[Message::user(text)])?;
        let sampling = sampling.clone();
        Ok(Generate { max_tokens: tokens, sampling, top_logits: 3, ..Generate::new(prompt) })
    }

    /// Decode without drafts, with the delay and without it in turn.
    async fn decode(&self, tokens: u32) -> anyhow::Result<()> {
        let request = self.request(CHAT[0], tokens, &Sampling::greedy())?;
        let request = Generate { ignore_eos: true, ..request };
        let (mut far, mut near, mut computed) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let answer = self.answer(request.clone()).await?;
            far.extend(answer.steps);
            computed.push(answer.computed);
            self.set_delay(Duration::ZERO);
            near.extend(self.answer(request.clone()).await?.steps);
            self.set_delay(self.delay);
        }
        let (far, near, ways) = (median(&mut far), median(&mut near), self.delay * WAYS);
        println!(
            "decode: {} ms a token; {WAYS} ways take {} ms, a token without delay {} ms (servers \
             compute for {} ms of it): {:.3} of the sum",
            ms(far),
            ms(ways),
            ms(near),
            ms(median(&mut computed)),
            far.as_secs_f64() / (ways + near).as_secs_f64()
        );
        Ok(())
    }

    /// Decode of a client that draws and of one for which the last server does, in turn.
    async fn thin(&self, tokens: u32) -> anyhow::Result<()> {
        let usual = Sampling { top_p: 0.9, ..Sampling::with_temperature(0.2, 7) };
        let request = self.request(CHAT[0], tokens, &usual)?;
        let request = Generate { ignore_eos: true, top_logits: 0, ..request };
        let thin = SessionOptions { thin: true, ..SessionOptions::default() };
        let (mut whole, mut drawn, mut same) = (Vec::new(), Vec::new(), true);
        for _ in 0..2 {
            let by_client = self.answer(request.clone()).await?;
            let by_server = self.answer_over(request.clone(), thin).await?;
            same &= by_client.tokens == by_server.tokens;
            whole.extend(by_client.steps);
            drawn.extend(by_server.steps);
        }
        ensure!(same, "the last server drew another token");
        let (whole, drawn) = (median(&mut whole), median(&mut drawn));
        let rate = |token: Duration| 1.0 / token.as_secs_f64();
        println!(
            "thin: {} ms a token, {:.2} tokens a second; {WAYS} ways and a head here: {} ms, {:.2}; \
             {:.3} times, the same tokens",
            ms(drawn),
            rate(drawn),
            ms(whole),
            rate(whole),
            rate(drawn) / rate(whole)
        );
        Ok(())
    }

    /// A group of requests, each with and without drafts.
    async fn compare(&self, group: &Group, tokens: u32) -> anyhow::Result<()> {
        let (mut plain, mut guessed) = (Duration::ZERO, Duration::ZERO);
        let (mut sum, mut count, mut same) = (Drafts::default(), 0, 0);
        for (number, text) in group.texts.iter().enumerate() {
            let request = self.request(text, tokens, &group.sampling)?;
            let drafting = Generate { speculate: group.speculate.clone(), ..request.clone() };
            let (without, with) = if number % 2 == 0 {
                let without = self.answer(request).await?;
                (without, self.answer(drafting).await?)
            } else {
                let with = self.answer(drafting).await?;
                (self.answer(request).await?, with)
            };
            same +=
                usize::from((without.tokens, without.logits) == (with.tokens.clone(), with.logits));
            plain += without.took;
            guessed += with.took;
            count += with.tokens.len() - 1;
            sum.steps += with.drafts.steps;
            sum.drafted += with.drafts.drafted;
            sum.accepted += with.drafts.accepted;
            sum.took += with.drafts.took;
        }
        let rate = |took: Duration| count as f64 / took.as_secs_f64();
        println!(
            "{:<26} {:>7} {:>8.2} {:>8.2} {:>6.2} {:>7.2} {:>7} {:>6.2} {:>8} {:>5} of {}",
            group.name,
            count,
            rate(plain),
            rate(guessed),
            rate(guessed) / rate(plain),
            count as f64 / sum.steps as f64,
            sum.drafted,
            sum.accepted as f64 / (sum.drafted as f64).max(1.0),
            ms(sum.took / u32::try_from(sum.steps.max(1))?),
            same,
            group.texts.len()
        );
        ensure!(same == group.texts.len(), "guessing changed an answer");
        Ok(())
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// The model without some blocks, whole in this process.
fn draft_model(model: &ClientModel, left_out: &[u32]) -> anyhow::Result<DraftModel> {
    let folder = tempfile::tempdir()?;
    let whole = cache().join("catalogue").join(NAME).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = folder.path().join("thinned.gguf");
    leave_out(left_out, &whole, &path)?;
    let source = ModelSource::parse(path.to_str().context("a path of ASCII")?)?;
    let thinned = Model::open(&source, &Cache::new(cache()), PartsNeeded::everything(), &Silent)?;
    let blocks = Arc::new(LocalModel::load(&thinned, 4096, Device::shared())?);
    let thinned = Arc::new(ClientModel::from_shard(thinned)?);
    Ok(DraftModel::new(thinned, blocks, model)?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |or: u32| arguments.next().map_or(Ok(or), |argument| argument.parse());
    let (delay, tokens, left_out) = (number(50)?, number(96)?, number(5)?);
    let model = client_model(NAME)?;
    let left_out = LEFT_OUT.get(..left_out as usize).context("fewer blocks can be left out")?;
    let drafts = [draft_model(&model, left_out)?, draft_model(&model, &LEFT_OUT_USELESS)?];
    let only = arguments.next().unwrap_or_default();
    let mut far = Far::start(model, Duration::from_millis(delay.into())).await?;
    let measured = measure(&far, &drafts, tokens, &only).await;
    if measured.is_err() {
        for server in &mut far.servers {
            let runs = server.is_running();
            println!("{}, runs: {runs}\n{}", server.address(), server.stderr());
        }
    }
    measured
}

async fn measure(
    far: &Far,
    [draft, useless]: &[DraftModel; 2],
    tokens: u32,
    only: &str,
) -> anyhow::Result<()> {
    far.decode(tokens).await?;
    far.thin(tokens).await?;
    if only == "thin" {
        return Ok(());
    }
    println!(
        "{:<26} {:>7} {:>8} {:>8} {:>6} {:>7} {:>7} {:>6} {:>8} {:>10}",
        "answer, drafts from",
        "tokens",
        "without",
        "with",
        "times",
        "a trip",
        "drafts",
        "right",
        "ms/trip",
        "identical"
    );
    for group in groups(draft, useless).iter().filter(|group| group.name.contains(only)) {
        far.compare(group, tokens).await?;
    }
    Ok(())
}
