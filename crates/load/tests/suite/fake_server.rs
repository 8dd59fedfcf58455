//! An HTTP server in this process whose every answer is a script. A thread per connection, nothing shared but a log.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What came in.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// For example `POST /v1/completions`.
    pub(crate) line: String,
    /// Header lines, names in lower case.
    pub(crate) headers: Vec<String>,
    /// Null where there is none.
    pub(crate) body: Value,
}

/// What the server does next; after the last one it closes the connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Sends these bytes.
    Send(String),
    /// Sleeps.
    Wait(Duration),
}

/// A server that runs as long as the process.
pub(crate) struct FakeServer {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

impl FakeServer {
    /// Answers every request but the list of models with what `script` makes of it.
    pub(crate) fn start(script: impl Fn(&Request) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (script, seen) = (Arc::new(script), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, seen) = (script.clone(), seen.clone());
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let acts = match request.line.as_str() {
                        "GET /v1/models" => json_answer(200, &json!({"data": [{"id": "fake"}]})),
                        _ => script(&request),
                    };
                    seen.lock().expect("no panic").push(request);
                    play(stream, &acts);
                });
            }
        });
        FakeServer { port, log }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bodies of the requests for completions or chats, in order of arrival.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        let log = self.log.lock().expect("no panic");
        log.iter().filter(|request| request.line.contains("completions")).map(|request| request.body.clone()).collect()
    }

    /// The headers of the last request.
    pub(crate) fn last_headers(&self) -> Vec<String> {
        self.log.lock().expect("no panic").last().map(|request| request.headers.clone()).unwrap_or_default()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => lines.push(line.trim().to_string()),
        }
    }
    let line = lines[0].trim_end_matches(" HTTP/1.1").to_string();
    let headers: Vec<String> = lines[1..].iter().map(|line| line.to_lowercase()).collect();
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { line, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

fn play(mut stream: TcpStream, acts: &[Act]) {
    let _ = stream.set_nodelay(true);
    for act in acts {
        match act {
            // The client may have gone, which is its right.
            Act::Send(text) if stream.write_all(text.as_bytes()).is_err() => return,
            Act::Send(_) => {}
            Act::Wait(time) => std::thread::sleep(*time),
        }
    }
}

/// An answer in one piece.
pub(crate) fn json_answer(status: u16, body: &Value) -> Vec<Act> {
    let head = format!("HTTP/1.1 {status} -\r\ncontent-type: application/json\r\nconnection: close\r\n");
    vec![Act::Send(format!("{head}content-length: {}\r\n\r\n{body}", body.to_string().len()))]
}

/// The head of a stream that ends with its connection.
pub(crate) fn stream_head() -> Act {
    Act::Send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".into())
}

/// An event with this data.
pub(crate) fn event(data: &Value) -> Act {
    Act::Send(format!("data: {data}\n\n"))
}

/// A stream of as many tokens as were asked for, the first after `ttft`, the others `gap` apart, with usage.
pub(crate) fn tokens(request: &Request, ttft: Duration, gap: Duration) -> Vec<Act> {
    let wanted = request.body["max_tokens"].as_u64().unwrap_or(1);
    let prompt_tokens = request.body["prompt"].as_array().map_or(7, Vec::len);
    let mut acts = vec![stream_head(), Act::Send(": reading\n\n".into()), Act::Wait(ttft)];
    for i in 0..wanted {
        acts.extend((0 < i).then_some(Act::Wait(gap)));
        acts.push(event(&json!({"choices": [{"text": "w ", "finish_reason": null}]})));
    }
    acts.push(event(&json!({"choices": [{"text": "", "finish_reason": "length"}]})));
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": wanted});
    acts.push(event(&json!({"choices": [], "usage": usage})));
    acts.push(Act::Send("data: [DONE]\n\n".into()));
    acts
}
