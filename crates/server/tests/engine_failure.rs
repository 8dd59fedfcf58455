//! A device that is lost under a server: its clients are told, and the server ends.

use engine::Attention;
use model::{ModelSource, Opened};
use serde_json::{Value, json};
use sparse::Specs;
use spindle_server::{Ended, ServerConfig, serve};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testing::http::Http;
use testing::simulator::SimulatorConfig;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Decode steps until the device is lost.
const LOST_AFTER: u64 = 10;

/// A server over a made-up device; only the names of its model are real.
fn start(runtime: &Runtime) -> (Http, JoinHandle<Ended>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/noise");
    let opened: Opened = model::open(&ModelSource::Folder(folder)).expect("it is in the repository");
    let specs = Specs::of(opened.config().geometry());
    let attention = |(i, spec): (usize, &sparse::AlgorithmSpec)| Attention {
        algorithm: backend::AlgorithmId(i as u8),
        selection: spec.selection(),
    };
    let config = ServerConfig {
        names: vec!["noise".to_string()],
        api_keys: Vec::new(),
        max_model_len: 4096,
        attentions: specs.all().iter().enumerate().map(attention).collect(),
        default_attention: 0,
        specs,
        max_queue: 8,
        max_lanes: 4,
        drain: Duration::from_secs(600),
    };
    let engine = SimulatorConfig { lost_after: Some(LOST_AFTER), ..SimulatorConfig::new(200, 4) }.start();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let served = runtime.spawn(serve(listener, engine, Arc::new(opened), config, std::future::pending()));
    (Http { address }, served)
}

fn long() -> Value {
    json!({"prompt": [1, 2, 3], "max_tokens": 1000, "ignore_eos": true})
}

fn end(runtime: &Runtime, served: JoinHandle<Ended>) -> Ended {
    let start = Instant::now();
    let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), served).await });
    let ended = ended.expect("a server without an engine ends").expect("it does not panic");
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    ended
}

#[test]
fn a_lost_device_fails_requests_and_health_and_ends_the_server() {
    let runtime = Runtime::new().expect("threads");
    let (http, served) = start(&runtime);
    assert_eq!(http.get("/health").status, 200);
    assert_eq!(http.get("/debug/residency").json()["sequences"], json!([]));
    let reply = http.post("/v1/completions", &long());
    assert_eq!(reply.status, 500, "{}", reply.body);
    assert_eq!(reply.json()["error"]["message"], "the engine failed: device lost: made up");
    assert_eq!(reply.json()["error"]["type"], "server_error");
    let health = http.get("/health");
    assert_eq!(health.status, 503);
    assert!(health.body.contains("device lost: made up"), "{}", health.body);
    let residency = http.get("/debug/residency");
    assert_eq!(residency.status, 503, "{}", residency.body);
    assert!(residency.body.contains("device lost: made up"), "{}", residency.body);
    let late = http.post("/v1/completions", &long());
    assert_eq!(late.status, 500);
    assert!(late.body.contains("device lost: made up"), "{}", late.body);
    assert_eq!(end(&runtime, served), Ended::Failed("device lost: made up".to_string()));
}

#[test]
fn a_stream_ends_with_the_reason() {
    let runtime = Runtime::new().expect("threads");
    let (http, served) = start(&runtime);
    let mut body = long();
    body["stream"] = json!(true);
    let events = http.stream("/v1/completions", &body).events();
    let failure = events.iter().find(|event| event.contains("error")).expect("the failure is told");
    assert!(failure.contains("the engine failed: device lost: made up"), "{failure}");
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert!(matches!(end(&runtime, served), Ended::Failed(_)));
}
