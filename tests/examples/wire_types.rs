//! What a narrow type does to the logits: of hidden states on the wire, and of keys and values.
//!
//! `cargo run --release -p umbel-tests --example wire_types -- MODEL [HOPS]`
//!
//! A model (a name, a folder or a GGUF file) reads a text once in one piece and once for each type in
//! `HOPS` spans, between which the hidden states take the form that they have on a link. Printed are
//! the differences of the logits, how often the likeliest token is another one, how far the
//! distributions of the next token are apart, what the text costs in bits, bytes of a token on the
//! link, and what packing makes of them and how fast. Then the same for each type of the cache, in
//! one piece, with the bytes that a token's keys and values take in all blocks, and for each rounding
//! of activations, compared with none.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result};
use umbel_engine::kernel::Arithmetic;
use umbel_engine::{HiddenStates, HostedSpan, KvArena};
use umbel_protocol::compression::Packing;
use umbel_protocol::inference::{AnswerRows, PushMessage, Step};
use umbel_protocol::{DType, SessionId, Span, StepId, Tensor};
use umbel_shard::{Model, ModelConfig, Part};
use umbel_tests::workload::client_model;

/// Prose, a list and a program, so that some tokens can be foreseen and others cannot.
const TEXT: &str =
    "The ferry to the outer islands leaves twice a day from the old pier, at seven in \
the morning and again at half past three. In winter there is only the morning boat, and when the \
wind is stronger than force eight it does not sail at all. Tickets are sold on board. Children \
under six travel free, and bicycles cost as much as a grown person.

Most visitors go to the largest of the three islands, where there is a village with a shop, a \
school and an inn. From the harbour a path leads along the coast to the lighthouse, which was \
built in 1871 after two ships had been lost on the rocks in a single night. It takes about an hour \
to walk there. The keeper's house is now a museum; it shows how people lived from fishing and from \
the wool of their sheep, and how the light was turned by a clockwork that somebody had to wind \
every four hours, all night, for almost eighty years.

What to bring:
- warm clothes, even in summer
- good shoes
- something to eat, since the shop closes at noon
- cash

The smallest island belongs to the birds. From April to August nobody may land there, but the \
ferry passes close enough to see the puffins on the cliffs. In 1998 there were four hundred pairs; \
last year the rangers counted more than two thousand, which is as many as ever lived there.

fn fare(adults: u32, children: u32, bicycles: u32) -> u32 {
    let full = 12;
    let reduced = 6;
    adults * full + children * reduced + bicycles * full
}

fn main() {
    let total = fare(2, 1, 2);
    println!(\"The fare is {total}.\");
}
";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("which model?")?;
    let hops: u32 = arguments.next().map_or(Ok(3), |hops| hops.parse())?;
    let client = client_model(&name)?;
    let ids = client.encode(TEXT)?;
    let entering = client.ends().embed(&ids)?;
    // So that nothing but the types makes a difference.
    let arithmetic = Arithmetic::Careful;
    let plain = Types { wire: DType::F32, cache: DType::F32, arithmetic };
    let (whole, _) = through(client.shard(), 1, plain, &entering)?;
    let exact = client.ends().logits_of_all(&whole)?;
    println!("{} tokens, {hops} hops", ids.len());
    let columns = "largest difference | root of mean square | other token | divergence, mean \
         | largest | bits a token | bytes a token";
    println!("wire | {columns} | packed | pack, unpack");
    for dtype in DType::ALL {
        let (leaving, sent) =
            through(client.shard(), hops, Types { wire: dtype, ..plain }, &entering)?;
        let logits = client.ends().logits_of_all(&leaving)?;
        let off = Difference::of(&logits, &exact, &ids);
        let bytes = sent.iter().map(|tensor| tensor.payload().len()).sum::<usize>() as f64;
        let (packed, pack, unpack) = packing(&sent)?;
        println!(
            "{dtype:4} | {off} | {:.0} | {:.0}% | {:.0}, {:.0} MB/s",
            bytes / ids.len() as f64 / sent.len() as f64,
            100.0 * packed / bytes,
            bytes / pack / 1e6,
            bytes / unpack / 1e6,
        );
    }
    println!("cache | {columns}");
    for dtype in DType::ALL {
        let (leaving, _) = through(client.shard(), 1, Types { cache: dtype, ..plain }, &entering)?;
        let off = Difference::of(&client.ends().logits_of_all(&leaving)?, &exact, &ids);
        println!("{dtype:4} | {off} | {}", cache_bytes(client.shard().config(), dtype));
    }
    let of = |arithmetic| through(client.shard(), 1, Types { arithmetic, ..plain }, &entering);
    let exact = client.ends().logits_of_all(&of(Arithmetic::Exact)?.0)?;
    println!("activations | {columns}");
    for arithmetic in Arithmetic::ALL {
        let off = Difference::of(&client.ends().logits_of_all(&of(arithmetic)?.0)?, &exact, &ids);
        println!("{arithmetic} | {off}");
    }
    Ok(())
}

