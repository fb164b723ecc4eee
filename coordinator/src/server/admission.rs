//! Who may open a session: model, blocks, and room in the KV cache.

use umbel_protocol::error::ErrorCode;
use umbel_protocol::inference::OpenSession;
use umbel_protocol::keeping::SharedPages;
use umbel_protocol::{DType, Span};

use super::{
    ComputeFailure, SESSIONS_LEFT_TO_OTHERS, SESSIONS_MAX, SESSIONS_PER_CLIENT, ServerConfig,
};

/// Tokens of a page, the unit in which KV cache is allocated: what a session reserves is rounded
/// up to whole pages here, so that the arena beneath can always give what was admitted.
pub(super) const PAGE_TOKENS: u32 = umbel_protocol::prefix::PAGE_TOKENS;

/// The KV budget of a server, in bytes of one head of keys: values take as much, and so does every
/// other head. All blocks that it holds share it: a server that moves has sessions on its old blocks
/// and on its new ones, and no more memory than before.
#[derive(Debug)]
pub(super) struct Admission {
    head_size: u32,
    pages: Option<SharedPages>,
    bytes_free: u64,
}

/// Why a session or a step is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// Of a session that may have ended here while a message was on its way.
    pub(super) fn not_open() -> Self {
        Self::new(ErrorCode::UnknownSession, "the session is not open here")
    }
}

impl From<ComputeFailure> for Refusal {
    fn from(ComputeFailure { code, detail }: ComputeFailure) -> Self {
        Self { code, detail }
    }
}

impl Admission {
    pub(super) fn new(config: &ServerConfig) -> Self {
        let &ServerConfig { head_size, cache: pages, span, .. } = config;
        let tokens = config.kv_tokens_max / PAGE_TOKENS * PAGE_TOKENS;
        let token = DType::F32.row_bytes(head_size) * u64::from(span.block_count());
        Self { head_size, pages, bytes_free: u64::from(tokens) * token }
    }

    /// Says why there is no room for a session on blocks of `span`, beside so many of all clients and
    /// of its own.
    pub(super) fn check(
        &self,
        config: &ServerConfig,
        span: Span,
        open: &OpenSession,
        (session_count, sessions_of_client): (usize, usize),
    ) -> Result<(), Refusal> {
        let refuse = |code, detail| Err(Refusal { code, detail });
        if open.model != config.model {
            return refuse(ErrorCode::UnknownModel, format!("this server serves {}", config.model));
        }
        if !span.covers(open.blocks) {
            let detail = format!("this server serves blocks {span}");
            return refuse(ErrorCode::BlocksNotServed, detail);
        }
        if open.tokens_max == 0 || open.tokens_max > config.context_tokens {
            let detail = format!("the model's context has {} tokens", config.context_tokens);
            return refuse(ErrorCode::ContextExceeded, detail);
        }
        let left =
            if sessions_of_client < SESSIONS_PER_CLIENT { 0 } else { SESSIONS_LEFT_TO_OTHERS };
        if session_count + left >= SESSIONS_MAX {
            let detail = format!("{session_count} sessions are open");
            return refuse(ErrorCode::Busy, detail);
        }
        let wanted = self.bytes(open.cache, open.blocks, open.tokens_max);
        if wanted > self.bytes_free {
            let detail = format!("room for {} tokens is left", self.tokens_free(open.cache, span));
            return refuse(ErrorCode::KvFull, detail);
        }
        Ok(())
    }

    /// Reserves room for a session that was checked.
    pub(super) fn reserve(&mut self, open: &OpenSession) {
        self.bytes_free -= self.bytes(open.cache, open.blocks, open.tokens_max);
    }

    /// Takes back what a session had reserved.
    pub(super) fn release(&mut self, cache: DType, blocks: Span, tokens_max: u32) {
        self.bytes_free += self.bytes(cache, blocks, tokens_max);
    }

    /// What nobody has reserved.
    pub(super) const fn bytes_free(&self) -> u64 {
        self.bytes_free
    }

    /// What one page takes.
    pub(super) fn page_bytes(&self, cache: DType, blocks: Span) -> u64 {
        self.bytes(cache, blocks, PAGE_TOKENS)
    }

    /// Tokens for which a session through every block of `span` would still find room, kept in this
    /// type.
    pub(super) fn tokens_free(&self, cache: DType, span: Span) -> u32 {
        // In fewer blocks than at first there is room for more tokens.
        let token = self.token_bytes(cache, span).max(1);
        u32::try_from(self.bytes_free / token).unwrap_or(u32::MAX)
    }

    fn bytes(&self, cache: DType, blocks: Span, tokens: u32) -> u64 {
        let pages = u64::from(tokens.div_ceil(PAGE_TOKENS));
        pages * u64::from(PAGE_TOKENS) * self.token_bytes(cache, blocks)
    }

    /// What a token takes in all of `blocks`.
    fn token_bytes(&self, cache: DType, blocks: Span) -> u64 {
        let count = blocks.block_count();
        match self.pages {
            Some(pages) => pages.row_bytes(cache, self.head_size, count),
            None => cache.row_bytes(self.head_size) * u64::from(count),
        }
    }
}
