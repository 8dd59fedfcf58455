//! One request, sent and measured.
//!
//! ```text
//! sent        comments, role    first chunk   chunk   chunk           last chunk   usage, [DONE]
//!  |------------------------------|-------------|-------|---------------|-----------|
//!  |------------ TTFT ------------|---- gap ----|- gap -|----- gap -----|
//!                                 |------- TPOT * (tokens - 1) ---------|
//!  |--------------------------------- end to end -----------------------------------|
//! ```

use crate::chunk::Usage;
use crate::client::{Client, EventKind};
use crate::failure::Failure;
use bytes::Bytes;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

/// A request that is ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    /// Tokens that the answer must have, where the server was told to go on until then.
    pub(crate) wanted_tokens: Option<u64>,
}

/// Who counted a completion's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CountedBy {
    /// The server's usage.
    Usage,
    /// Nobody but us: chunks with tokens, each taken for one.
    Chunks,
}

/// What an answer took, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// From sending to the connection; a part of the TTFT.
    pub connect: f64,
    /// From sending to the first chunk with tokens.
    pub ttft: f64,
    /// Between chunks with tokens. A chunk may bring several tokens.
    pub gaps: Vec<f32>,
    /// From the first to the last chunk with tokens.
    pub decode: f64,
    /// From sending to the end of the stream.
    pub end_to_end: f64,
    /// Of the completion.
    pub tokens: u64,
    /// Who says so.
    pub counted_by: CountedBy,
    /// Of the prompt, where the server says so.
    pub prompt_tokens: Option<u64>,
    /// Of the prompt and out of a cache, where the server says so.
    pub cached_tokens: Option<u64>,
}

impl Measured {
    /// Seconds per token after the first; an answer of one token has none.
    #[must_use]
    pub fn tpot(&self) -> Option<f64> {
        if 1 < self.tokens { Some(self.decode / (self.tokens - 1) as f64) } else { None }
    }
}

/// When what happened to a request.
struct Times {
    sent: Instant,
    connected: Instant,
    /// Those with tokens.
    chunks: Vec<Instant>,
    end: Instant,
}

/// Sends it and reads to the end. Every chunk with tokens is counted in `seen` when it comes.
pub(crate) async fn exchange(client: &Client, call: Call, seen: &AtomicU64) -> Result<Measured, Failure> {
    let mut answer = client.stream(call.path, call.body).await?;
    let mut chunks: Vec<Instant> = Vec::new();
    let mut usage = None;
    while let Some(event) = answer.next().await? {
        let EventKind::Chunk(chunk) = event.kind else { continue };
        if chunk.has_tokens() {
            chunks.push(event.at);
            seen.fetch_add(1, Ordering::Relaxed);
        }
        // Some servers repeat it in every chunk: the last one counts.
        usage = chunk.usage().or(usage);
    }
    let (sent, connected, end) = (answer.sent(), answer.connected(), answer.read());
    measured(&Times { sent, connected, chunks, end }, usage, call.wanted_tokens)
}

fn measured(times: &Times, usage: Option<Usage>, wanted: Option<u64>) -> Result<Measured, Failure> {
    let Times { sent, connected, chunks, end } = times;
    let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else { return Err(Failure::Empty) };
    let (tokens, counted_by) = match usage {
        Some(usage) => (usage.completion_tokens, CountedBy::Usage),
        None => (chunks.len() as u64, CountedBy::Chunks),
    };
    // Chunks of several tokens would look too few: only the server's own count can be held against it.
    if let (CountedBy::Usage, Some(wanted)) = (counted_by, wanted.filter(|wanted| tokens < *wanted)) {
        return Err(Failure::Short { tokens, wanted });
    }
    Ok(Measured {
        connect: (*connected - *sent).as_secs_f64(),
        ttft: (*first - *sent).as_secs_f64(),
        gaps: chunks.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f32()).collect(),
        decode: (*last - *first).as_secs_f64(),
        end_to_end: (*end - *sent).as_secs_f64(),
        tokens,
        counted_by,
        prompt_tokens: usage.map(|usage| usage.prompt_tokens),
        cached_tokens: usage.and_then(|usage| usage.cached_tokens),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn check(ms: &[u64], usage: Option<u64>, wanted: Option<u64>) -> Result<Measured, Failure> {
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        let chunks = ms.iter().map(|ms| at(*ms)).collect();
        let usage = usage.map(|completion_tokens| Usage { prompt_tokens: 5, completion_tokens, cached_tokens: None });
        measured(&Times { sent, connected: at(2), chunks, end: at(100) }, usage, wanted)
    }

    #[test]
    fn times_follow_from_the_chunks() {
        let by_usage = check(&[10, 20, 50], Some(5), Some(5)).expect("a whole answer");
        assert_eq!(by_usage.connect, 0.002);
        assert_eq!((by_usage.ttft, by_usage.decode, by_usage.end_to_end), (0.01, 0.04, 0.1));
        assert_eq!(by_usage.gaps, [0.01, 0.03]);
        assert_eq!((by_usage.tokens, by_usage.counted_by), (5, CountedBy::Usage));
        assert_eq!(by_usage.tpot(), Some(0.01));
        let by_chunks = check(&[10, 20, 50], None, Some(5)).expect("chunks are not held against it");
        assert_eq!((by_chunks.tokens, by_chunks.tpot()), (3, Some(0.02)));
        assert_eq!(check(&[10], Some(1), Some(1)).expect("one token").tpot(), None);
        assert_eq!(check(&[10, 20], Some(4), Some(5)), Err(Failure::Short { tokens: 4, wanted: 5 }));
        assert!(check(&[10, 20], Some(4), None).is_ok());
        assert_eq!(check(&[], Some(4), None), Err(Failure::Empty));
    }
}
