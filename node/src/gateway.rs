//! An HTTP server with OpenAI's interface, and Anthropic's for messages, in front of a swarm.
//!
//! A request waits for its turn, opens a session for each answer, and is answered as a whole or by
//! server-sent events. A client that goes away ends its sessions.
//!
//! | module | what it holds |
//! |---|---|
//! | `front`, `listen` | where it listens, and connections |
//! | `body`, `error` | what comes in, and what a request that fails is answered |
//! | `keys`, `sites` | who may ask, and how much |
//! | `admission` | turns, and how many may wait for them |
//! | `encoding` | texts as tokens, before a request has its turn |
//! | `options`, `format` | what requests may ask of an answer, and the form that it is held to |
//! | `answer` | answers under way |
//! | `chat`, `completions`, `embeddings`, `messages`, `models`, `responses` | the endpoints |
//! | `published`, `tuning` | models with adapters: those that somebody has published, and those learned here |
//! | `page`, `picture`, `trace` | the page, and what it shows of the swarm and of answers |
//! | `content`, `prompts` | parts of what comes in |
//! | `events`, `reply`, `usage`, `logprobs` | parts of what goes out |

mod admission;
mod answer;
mod body;
mod chat;
mod completions;
mod content;
mod embeddings;
mod encoding;
mod error;
mod events;
mod format;
mod front;
mod keys;
pub(crate) mod listen;
mod logprobs;
mod messages;
mod models;
mod options;
mod page;
mod picture;
mod prompts;
mod published;
mod reply;
mod responses;
mod sites;
mod trace;
mod tuning;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use umbel_client::chain::remote::OpenChainError;
use umbel_client::text::tokenizer::Tokenizer;
use umbel_client::{Chain, Generate, GenerateError, Generation, NamedAdapter, Speculate};
use umbel_coordinator::session::SessionFailure;
use umbel_engine::OpenTableError;
use umbel_protocol::AdapterId;

use crate::commands::session::{Blocks, Opened};
use crate::metrics::gateway::{Counters, count};
use admission::Admission;
use error::ApiError;
use keys::{Holder, Taken};
use picture::Picture;
use published::Published;
pub(crate) use tuning::{Trains, Tuning};

use front::Terms;
pub(crate) use front::{End, Front};
pub use keys::Keys;

/// How many requests a gateway takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Answers that are given at once.
    pub answers: usize,
    /// Requests that wait for their turn; more are told to come back later.
    pub waiting: usize,
    /// Requests whose texts become tokens at once.
    pub encoding: usize,
}

/// What a request asks for.
#[derive(Debug, Clone)]
struct Asked {
    name: String,
    adapter: AskedAdapter,
}

/// Which part of a request something is for.
#[derive(Debug, Clone, Copy)]
enum Turn {
    /// The first, which counts as waiting while it waits: it can be refused.
    First,
    /// One of those that follow, of a request that has been let in.
    Further,
}

/// The adapter that comes with it.
#[derive(Debug, Clone)]
enum AskedAdapter {
    None,
    /// One that was learned here, in this folder.
    Learned(PathBuf),
    /// One that somebody has published.
    Published(AdapterId),
}

/// One model that is asked over HTTP.
pub(crate) struct Gateway {
    opened: Opened,
    speculate: Speculate,
    admission: Admission,
    /// `None` where anybody may ask who reaches it.
    keys: Option<Keys>,
    /// Whose pages may ask besides its own.
    origins: Vec<HeaderValue>,
    anybody: Arc<Holder>,
    counters: Counters,
    picture: Picture,
    published: Published,
    /// Bytes of the longest token, once a text was measured by it.
    longest_token: OnceLock<usize>,
    started: u64,
    /// Where it learns adapters, if it does.
    tuning: Option<Arc<Tuning>>,
    /// Nothing but that it is reached from this machine alone keeps others away.
    guarded: bool,
}

