//! `umbel generate`

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use umbel_client::text::chat_template::Message;
use umbel_client::{Drafts, Generate, Generation, Sampling, StepTime, Token};

use super::session::{Opened, sampling};
use super::{adapter, speculate};
use crate::args::GenerateArguments;
use crate::config::Config;

pub(super) async fn run(arguments: GenerateArguments, config: &Config) -> anyhow::Result<()> {
    let opened = Opened::open(arguments.model.name(), &arguments.chain, config).await?;
    let speculate = speculate::open(&arguments.speculate, &opened.model, config).await?;
    let request = Generate { speculate, ..request(&arguments, &opened)? };
    let prompt_count = request.prompt.len();
    let context = opened.model.config().context_tokens;
    if prompt_count >= context {
        // Said before a server is asked for room that no session has.
        anyhow::bail!(umbel_client::GenerateError::PromptTooLong { tokens: prompt_count, context });
    }
    let room = prompt_count.saturating_add(arguments.max_tokens as usize);
    let adapter = match &arguments.adapter {
        Some(named) => Some(adapter::named(&opened, named, config).await?),
        None => None,
    };
    let chain = opened.chain_with(adapter.as_ref(), room, &request.prompt).await?;
    let mut generation = request.start(opened.model.clone(), chain)?;
    let stopped = if arguments.json {
        let report = report(&mut generation, prompt_count, &arguments).await?;
        writeln!(std::io::stdout(), "{report}").context("stdout is closed")
    } else {
        let ids_from = opened.model.tokenizer().is_none().then_some(prompt_count);
        stream(&mut generation, ids_from).await
    };
    let (chain, _) = generation.into_chain();
    chain.close().await;
    opened.leave().await;
    stopped
}

fn request(arguments: &GenerateArguments, opened: &Opened) -> anyhow::Result<Generate> {
    let prompt = match (&arguments.prompt_ids, &arguments.prompt) {
        (Some(ids), _) => ids.clone(),
        (None, Some(text)) if arguments.chat => {
            opened.model.encode_chat(&[Message::user(text.as_str())])?
        }
        (None, Some(text)) => opened.model.encode(text)?,
        (None, None) => anyhow::bail!("give --prompt TEXT or --prompt-ids ID,ID,..."),
    };
    let default = Generate::new(prompt);
    Ok(Generate {
        continues: arguments.prompt_ids.is_some() || !arguments.chat,
        max_tokens: arguments.max_tokens,
        sampling: sampling(&arguments.sampling, Sampling::greedy())?,
        stop: arguments.stop.clone(),
        ignore_eos: arguments.ignore_eos,
        top_logits: arguments.top_logits.unwrap_or(0),
        prefill_chunk: arguments.prefill_chunk.unwrap_or(default.prefill_chunk),
        ..default
    })
}

/// Prints the text as it comes; where the model has no tokenizer, the ids of the tokens from this one on.
async fn stream(generation: &mut Generation, ids_from: Option<usize>) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    while let Some(token) = generation.next().await? {
        out.write_all(token.text.as_bytes())
            .and_then(|()| out.flush())
            .context("stdout is closed")?;
    }
    if let Some(first) = ids_from {
        let ids: Vec<_> = generation.tokens()[first..].iter().map(ToString::to_string).collect();
        write!(out, "{}", ids.join(",")).context("stdout is closed")?;
    }
    writeln!(out).context("stdout is closed")
}

async fn report(
    generation: &mut Generation,
    prompt_count: usize,
    arguments: &GenerateArguments,
) -> anyhow::Result<Value> {
    let mut tokens: Vec<Token> = Vec::new();
    while let Some(token) = generation.next().await? {
        tokens.push(token);
    }
    let (prompt, new) = generation.tokens().split_at(prompt_count);
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    let route: Vec<_> = generation
        .chain()
        .route()
        .iter()
        .map(|(peer, span)| {
            json!({
                "peer": peer.map_or_else(|| "local".to_owned(), |peer| peer.to_string()),
                "start": span.start(),
                "end": span.end(),
            })
        })
        .collect();
    let mut report = json!({
        "prompt_ids": prompt,
        "token_ids": new,
        "text": text,
        "finish_reason": generation.finish_reason().map(umbel_client::FinishReason::as_str),
        "route": route,
        "timings": timings(prompt_count, &tokens, generation.drafts()),
        "speculation": speculate::report(&arguments.speculate.speculate, generation.drafts()),
    });
    if arguments.top_logits.is_some() {
        let logits: Vec<_> = tokens.iter().map(|token| json!(token.top_logits)).collect();
        report["top_logits"] = Value::Array(logits);
    }
    Ok(report)
}

/// Tokens a second, and where the time of each step went: the first step is the prefill. A step that
/// gave several tokens is there once.
fn timings(prompt_count: usize, tokens: &[Token], drafts: Drafts) -> Value {
    let seconds =
        |times: &[Token]| -> f64 { times.iter().map(|token| token.time.total.as_secs_f64()).sum() };
    let rate = |count: usize, seconds: f64| (seconds > 0.0).then(|| count as f64 / seconds);
    let (prefill, decode) = tokens.split_at(tokens.len().min(1));
    let steps = tokens.iter().filter(|token| token.time != StepTime::default());
    json!({
        "prefill_tokens_per_second": rate(prompt_count, seconds(prefill)),
        "decode_tokens_per_second":
            rate(decode.len(), seconds(decode) + drafts.took.as_secs_f64()),
        "steps": steps.map(|token| step(&token.time)).collect::<Vec<_>>(),
    })
}

fn step(time: &StepTime) -> Value {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let hops: Vec<_> = time
        .hops
        .iter()
        .map(|hop| {
            json!({
                "peer": hop.peer.map_or_else(|| "local".to_owned(), |peer| peer.to_string()),
                "start": hop.blocks.start(),
                "end": hop.blocks.end(),
                "compute_ms": ms(hop.compute),
                "queue_ms": ms(hop.queue),
                "network_ms": ms(hop.network),
            })
        })
        .collect();
    json!({ "total_ms": ms(time.total), "hops": hops })
}