/// How numbers are kept on their way.
#[derive(Clone, Copy)]
struct Types {
    wire: DType,
    cache: DType,
    arithmetic: Arithmetic,
}

/// Bytes of one token's keys and values in all blocks.
fn cache_bytes(config: &ModelConfig, dtype: DType) -> u64 {
    let head = dtype.row_bytes(u32::try_from(config.head_size).unwrap_or(u32::MAX));
    u64::from(config.block_count) * 2 * config.kv_head_count as u64 * head
}

/// What leaves the last block, and what went over the links on the way.
fn through(
    model: &Model,
    hops: u32,
    types: Types,
    entering: &HiddenStates,
) -> Result<(HiddenStates, Vec<Tensor>)> {
    let (config, mut hidden, mut sent) = (model.config(), entering.clone(), Vec::new());
    let tokens = entering.token_count();
    for hop in 0..hops {
        let end = |hop: u32| config.block_count * hop / hops;
        let span = Span::new(end(hop), end(hop + 1))?;
        let weights = model.weights(Part::Blocks(span))?;
        let blocks = HostedSpan::load_with(types.arithmetic, config, &weights, span)?;
        let mut table = KvArena::new(config, span, tokens).open_as(types.cache, span, tokens)?;
        let tensor = hidden.to_wire_as(types.wire);
        let arrived = HiddenStates::from_wire(&tensor, config.hidden_size)?;
        sent.push(tensor);
        hidden = blocks.forward(&mut table, &arrived)?;
    }
    let tensor = hidden.to_wire_as(types.wire);
    let answer = HiddenStates::from_wire(&tensor, config.hidden_size)?;
    sent.push(tensor);
    Ok((answer, sent))
}

/// How far logits are from the exact ones.
struct Difference {
    largest: f32,
    root_mean_square: f64,
    /// Positions at which another token is the likeliest.
    others: u32,
    /// The divergence of Kullback and Leibler from the exact distribution of the next token, in
    /// bits.
    divergence: f64,
    divergence_max: f64,
    /// What the tokens that follow cost by these logits.
    bits: f64,
    /// Of how many.
    positions: usize,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { largest, root_mean_square, others, positions, .. } = self;
        write!(f, "{largest:.4} | {root_mean_square:.5} | {others} of {positions} | ")?;
        write!(f, "{:.2e} | {:.2e} | {:.4}", self.divergence, self.divergence_max, self.bits)
    }
}

impl Difference {
    fn of(logits: &[Vec<f32>], exact: &[Vec<f32>], ids: &[u32]) -> Self {
        let (mut largest, mut squares, mut count, mut others) = (0f32, 0f64, 0f64, 0);
        let (mut divergence, mut divergence_max, mut bits) = (0f64, 0f64, 0f64);
        for (row, exact) in logits.iter().zip(exact) {
            others += u32::from(likeliest(row) != likeliest(exact));
            for (value, exact) in row.iter().zip(exact) {
                largest = largest.max((value - exact).abs());
                squares += f64::from(value - exact).powi(2);
                count += 1.0;
            }
            let (found, exact) = (log_chances(row), log_chances(exact));
            let part = |(found, exact): (&f64, &f64)| exact.exp2() * (exact - found);
            let apart: f64 = found.iter().zip(&exact).map(part).sum();
            divergence += apart / logits.len() as f64;
            divergence_max = divergence_max.max(apart);
        }
        let followed = logits.iter().zip(&ids[1..]);
        for (row, next) in followed {
            bits -= log_chances(row)[*next as usize] / (ids.len() - 1) as f64;
        }
        let root_mean_square = (squares / count).sqrt();
        let positions = logits.len();
        Self { largest, root_mean_square, others, divergence, divergence_max, bits, positions }
    }
}

/// The binary logarithms of the chances of all tokens.
fn log_chances(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: f32| f64::from(logit - largest) * std::f64::consts::LOG2_E;
    let sum: f64 = logits.iter().map(|logit| above(*logit).exp2()).sum();
    logits.iter().map(|logit| above(*logit) - sum.log2()).collect()
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    let largest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.map(|(token, _)| token)
}

/// Bytes of all of it packed, and the seconds that packing and unpacking take.
fn packing(sent: &[Tensor]) -> Result<(f64, f64, f64)> {
    let (mut bytes, mut pack, mut unpack) = (0, 0.0, 0.0);
    for hidden in sent {
        let step = Step {
            session: SessionId::new(1),
            step: StepId(0),
            position: 0,
            hidden: hidden.clone(),
            trace: Vec::new(),
            replay: false,
            answer_rows: AnswerRows::All,
            goes_on: false,
        };
        let began = Instant::now();
        let frame = PushMessage::Step(step.clone()).encode_as(Packing::WhereSmaller);
        pack += began.elapsed().as_secs_f64();
        bytes += frame.payload.len();
        let began = Instant::now();
        let read = PushMessage::decode(frame)?;
        unpack += began.elapsed().as_secs_f64();
        assert!(read == PushMessage::Step(step), "packing loses nothing");
    }
    Ok((bytes as f64, pack, unpack))
}
