//! The load generator against a server that does what a script says.

mod fake_server;

mod streams;

mod runs;

mod prompts;

use fake_server::FakeServer;
use load::{Client, Endpoint, Lengths, Limits, Load, PromptKind, Settings, SharedPrefix, Slo, Target, WorkloadLengths};
use std::time::Duration;

/// A client with a short timeout.
fn client(url: &str) -> Client {
    Client::new(Target::parse(url).expect("a URL"), &[], Duration::from_secs(5)).expect("a client")
}

/// Four requests of 16 ids for 5 tokens, two at once.
fn settings() -> Settings {
    Settings {
        endpoint: Endpoint::Completions,
        model: None,
        prompt: PromptKind::Ids,
        vocab: Some(100),
        text: None,
        lengths: WorkloadLengths { prompt: Lengths::Fixed(16), completion: Lengths::Fixed(5) },
        shared: SharedPrefix { tokens: 0, groups: 1 },
        loads: vec![Load::Concurrency(2)],
        limits: Limits { requests: Some(4), duration: None, max_concurrency: 8 },
        warmup: 0,
        slo: Slo::default(),
        extra: serde_json::Map::new(),
        seed: 1,
        prompt_seed: 2,
    }
}

/// Runs a future as the binary does.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Measures a server to the end.
fn measure(server: &FakeServer, settings: Settings) -> load::Report {
    let client = client(&server.url());
    let measured = block_on(load::measure(&client, settings, &mut |_| (), std::future::pending()));
    measured.expect("the server is there")
}
