//! One request: its times, and every way in which it can fail.

use crate::fake_server::{Act, FakeServer, event, json_answer, stream_head, tokens};
use crate::{block_on, client, measure, settings};
use load::{Client, CountedBy, EventKind, Failure, LoadError, Measured, Settings, Target};
use serde_json::{Value, json};
use std::time::Duration;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn send(text: &str) -> Act {
    Act::Send(text.into())
}

fn text(text: &str) -> Act {
    event(&json!({"choices": [{"text": text}]}))
}

/// What came of one request to a server that answers so.
fn one(acts: Vec<Act>) -> Result<Measured, Failure> {
    let server = FakeServer::start(move |_| acts.clone());
    let limits = load::Limits { requests: Some(1), ..settings().limits };
    measure(&server, Settings { limits, ..settings() }).runs[0].records[0].outcome.clone()
}

#[test]
fn times_are_those_of_the_server() {
    let is_right = |measured: &Measured| {
        // A sleep is never shorter than asked for. This machine may be busy: what comes can be read late, the first
        // chunk more than the last, so only times from the sending have a bound that always holds.
        assert!(0.060 <= measured.ttft && 0.140 <= measured.end_to_end, "{measured:?}");
        assert!(measured.ttft + measured.decode <= measured.end_to_end + 1e-9, "{measured:?}");
        assert_eq!((measured.gaps.len(), measured.tokens), (4, 5));
        assert_eq!((measured.counted_by, measured.prompt_tokens), (CountedBy::Usage, Some(16)));
        let tpot = measured.tpot().expect("five tokens");
        assert!((tpot - measured.decode / 4.0).abs() < 1e-9);
        measured.ttft < 0.070 && (0.018..0.025).contains(&tpot) && measured.end_to_end < 0.170
    };
    let found = (0..20).any(|_| {
        let server = FakeServer::start(|request| tokens(request, ms(60), ms(20)));
        let limits = load::Limits { requests: Some(1), ..settings().limits };
        let report = measure(&server, Settings { limits, ..settings() });
        is_right(report.runs[0].records[0].outcome.as_ref().expect("a whole answer"))
    });
    assert!(found, "never within 10 ms of the script");
}

#[test]
fn comments_and_roles_are_no_tokens() {
    let acts = vec![
        stream_head(),
        send(": prefill 1/2\n\n"),
        event(&json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]})),
        Act::Wait(ms(50)),
        event(&json!({"choices": [{"delta": {"content": "a"}}]})),
        // Cut inside of a line end.
        send("data: {\"choices\": [{\"delta\": {\"content\": \"\u{4e16}\"}, \"finish_reason\": \"stop\"}]}\r\n\r"),
        send("\ndata: [DONE]\n\n"),
    ];
    let measured = one(acts).expect("no usage, so nothing is held against it");
    assert!(0.050 <= measured.ttft);
    assert_eq!((measured.tokens, measured.counted_by, measured.prompt_tokens), (2, CountedBy::Chunks, None));
}

#[test]
fn a_stream_may_end_without_done_after_a_finish_reason() {
    let last = event(&json!({"choices": [{"text": "b", "finish_reason": "length"}]}));
    assert_eq!(one(vec![stream_head(), text("a"), last]).map(|measured| measured.tokens), Ok(2));
}

