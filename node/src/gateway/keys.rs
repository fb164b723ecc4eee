//! Who may ask, and how much: keys from a file, each with budgets of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Gateway;
use super::error::{ApiError, MessagesError};
use super::sites::foreign;

/// The keys that may ask.
#[derive(Debug)]
pub struct Keys(BTreeMap<[u8; 32], Arc<Holder>>);

/// Whoever has a key. Everybody together, where there are none.
#[derive(Debug)]
pub(super) struct Holder {
    name: String,
    budgets: Mutex<[Budget; 2]>,
}

/// The file, in TOML.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    key: Vec<Entry>,
}

/// One `[[key]]` of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// What its holder is called in logs, and who owns what it has sent: nobody else is called so.
    name: String,
    /// What its holder sends.
    key: String,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
}

impl Keys {
    /// Reads the file of keys.
    ///
    /// # Errors
    /// Where it cannot be read, or two have the same key or name.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text)?;
        let (mut keys, mut names) = (BTreeMap::new(), BTreeSet::new());
        for Entry { name, key, requests_per_minute, tokens_per_minute } in file.key {
            if key.len() < KEY_BYTES_MIN {
                bail!("the key of {name} has fewer than {KEY_BYTES_MIN} characters");
            }
            // What somebody has sent and had learned lies under the name.
            if name == ANYBODY {
                bail!("{ANYBODY:?} are those who need no key: call its holder something else");
            }
            if !names.insert(name.clone()) {
                bail!(
                    "two keys have the name {name:?}: each has files, jobs and models by its name"
                );
            }
            let budgets = [requests_per_minute, tokens_per_minute].map(Budget::new);
            let holder = Holder { name: name.clone(), budgets: Mutex::new(budgets) };
            if keys.insert(digest(&key), Arc::new(holder)).is_some() {
                bail!("the key of {name} is another's too");
            }
        }
        if keys.is_empty() {
            bail!("it has no [[key]]");
        }
        Ok(Self(keys))
    }

    /// The holder of the key in these headers.
    fn holder(&self, headers: &HeaderMap) -> Option<&Arc<Holder>> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let bearer = text("authorization").and_then(|text| text.strip_prefix("Bearer "));
        let key = bearer.or_else(|| text("x-api-key"));
        // By its digest, so that no comparison takes longer for a key that is nearly right.
        self.0.get(&digest(key?.trim()))
    }
}

/// What those are called together who ask where there are no keys.
const ANYBODY: &str = "anybody";

/// A key that is shorter could be found by trying.
const KEY_BYTES_MIN: usize = 16;

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The longest time that is told to who has used up a budget: one of nothing never fills.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// So many in a minute, of which a minute's worth may be spent at once. It may be overdrawn, by what
/// turns out only when an answer is there, and is of no use then until it is filled again.
#[derive(Debug, Clone, Copy)]
struct Budget {
    per_minute: f64,
    left: f64,
    at: Option<Instant>,
}

impl Budget {
    fn new(per_minute: Option<u32>) -> Self {
        let per_minute = per_minute.map_or(f64::INFINITY, f64::from);
        Self { per_minute, left: per_minute, at: None }
    }

    fn fill(&mut self, now: Instant) {
        if let Some(at) = self.at.replace(now) {
            let minutes = now.saturating_duration_since(at).as_secs_f64() / 60.0;
            self.left = (self.left + self.per_minute * minutes).min(self.per_minute);
        }
    }

    /// How long it takes until there is one of them, in whole seconds, of which a header has one at least.
    fn until_one(&self) -> Duration {
        let seconds = (1.0 - self.left) / self.per_minute * 60.0;
        let wait = Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(WAIT_MAX);
        wait.clamp(Duration::from_secs(1), WAIT_MAX)
    }
}

impl Holder {
    /// Where there are no keys.
    pub(super) fn anybody() -> Self {
        Self { name: ANYBODY.to_owned(), budgets: Mutex::new([Budget::new(None); 2]) }
    }

    /// Takes a request from the budget.
    fn request(&self, now: Instant) -> Result<(), ApiError> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.iter_mut().for_each(|budget| budget.fill(now));
        let [requests, tokens] = &mut *budgets;
        if requests.left < 1.0 {
            return Err(ApiError::over_budget(&self.name, "requests", requests.until_one()));
        }
        if tokens.left <= 0.0 {
            return Err(ApiError::over_budget(&self.name, "tokens", tokens.until_one()));
        }
        requests.left -= 1.0;
        Ok(())
    }

    /// What it is called; nobody else is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes tokens from the budget that were read or written.
    pub(super) fn spend(&self, tokens: usize) {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets[1].left -= count(tokens);
    }
}

/// Tokens that were taken from a budget for what may yet be refused: dropping it gives them back.
#[derive(Debug)]
pub(super) struct Taken {
    holder: Arc<Holder>,
    tokens: usize,
}

impl Taken {
    /// Takes them from the budget of `holder`, so that what waits counts as well.
    pub(super) fn from(holder: &Arc<Holder>, tokens: usize) -> Self {
        holder.spend(tokens);
        Self { holder: Arc::clone(holder), tokens }
    }

    /// They are spent.
    pub(super) fn keep(mut self) {
        self.tokens = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut budgets = self.holder.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets[1].left += count(self.tokens);
    }
}

