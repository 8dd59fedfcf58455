//! HTTP/1.1 to one server, a connection for each request.
//!
//! A connection of its own costs a round trip and gains that no request meets a connection which the server has just
//! closed. Times are taken when bytes have been read, before they are looked at.
//! Bounds: an event or an answer in one piece of 16 MiB, the body of an error of 64 KiB, a connection in 10 s,
//! the rest of a stream that has said `[DONE]` in 1 s.

use crate::chunk::{Chunk, error_of, start};
use crate::failure::Failure;
use crate::sse::{SseEvent, SseParser};
use crate::target::Target;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a server to end its answer after `[DONE]`, so that it does not take our leaving for an abort.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const EVENT_BYTES_MAX: usize = 16 << 20;
const ANSWER_BYTES_MAX: usize = 16 << 20;
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A server, and what every request to it carries.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    addresses: Vec<SocketAddr>,
    headers: HeaderMap,
    timeout: Duration,
}

/// Something that a stream said, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When its last byte had been read.
    pub at: Instant,
    /// What it is.
    pub kind: EventKind,
}

/// What a stream can say.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// A comment line: a sign of life, or progress.
    Comment(String),
    /// A piece of the answer.
    Chunk(Chunk),
}

/// An answer that is on its way. Dropping it closes the connection, by which a server aborts the request.
#[derive(Debug)]
pub struct Answer {
    sent: Instant,
    deadline: Instant,
    timeout: Duration,
    body: Incoming,
    parser: SseParser,
    read: Instant,
    end: StreamEnd,
    connection: Connection,
}

/// How far a stream is.
#[derive(Debug, PartialEq)]
enum StreamEnd {
    /// More must come.
    Open,
    /// A choice has finished; usage may come, and the connection may end.
    Finished,
    /// `[DONE]` has come.
    Done,
}

/// A connection, which ends with its answer.
#[derive(Debug)]
struct Connection {
    made: Instant,
    /// Moves its bytes.
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Resolves the target's name once. Every request must be answered, to its end, within `timeout`.
    ///
    /// # Errors
    /// The name is unknown, or a header is none.
    pub fn new(target: Target, headers: &[(String, String)], timeout: Duration) -> Result<Self, Failure> {
        let unknown = |reason: String| Failure::Connect(format!("{}: {reason}", target.host));
        let found = (target.host.as_str(), target.port).to_socket_addrs();
        let addresses: Vec<SocketAddr> = found.map_err(|error| unknown(error.to_string()))?.collect();
        if addresses.is_empty() {
            return Err(unknown("the name has no address".into()));
        }
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let wrong = |_| Failure::Malformed(format!("the header '{name}' has a character that none can have"));
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|error| wrong(error.to_string()))?;
            map.append(parsed, HeaderValue::from_str(value).map_err(|error| wrong(error.to_string()))?);
        }
        Ok(Client { target, addresses, headers: map, timeout })
    }

    /// The same client with a key in every request.
    ///
    /// # Errors
    /// The key has a character that a header cannot have.
    pub fn with_api_key(mut self, key: &str) -> Result<Self, Failure> {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| Failure::Malformed("the API key has a character that a header cannot have".into()))?;
        value.set_sensitive(true);
        self.headers.insert(AUTHORIZATION, value);
        Ok(self)
    }

    /// Where it sends.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Asks for one JSON value.
    ///
    /// # Errors
    /// No connection, no success, or no JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.whole(Method::GET, path, Bytes::new()).await
    }

    /// Sends JSON and waits for one JSON value.
    ///
    /// # Errors
    /// No connection, no success, or no JSON.
    pub async fn post(&self, path: &str, body: Bytes) -> Result<Value, Failure> {
        self.whole(Method::POST, path, body).await
    }

    /// Sends JSON and gives the events of the answer as they come.
    ///
    /// # Errors
    /// No connection, no success, or an answer that is no stream.
    pub async fn stream(&self, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let sent = Instant::now();
        let deadline = sent + self.timeout;
        let (response, connection) = self.in_time(deadline, self.send(Method::POST, path, body)).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        if kind.starts_with("application/json") {
            let text = self.in_time(deadline, text(response, ERROR_BYTES_MAX)).await?;
            let said = serde_json::from_str(&text).ok().as_ref().and_then(error_of);
            return Err(match said {
                Some(message) => Failure::InStream(message),
                None => Failure::Malformed(format!("an answer in one piece to `stream: true`: {}", start(&text))),
            });
        }
        Ok(Answer {
            sent,
            deadline,
            timeout: self.timeout,
            body: response.into_body(),
            parser: SseParser::default(),
            read: sent,
            end: StreamEnd::Open,
            connection,
        })
    }

    async fn whole(&self, method: Method, path: &str, body: Bytes) -> Result<Value, Failure> {
        let answer = async {
            let (response, _connection) = self.send(method, path, body).await?;
            text(response, ANSWER_BYTES_MAX).await
        };
        let text = self.in_time(Instant::now() + self.timeout, answer).await?;
        serde_json::from_str(&text).map_err(|error| Failure::Malformed(format!("{error} in: {}", start(&text))))
    }

    async fn in_time<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(deadline, work).await.unwrap_or(Err(Failure::Timeout(self.timeout)))
    }

    /// Sends a request and waits for the head of a successful answer.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(Response<Incoming>, Connection), Failure> {
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.addresses.as_slice()));
        let late = |_| Failure::Connect(format!("no answer from the address in {} s", CONNECT_TIMEOUT.as_secs()));
        let stream = connecting.await.map_err(late)?.map_err(|error| Failure::Connect(error.to_string()))?;
        let made = Instant::now();
        // Small pieces are sent at once; without it the numbers are still right, only later.
        let _ = stream.set_nodelay(true);
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| Failure::Broken(reason(&error)))?;
        let task = tokio::spawn(async move {
            // Whoever waits for the answer gets the error.
            let _ = connection.await;
        });
        let connection = Connection { made, task };
        let response = sender.send_request(self.request(method, path, body)?).await;
        let response = response.map_err(|error| Failure::Broken(reason(&error)))?;
        if response.status().is_success() {
            return Ok((response, connection));
        }
        let code = response.status().as_u16();
        let text = text(response, ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(Failure::Status { code, message: status_message(&text) })
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.target.base))
            .header(HOST, self.target.authority())
            .header(USER_AGENT, concat!("spindle-load/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "text/event-stream, application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| Failure::Malformed(error.to_string()))?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }
}

