//! What a type of the wire does to the logits, and what its hidden states weigh.
//!
//! `cargo run --release -p umbel-engine --example wire_types -- MODEL [HOPS]`
//!
//! A model (a folder or a GGUF file) computes a text of pseudo-random tokens once in one piece and
//! once for each type in `HOPS` spans, between which the hidden states take the form that they
//! have on a link. Printed are the differences of the logits, how often the likeliest token is
//! another one, bytes of a token on the link, and what packing makes of them and how fast.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::time::Instant;

use umbel_engine::{Ends, HiddenStates, HostedSpan, KvArena};
use umbel_protocol::compression::Packing;
use umbel_protocol::inference::{AnswerRows, PushMessage, Step};
use umbel_protocol::{DType, SessionId, Span, StepId, Tensor};
use umbel_shard::{Cache, Model, ModelSource, Part, PartsNeeded, Silent};

/// Tokens of the text: as many as a chunk of a prompt has at most.
const TOKENS: u32 = 512;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("which model?")?;
    let hops: u32 = arguments.next().map_or(Ok(4), |hops| hops.parse())?;
    let source = ModelSource::parse(&name)?;
    let cache = Cache::new(std::env::temp_dir().join("umbel-wire-types"));
    let model = Model::open(&source, &cache, PartsNeeded::everything(), &Silent)?;
    let weights = model.weights(Part::Embedding)?.and(model.weights(Part::Head)?);
    let ends = Ends::load(model.config(), &weights)?;
    let vocabulary = u32::try_from(model.config().vocabulary_size)?;
    let ids: Vec<u32> = (1..=TOKENS).map(|n| n.wrapping_mul(2_654_435_761) % vocabulary).collect();
    let entering = ends.embed(&ids)?;

    let whole = through(&model, 1, DType::F32, &entering)?.0;
    let exact = ends.logits_of_all(&whole)?;
    println!(
        "type | largest difference | mean | other token | bytes a token | packed | pack, unpack"
    );
    for dtype in DType::ALL {
        let (leaving, sent) = through(&model, hops, dtype, &entering)?;
        let logits = ends.logits_of_all(&leaving)?;
        let (mut largest, mut sum, mut count, mut others) = (0f32, 0f64, 0u32, 0u32);
        for (row, exact) in logits.iter().zip(&exact) {
            others += u32::from(likeliest(row) != likeliest(exact));
            for (value, exact) in row.iter().zip(exact) {
                let off = (value - exact).abs();
                largest = largest.max(off);
                sum += f64::from(off);
                count += 1;
            }
        }
        let bytes = sent.iter().map(|tensor| tensor.payload().len()).sum::<usize>() as f64;
        let (packed, pack, unpack) = packing(&sent)?;
        println!(
            "{dtype:4} | {largest:9.4} | {:9.5} | {others} of {TOKENS} | {:.0} | {:.1}% | {:.0}, {:.0} MB/s",
            sum / f64::from(count),
            bytes / f64::from(TOKENS) / sent.len() as f64,
            100.0 * packed / bytes,
            bytes / pack / 1e6,
            bytes / unpack / 1e6,
        );
    }
    Ok(())
}

/// What leaves the last block, and what went over the links on the way.
fn through(
    model: &Model,
    hops: u32,
    dtype: DType,
    entering: &HiddenStates,
) -> Result<(HiddenStates, Vec<Tensor>), Failure> {
    let (config, mut hidden, mut sent) = (model.config(), entering.clone(), Vec::new());
    for hop in 0..hops {
        let end = |hop: u32| config.block_count * hop / hops;
        let span = Span::new(end(hop), end(hop + 1))?;
        let blocks = HostedSpan::load(config, &model.weights(Part::Blocks(span))?, span)?;
        let mut table = KvArena::new(config, span, TOKENS as usize).open(span, TOKENS as usize)?;
        sent.push(hidden.to_wire_as(dtype));
        let arrived = HiddenStates::from_wire(&sent[hop as usize], config.hidden_size)?;
        hidden = blocks.forward(&mut table, &arrived)?;
    }
    sent.push(hidden.to_wire_as(dtype));
    let answer = HiddenStates::from_wire(&sent[hops as usize], config.hidden_size)?;
    Ok((answer, sent))
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    let largest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.map(|(token, _)| token)
}

/// Bytes of all of it packed, and the seconds that packing and unpacking take.
fn packing(sent: &[Tensor]) -> Result<(f64, f64, f64), Failure> {
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