fn count(tokens: usize) -> f64 {
    f64::from(u32::try_from(tokens).unwrap_or(u32::MAX))
}

/// Lets a request through if it has a key, where there are keys, and has not used up its budget.
pub(super) async fn check(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    let is_anthropic = request.uri().path() == "/v1/messages";
    // Who looks at the swarm asks the model for nothing.
    let spends = request.uri().path() != "/swarm";
    let checked = foreign(request.headers(), gateway.guarded, &gateway.origins)
        .map_or_else(|| admit(&gateway, request.headers(), spends), Err);
    match checked {
        Ok(holder) => {
            request.extensions_mut().insert(holder);
            next.run(request).await
        }
        Err(error) if is_anthropic => MessagesError(error).into_response(),
        Err(error) => error.into_response(),
    }
}

fn admit(gateway: &Gateway, headers: &HeaderMap, spends: bool) -> Result<Arc<Holder>, ApiError> {
    let holder = match &gateway.keys {
        None => &gateway.anybody,
        Some(keys) => keys.holder(headers).ok_or_else(ApiError::no_key)?,
    };
    if spends {
        holder.request(Instant::now())?;
    }
    Ok(Arc::clone(holder))
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    const FILE: &str = "
        [[key]]
        name = 'ann'
        key = 'a-key-of-some-length'
        requests_per_minute = 2
        tokens_per_minute = 100

        [[key]]
        name = 'bob'
        key = 'another-key-of-some-length'
    ";

    fn sent(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn whoever_sends_a_key_is_known_by_it() {
        let keys = Keys::parse(FILE).unwrap();
        let name = |headers: &HeaderMap| keys.holder(headers).map(|holder| holder.name.clone());
        let bearer = |key: &str| sent(header::AUTHORIZATION, &format!("Bearer {key}"));
        assert_eq!(name(&bearer("a-key-of-some-length")).as_deref(), Some("ann"));
        assert_eq!(name(&bearer("another-key-of-some-length")).as_deref(), Some("bob"));
        assert_eq!(name(&bearer("a-key-of-some-lengtH")), None);
        assert_eq!(name(&sent(header::AUTHORIZATION, "a-key-of-some-length")), None);
        let x_api_key = header::HeaderName::from_static("x-api-key");
        assert_eq!(name(&sent(x_api_key, "a-key-of-some-length")).as_deref(), Some("ann"));
        assert_eq!(name(&HeaderMap::new()), None);
    }

    #[test]
    fn a_budget_that_is_used_up_fills_again() {
        let keys = Keys::parse(FILE).unwrap();
        let ann = keys.0.get(&digest("a-key-of-some-length")).unwrap();
        let start = Instant::now();
        assert!(ann.request(start).is_ok());
        assert!(ann.request(start).is_ok());
        assert!(ann.request(start).is_err(), "two requests a minute");
        assert!(ann.request(start + Duration::from_secs(31)).is_ok());
        ann.spend(250);
        let after = |seconds| ann.request(start + Duration::from_secs(seconds));
        assert!(after(62).is_err(), "the tokens are overdrawn");
        assert!(after(130).is_ok());
        drop(Taken::from(ann, 250));
        assert!(after(190).is_ok(), "what was refused is given back");
        Taken::from(ann, 250).keep();
        assert!(after(250).is_err());
        let bob = keys.0.get(&digest("another-key-of-some-length")).unwrap();
        bob.spend(usize::MAX);
        assert!((0..1_000).all(|_| bob.request(start).is_ok()), "without a budget there is no end");
    }

    #[test]
    fn who_has_used_up_a_budget_is_told_when_it_is_filled() {
        let keys = Keys::parse(FILE).unwrap();
        let ann = keys.0.get(&digest("a-key-of-some-length")).unwrap();
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let told = |millis| {
            let refused = ann.request(after(millis)).unwrap_err().into_response();
            refused.headers()[header::RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert!(ann.request(start).is_ok() && ann.request(start).is_ok());
        assert_eq!([told(0), told(12_500), told(29_500)], ["30", "18", "1"], "two a minute");
        assert!(ann.request(after(30_500)).is_ok());
        ann.spend(250);
        assert_eq!(told(60_500), "61", "100 a minute, and 101 are missing");
        assert!(ann.request(after(121_500)).is_ok());
        let none = Budget { left: 0.0, ..Budget::new(Some(0)) };
        assert_eq!(none.until_one(), WAIT_MAX);
    }

    #[test]
    fn files_that_say_nothing_useful_are_refused() {
        for file in [
            "",
            "key = []",
            "[[key]]\nname = 'a'\nkey = 'short'",
            "[[key]]\nname = 'a'\nkey = 'a-key-of-some-length'\ncolour = 1",
            "[[key]]\nname = 'a'\nkey = 'a-key-of-some-length'\n[[key]]\nname = 'b'\nkey = 'a-key-of-some-length'",
            "[[key]]\nname = 'a'\nkey = 'a-key-of-some-length'\n[[key]]\nname = 'a'\nkey = 'another-key-of-some-length'",
            "[[key]]\nname = 'anybody'\nkey = 'a-key-of-some-length'",
        ] {
            assert!(Keys::parse(file).is_err(), "{file}");
        }
    }
}