impl Answer {
    /// When sending began, before the connection was made.
    #[must_use]
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// When the connection stood, after sending began.
    #[must_use]
    pub fn connected(&self) -> Instant {
        self.connection.made
    }

    /// When the last bytes had been read that belong to it: after the end, those of `[DONE]`.
    #[must_use]
    pub fn read(&self) -> Instant {
        self.read
    }

    /// The next event, or none after the stream's proper end.
    ///
    /// # Errors
    /// An error object in the stream, a cut, what is no event, or the timeout.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if self.end == StreamEnd::Done {
                self.drain().await;
                return Ok(None);
            }
            if let Some(event) = self.parser.pop() {
                match self.kind(event)? {
                    Some(kind) => return Ok(Some(Event { at: self.read, kind })),
                    None => continue,
                }
            }
            let late = |_| Failure::Timeout(self.timeout);
            let frame = timeout_at(self.deadline, self.body.frame()).await.map_err(late)?;
            self.read = Instant::now();
            match frame {
                Some(Ok(frame)) => self.take(frame.data_ref())?,
                Some(Err(error)) => return Err(Failure::Cut(reason(&error))),
                None if self.end == StreamEnd::Finished => return Ok(None),
                None => return Err(Failure::Cut("it ended without [DONE] and without a finish reason".into())),
            }
        }
    }

    /// Reads what may come after the end, and does not care what it is.
    async fn drain(&mut self) {
        let rest = async { while let Some(Ok(_)) = self.body.frame().await {} };
        let _ = timeout(DRAIN_TIMEOUT, rest).await;
    }

    /// What an event says; none is the stream's end.
    fn kind(&mut self, event: SseEvent) -> Result<Option<EventKind>, Failure> {
        match event {
            SseEvent::Comment(text) => Ok(Some(EventKind::Comment(text))),
            SseEvent::Message { data, .. } if data.trim() == "[DONE]" => {
                self.end = StreamEnd::Done;
                Ok(None)
            }
            SseEvent::Message { name, data } if name.as_deref() == Some("error") => {
                Err(Failure::InStream(status_message(&data)))
            }
            SseEvent::Message { data, .. } => Ok(Some(EventKind::Chunk(self.chunk(&data)?))),
        }
    }

    fn chunk(&mut self, data: &str) -> Result<Chunk, Failure> {
        let chunk = Chunk::parse(data)?;
        if chunk.is_last() {
            self.end = StreamEnd::Finished;
        }
        Ok(chunk)
    }

    fn take(&mut self, bytes: Option<&Bytes>) -> Result<(), Failure> {
        self.parser.push(bytes.map_or(&[], |bytes| bytes));
        match self.parser.pending_bytes() <= EVENT_BYTES_MAX {
            true => Ok(()),
            false => Err(Failure::Malformed(format!("an event of more than {EVENT_BYTES_MAX} bytes"))),
        }
    }
}

async fn text(response: Response<Incoming>, bytes_max: usize) -> Result<String, Failure> {
    let body = Limited::new(response.into_body(), bytes_max).collect().await;
    let body = body.map_err(|error| Failure::Cut(error.to_string()))?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// What the body of an error says.
fn status_message(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    let said = value.as_ref().and_then(|value| {
        let detail = || value["detail"].as_str().or(value["message"].as_str()).map(str::to_string);
        error_of(value).or_else(detail)
    });
    said.unwrap_or_else(|| start(text).to_string())
}

/// Hyper's errors keep the cause in their source.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