impl Gateway {
    fn new(opened: Opened, speculate: Speculate, terms: Terms, cache: &Path) -> Self {
        let Terms { keys, origins, guarded, limits, counters, tuning } = terms;
        Self {
            opened,
            speculate,
            admission: Admission::new(&limits),
            keys,
            origins,
            guarded,
            anybody: Arc::new(Holder::anybody()),
            counters,
            picture: Picture::default(),
            published: Published::new(cache),
            longest_token: OnceLock::new(),
            started: reply::unix_seconds(),
            tuning,
        }
    }

    /// Answers requests until `stop`; gives back what it was made of, to be left in good order.
    async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) -> Option<Opened> {
        let gateway = Arc::new(self);
        listen::serve(listener, router(Arc::clone(&gateway)), stop).await;
        Arc::into_inner(gateway).map(|gateway| gateway.opened)
    }

    fn model_name(&self) -> &str {
        self.opened.model.shard().name()
    }

    /// What decides the bits of an answer, besides the request.
    fn fingerprint(&self) -> String {
        let id = self.opened.model.id().to_string();
        format!("umbel-{}-{}", env!("CARGO_PKG_VERSION"), id.get(..8).unwrap_or(&id))
    }

    fn context(&self) -> usize {
        self.opened.model.config().context_tokens
    }

    const fn started(&self) -> u64 {
        self.started
    }

    fn speculate(&self) -> Speculate {
        self.speculate.clone()
    }

    fn check_model(&self, asked: &str) -> Result<(), ApiError> {
        if asked == self.model_name() {
            return Ok(());
        }
        Err(ApiError::unknown_model(asked, self.model_name()))
    }

    /// The model that a holder asks for: the one that is served, the same with an adapter that somebody has
    /// published, or with one of the holder's own.
    fn asked(&self, name: &str, holder: &Holder) -> Result<Asked, ApiError> {
        let learned = self.tuning.as_ref().and_then(|tuning| tuning.adapter(name, holder));
        let adapter = if let Some(folder) = learned {
            AskedAdapter::Learned(folder)
        } else if let Some((model, id)) = name.rsplit_once('@')
            && model == self.model_name()
        {
            let id = id.parse().map_err(|_| {
                let message = format!("{id:?} is no adapter's id, which has 64 hexadecimal digits");
                ApiError::no_model(message)
            })?;
            AskedAdapter::Published(id)
        } else {
            self.check_model(name)?;
            AskedAdapter::None
        };
        Ok(Asked { name: name.to_owned(), adapter })
    }

    /// The adapter that was asked for, which may have to be fetched first.
    async fn adapter(&self, asked: &Asked) -> Result<Option<NamedAdapter>, ApiError> {
        match &asked.adapter {
            AskedAdapter::None => Ok(None),
            AskedAdapter::Learned(folder) => {
                let read = self.opened.adapter(folder).await;
                Ok(Some(read.map_err(|error| {
                    // Where it lies is no matter of who asks.
                    let error = format!("{error:#}");
                    tracing::warn!(error, model = asked.name, "a learned adapter cannot be read");
                    ApiError::unreadable()
                })?))
            }
            AskedAdapter::Published(id) => {
                self.published.adapter(&self.opened, *id).await.map(Some)
            }
        }
    }

    /// Opens a session for an answer.
    async fn start(
        &self,
        request: Generate,
        adapter: Option<&NamedAdapter>,
        turn: Turn,
    ) -> Result<Generation, ApiError> {
        let tokens = request.prompt.len().saturating_add(request.max_tokens as usize);
        let chain = self.chain(adapter, (tokens, &request.prompt), turn).await?;
        Ok(request.start(Arc::clone(&self.opened.model), chain)?)
    }

    /// A session with room for so many tokens, for this prompt. In one process it waits for room that
    /// others have, if as many requests may wait.
    async fn chain(
        &self,
        adapter: Option<&NamedAdapter>,
        (tokens, prompt): (usize, &[u32]),
        turn: Turn,
    ) -> Result<Chain, ApiError> {
        match self.open(adapter, (tokens, prompt), turn).await {
            Ok(chain) => Ok(chain),
            Err(error) if is_full(&error) || self.has_no_room(&error).await => {
                Err(ApiError::full(error.as_ref()))
            }
            Err(error) => Err(ApiError::unavailable(&error)),
        }
    }

    async fn open(
        &self,
        adapter: Option<&NamedAdapter>,
        (tokens, prompt): (usize, &[u32]),
        turn: Turn,
    ) -> anyhow::Result<Chain> {
        let _place = match turn {
            Turn::First => match self.opened.chain_with(adapter, tokens, prompt).await {
                Err(full) if is_full_here(&full) => match self.admission.place() {
                    Ok(place) => Some(place),
                    Err(_) => return Err(full),
                },
                opened => return opened,
            },
            Turn::Further => None,
        };
        self.opened.chain_in_turn(adapter, tokens, prompt).await
    }

    /// Whether there are servers of all blocks for a session that found no route, and none has failed.
    async fn has_no_room(&self, error: &anyhow::Error) -> bool {
        let Some(OpenChainError::Session(failure)) = error.downcast_ref() else { return false };
        let no_route = matches!(failure, SessionFailure::NoRoute { last: None, .. });
        no_route && self.missing_blocks().await.is_empty()
    }

    /// The vector of a text, read in a session of its own. Its tokens are spent once that is open.
    async fn embedding(&self, ids: &[u32], taken: Taken) -> Result<Vec<f32>, ApiError> {
        let context = self.context();
        if ids.len() > context {
            return Err(GenerateError::PromptTooLong { tokens: ids.len(), context }.into());
        }
        let chain = self.chain(None, (ids.len(), &[]), Turn::Further).await?;
        taken.keep();
        Ok(umbel_client::embedding(&self.opened.model, chain, ids).await?)
    }

    fn hidden_size(&self) -> usize {
        self.opened.model.config().hidden_size
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.opened.model.tokenizer()
    }

    /// Blocks that nobody serves who is known.
    async fn missing_blocks(&self) -> Vec<String> {
        let Blocks::Swarm(swarm, _) = &self.opened.blocks else {
            return Vec::new();
        };
        let servers = swarm.announcements(Some(self.opened.model.id())).await;
        let block_count = self.opened.model.config().block_count;
        // Who says that the model has other blocks is no server of it, as in the picture.
        let served = |block: &u32| {
            servers.iter().any(|server| {
                let serves = !server.draining && server.block_count == block_count;
                serves && server.span.contains(*block)
            })
        };
        (0..block_count).filter(|block| !served(block)).map(|block| block.to_string()).collect()
    }
}

