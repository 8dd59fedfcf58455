//! Requests that are open now, for the live view.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Open requests by number; as many as the connections and the engine's queue allow.
#[derive(Clone, Default)]
pub(crate) struct Live {
    requests: Arc<Mutex<BTreeMap<u64, Open>>>,
}

/// One open request.
#[derive(Clone)]
struct Open {
    attention: Arc<str>,
    since: Instant,
    prompt_tokens: usize,
    read_tokens: usize,
    tokens: usize,
}

/// Keeps a request in the view; it leaves with this.
pub(crate) struct Seat {
    live: Live,
    id: u64,
}

impl Live {
    /// A request that begins.
    pub(crate) fn open(&self, id: u64, attention: impl Into<Arc<str>>, prompt_tokens: usize) -> Seat {
        let since = Instant::now();
        let open = Open { attention: attention.into(), since, prompt_tokens, read_tokens: 0, tokens: 0 };
        self.with(|requests| requests.insert(id, open));
        Seat { live: self.clone(), id }
    }

    /// All of them, oldest first. What is long is done outside of the lock, for which the engine's thread waits.
    pub(crate) fn list(&self) -> Vec<Value> {
        let entry = |(id, open): (u64, Open)| {
            json!({
                "id": id, "attention": &*open.attention, "seconds": open.since.elapsed().as_secs_f64(),
                "prompt_tokens": open.prompt_tokens, "read_tokens": open.read_tokens, "tokens": open.tokens,
            })
        };
        self.with(|requests| requests.clone()).into_iter().map(entry).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.with(|requests| requests.len())
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Open>) -> T) -> T {
        act(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Seat {
    /// So many tokens of the prompt are read.
    pub(crate) fn read(&self, tokens: usize) {
        self.update(|open| open.read_tokens = tokens);
    }

    /// A token was written.
    pub(crate) fn wrote(&self) {
        self.update(|open| {
            open.read_tokens = open.prompt_tokens;
            open.tokens += 1;
        });
    }

    fn update(&self, change: impl FnOnce(&mut Open)) {
        self.live.with(|requests| requests.get_mut(&self.id).map(change));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.live.with(|requests| requests.remove(&self.id));
    }
}
