//! A client that asks a gateway again and again, and goes away in the middle now and then.

use std::io::{BufRead as _, BufReader};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use ureq::Agent;

/// How long an answer may take, its turn and its place in the queue with it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);

/// Of so many answers a client leaves one in the middle.
const LEAVES_ONE_OF: usize = 5;

/// Events after which it leaves.
const LEAVES_AFTER: usize = 3;

/// The longest that a client stays away when it was told to come back later: it shall come back
/// while there is still something to see.
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Tells all clients when it is over.
#[derive(Debug, Default)]
pub(super) struct End {
    come: Mutex<bool>,
    changed: Condvar,
}

impl End {
    pub(super) fn comes(&self) {
        *self.come.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for it, so long at most; whether it has come.
    pub(super) fn within(&self, time: Duration) -> bool {
        let come = self.come.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(come, time, |come| !*come);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What one client noticed, or all of them.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// Answers that came to their end.
    pub whole: usize,
    /// Answers that a client left.
    pub left: usize,
    /// Requests that were told to come back later, with 429 and when.
    pub turned_away: usize,
    /// From the request to the first text.
    pub first_token: Vec<Duration>,
    /// From one text to the next.
    pub gaps: Vec<Duration>,
}

impl Notes {
    pub(super) fn add(&mut self, other: Self) {
        self.whole += other.whole;
        self.left += other.left;
        self.turned_away += other.turned_away;
        self.first_token.extend(other.first_token);
        self.gaps.extend(other.gaps);
    }
}

/// Asks until the end comes, and finishes what it is at. What fails is the end for all.
pub(super) fn ask_on(
    number: usize,
    url: &str,
    answer_tokens: u32,
    end: &End,
) -> anyhow::Result<Notes> {
    let notes = ask(number, url, answer_tokens, end);
    if notes.is_err() {
        end.comes();
    }
    notes
}

fn ask(number: usize, url: &str, answer_tokens: u32, end: &End) -> anyhow::Result<Notes> {
    let config =
        Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER_TIMEOUT));
    let agent: Agent = config.build().into();
    let mut notes = Notes::default();
    let mut asked = 0;
    let mut away = Duration::ZERO;
    while !end.within(away) {
        let body = question(number, asked, answer_tokens);
        let leaves = (number + asked) % LEAVES_ONE_OF == LEAVES_ONE_OF - 1;
        let told = answer(&agent, url, &body, leaves, &mut notes)
            .with_context(|| format!("client {number}, request {asked}"))?;
        asked += 1;
        away = told.unwrap_or_default().min(AWAY_MAX);
    }
    Ok(notes)
}

/// Different from all others, so that each prompt is read.
fn question(number: usize, asked: usize, answer_tokens: u32) -> Value {
    let text = format!("I am visitor {number} and this is question {asked}: what shall I cook?");
    json!({
        "model": "smollm2-135m",
        "messages": [{ "role": "user", "content": text }],
        "stream": true,
        "temperature": 1,
        "seed": number * 10_007 + asked,
        "max_tokens": answer_tokens,
    })
}

/// Takes one answer; after what time to come back, where there was none.
fn answer(
    agent: &Agent,
    url: &str,
    body: &Value,
    leaves: bool,
    notes: &mut Notes,
) -> anyhow::Result<Option<Duration>> {
    let begun = Instant::now();
    let response = agent.post(url).send(body.to_string())?;
    let status = response.status().as_u16();
    if status == 429 {
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let seconds = header.context("a 429 without Retry-After")?.parse()?;
        // Read to its end, so that the connection can be used again.
        let _why = response.into_body().read_to_string()?;
        notes.turned_away += 1;
        return Ok(Some(Duration::from_secs(seconds)));
    }
    if status != 200 {
        bail!("{status}: {}", response.into_body().read_to_string()?);
    }
    let (mut last, mut texts, mut finished) = (None, 0, false);
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            ensure!(finished, "an answer ended without a reason");
            notes.whole += 1;
            return Ok(None);
        }
        let event: Value = serde_json::from_str(data)?;
        let choice = &event["choices"][0];
        ensure!(choice.is_object(), "{event}");
        finished |= choice["finish_reason"].is_string();
        if choice["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
            let now = Instant::now();
            match last.replace(now) {
                None => notes.first_token.push(now - begun),
                Some(last) => notes.gaps.push(now - last),
            }
            texts += 1;
            if leaves && texts == LEAVES_AFTER {
                notes.left += 1;
                return Ok(None);
            }
        }
    }
    bail!("a stream ended without [DONE]")
}