fn router(gateway: Arc<Gateway>) -> Router {
    let interface = Router::new()
        .route("/swarm", get(picture::show))
        .route("/v1/models", get(models::list))
        // Names of models have slashes where they come from the hub.
        .route("/v1/models/{*name}", get(models::one).delete(tuning::delete_model))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/messages", post(messages::create))
        .merge(tuning::router())
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), keys::check));
    // Outside, since what a browser asks first has no key, and a page is to read why it is refused.
    let interface = match sites::cors(&gateway.origins) {
        Some(cors) => interface.layer(cors),
        None => interface,
    };
    Router::new()
        .route("/", get(page::page))
        .route("/page/{file}", get(page::file))
        .route("/health", get(models::health))
        .route("/ready", get(models::ready))
        .merge(interface)
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(gateway.counters.clone(), count))
        .with_state(gateway)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn other_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} takes no {method}", uri.path());
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// Whether there was no room for a session.
fn is_full(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(OpenChainError::Session(failure)) => failure.is_full(),
        Some(OpenChainError::NotServed { .. }) | None => is_full_here(error),
    }
}

/// Whether other sessions of this process have the room.
fn is_full_here(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(OpenTableError::Full { .. }))
}

/// Does what takes milliseconds where it holds up no connection.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.expect("tokenizers and templates do not panic")
}