#[test]
fn every_kind_of_failure_has_its_name() {
    let check = |acts: Vec<Act>, kind: &str, words: &str| {
        let failure = one(acts).expect_err(kind);
        assert_eq!(failure.kind(), kind, "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
    };
    let error = json!({"error": {"message": "prompts are text here", "code": 400}});
    check(json_answer(400, &error), "status", "status 400: prompts are text here");
    check(json_answer(422, &json!({"detail": "no ids"})), "status", "status 422: no ids");
    check(vec![send("HTTP/1.1 503 -\r\nconnection: close\r\n\r\nbusy")], "status", "status 503: busy");
    check(vec![stream_head(), text("a"), event(&error)], "in_stream", "prompts are text here");
    check(vec![stream_head(), send("event: error\ndata: {\"message\": \"gone\"}\n\n")], "in_stream", "gone");
    check(json_answer(200, &error), "in_stream", "prompts are text here");
    check(json_answer(200, &json!({"choices": []})), "malformed", "in one piece");
    check(vec![stream_head(), send("data: {\n\n")], "malformed", "{");
    check(vec![stream_head(), text("a"), send("data: {\"choices\"")], "cut", "without [DONE]");
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    check(vec![send(chunked), send("ff\r\ndata: {}\n\n")], "cut", "");
    check(vec![stream_head(), send("data: [DONE]\n\n")], "empty", "no token");
    check(vec![], "broken", "");
    let usage = json!({"prompt_tokens": 16, "completion_tokens": 1});
    let short = vec![stream_head(), text("a"), event(&json!({"usage": usage})), send("data: [DONE]\n\n")];
    check(short, "short", "1 tokens instead of 5");
}

#[test]
fn a_slow_answer_is_a_timeout_and_counts_to_the_end() {
    let server = FakeServer::start(|request| tokens(request, ms(5), ms(2000)));
    let target = Target::parse(&server.url()).expect("a URL");
    let hasty = Client::new(target, &[], ms(500)).expect("a client");
    let mut seen = 0;
    let outcome = block_on(async {
        let mut answer = hasty.stream("/v1/completions", r#"{"max_tokens": 9}"#.into()).await?;
        while answer.next().await?.is_some() {
            seen += 1;
        }
        Ok(())
    });
    assert_eq!(outcome, Err(Failure::Timeout(ms(500))));
    assert!(1 <= seen, "what came before is given");
}

#[test]
fn events_come_as_they_are_with_their_times() {
    let server = FakeServer::start(|request| tokens(request, ms(30), ms(1)));
    let events = block_on(async {
        let client = client(&server.url());
        let mut answer = client.stream("/v1/chat/completions", r#"{"max_tokens": 2}"#.into()).await?;
        let mut events = Vec::new();
        while let Some(event) = answer.next().await? {
            events.push((event.at - answer.sent(), event.kind));
        }
        Ok::<_, Failure>(events)
    });
    let events = events.expect("a whole answer");
    assert_eq!(events[0].1, EventKind::Comment("reading".into()));
    assert!(ms(30) <= events[1].0 && events.is_sorted_by_key(|(at, _)| *at));
    let texts: Vec<&str> = events
        .iter()
        .filter_map(|(_, kind)| match kind {
            EventKind::Chunk(chunk) => Some(chunk.text()),
            EventKind::Comment(_) => None,
        })
        .collect();
    assert_eq!(texts, ["w ", "w ", "", ""]);
    let EventKind::Chunk(last) = &events[events.len() - 1].1 else { panic!("usage comes last") };
    assert_eq!(last.usage().map(|usage| usage.completion_tokens), Some(2));
    assert_eq!(last.value()["choices"], Value::Array(vec![]));
}

#[test]
fn a_server_that_is_not_there_is_said_at_once() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("an address").port();
    let url = format!("http://127.0.0.1:{port}");
    let client = client(&url);
    let measured = block_on(load::measure(&client, settings(), &mut |_| (), std::future::pending()));
    match measured {
        Err(LoadError::Server { url: named, failure: Failure::Connect(_) }) => assert_eq!(named, url),
        other => panic!("{other:?}"),
    }
    let nowhere = Target::parse("http://no-such-host.invalid").expect("a URL");
    assert!(matches!(Client::new(nowhere, &[], ms(100)), Err(Failure::Connect(_))));
}

#[test]
fn headers_and_the_key_are_sent() {
    let server = FakeServer::start(|_| json_answer(200, &json!({})));
    let target = Target::parse(&server.url()).expect("a URL");
    let headers = [("X-Tenant".to_string(), "blue".to_string())];
    let client = Client::new(target.clone(), &headers, ms(5000)).expect("a client");
    let client = client.with_api_key("sk-1").expect("a key");
    block_on(client.post("/tokenize", "{}".into())).expect("an answer");
    let sent = server.last_headers();
    for wanted in ["x-tenant: blue", "authorization: bearer sk-1", "content-type: application/json"] {
        assert!(sent.iter().any(|header| header == wanted), "no {wanted} in {sent:?}");
    }
    assert!(Client::new(target, &[("a b".to_string(), String::new())], ms(1)).is_err());
}

#[test]
fn done_is_the_end_even_where_the_connection_stays() {
    let done = vec![stream_head(), text("a"), send("data: [DONE]\n\ndata: {\n\n"), Act::Wait(ms(4000))];
    let measured = one(done).expect("whole");
    assert_eq!(measured.tokens, 1);
    assert!(measured.end_to_end < 0.9, "waiting for the connection is not the answer's time: {measured:?}");
}
