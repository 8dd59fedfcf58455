//! What every handler shares.

use crate::config::{BODIES_BYTES_MAX, PREPARING_MAX, ServerConfig};
use crate::error::ApiError;
use crate::grammar::Grammars;
use crate::live::Live;
use crate::measures::Measures;
use crate::tools::ToolFormat;
use engine::Engine;
use model::Opened;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, watch};

/// One model behind HTTP.
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) opened: Arc<Opened>,
    pub(crate) config: ServerConfig,
    pub(crate) live: Live,
    pub(crate) measures: Arc<Measures>,
    /// True from the order to stop on.
    pub(crate) draining: watch::Sender<bool>,
    /// Seconds since 1970 at the start.
    pub(crate) created: u64,
    /// Requests that are parsed and tokenised at a time: one a core.
    preparing: Arc<Semaphore>,
    /// Those, and the ones that wait for it.
    prepared: Arc<Semaphore>,
    /// KiB of bodies that are held at a time.
    pub(crate) bodies: Arc<Semaphore>,
    /// Ids given out.
    ids: AtomicU64,
    /// How the model writes tool calls, where its template knows them.
    pub(crate) tool_format: Option<ToolFormat>,
    /// Made when a request first needs one, which takes up to a second with a large vocabulary.
    grammars: OnceLock<Result<Grammars, String>>,
}

impl App {
    pub(crate) fn new(engine: Engine, opened: Arc<Opened>, config: ServerConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let tool_format = opened.chat.as_ref().and_then(|chat| ToolFormat::of(chat, &opened.tokenizer));
        App {
            tool_format,
            grammars: OnceLock::new(),
            engine,
            opened,
            config,
            live: Live::default(),
            measures: Arc::new(Measures::default()),
            draining: watch::Sender::new(false),
            created: now_seconds(),
            preparing: Arc::new(Semaphore::new(cores)),
            prepared: Arc::new(Semaphore::new(PREPARING_MAX)),
            bodies: Arc::new(Semaphore::new(BODIES_BYTES_MAX >> 10)),
            ids: AtomicU64::new(0),
        }
    }

    /// A number that no other request of this process has.
    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An id as clients see it; the start time keeps ids of different runs apart.
    pub(crate) fn public_id(&self, prefix: &str, id: u64) -> String {
        format!("{prefix}{:x}{id:08x}", self.created)
    }

    /// Runs work that takes time (templates, tokenising, grammars) off the threads that serve connections.
    ///
    /// # Errors
    /// Too much of it waits already, or the work's own.
    pub(crate) async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(place) = self.prepared.clone().try_acquire_owned() else {
            return Err(ApiError::overloaded(format!(
                "{PREPARING_MAX} requests are being read already; try again later"
            )));
        };
        let core = self.preparing.clone().acquire_owned().await.map_err(|_| ApiError::draining())?;
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            // The work goes on when the client has left, and counts as long as it does.
            let _counted = (place, core);
            work(&app)
        })
        .await;
        done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read: its worker has ended")))
    }

    /// What makes completions follow a grammar.
    ///
    /// # Errors
    /// The model's vocabulary cannot be constrained; `field` asked for it.
    pub(crate) fn grammars(&self, field: &str) -> Result<&Grammars, ApiError> {
        let make = || {
            let Opened { tokenizer, generation, .. } = &*self.opened;
            Grammars::new(tokenizer, &generation.end_tokens, self.opened.config().vocab_size)
        };
        self.grammars.get_or_init(make).as_ref().map_err(|why| {
            ApiError::unsupported(
                field,
                format!("{field} is not supported: this model's answers cannot be held to it: {why}"),
            )
        })
    }

    /// Bytes of one page of one layer and KV head: what a step fetches at a time.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.opened.config().geometry().page_bytes() as u64
    }

    /// Refuses new work once the server drains.
    pub(crate) fn admit(&self) -> Result<(), ApiError> {
        if *self.draining.borrow() { Err(ApiError::draining()) } else { Ok(()) }
    }
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl App {
    /// Says when prompts have words that a closed vocabulary lacks; the bundled model has some five hundred.
    pub(crate) fn vocabulary_warning<'a>(&self, prompts: impl Iterator<Item = &'a [kv::TokenId]>) -> Option<String> {
        let unknown = self.opened.tokenizer.unknown()?;
        let count = prompts.flatten().filter(|token| **token == unknown).count();
        (0 < count).then(|| format!("{count} words of the prompt are not in the model's vocabulary"))
    }
}
