//! The binary `spindle serve` under test, and the smallest HTTP client that can misbehave on purpose: hang up, stop
//! reading, send half a request.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything: tests run beside builds on small machines.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something that speaks HTTP at an address, `host:port`.
pub struct Http {
    /// Where.
    pub address: String,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    http: Http,
    /// What it printed before it was ready: the resolved configuration and the memory plan.
    pub plan: String,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

/// A response that is read as it comes.
pub struct Stream {
    /// Its status.
    pub status: u16,
    reader: BufReader<TcpStream>,
    /// Bytes left of the chunk in work.
    chunk: usize,
}

impl Server {
    /// Starts `binary serve` with `args` on a free port and waits until it is ready.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(binary: &str, args: &[&str]) -> Server {
        let mut command = Command::new(binary);
        command.arg("serve").args(args).args(["--port", "0"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let (mut line, mut plan) = (String::new(), String::new());
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("it prints where it serves");
        let mut errors = BufReader::new(child.stderr.take().expect("piped"));
        let address = line.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next());
        let Some(address) = address.map(str::to_string) else {
            let _ = errors.read_to_string(&mut plan);
            panic!("the server says '{line}' and {plan}");
        };
        while !plan.contains("at most") && 0 < errors.read_line(&mut plan).expect("it prints its plan") {}
        // Later words must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Server { child, http: Http { address }, plan }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One number of `/metrics`: the first series whose line starts with `name`.
    ///
    /// # Panics
    /// There is none.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Waits until `holds` does.
    ///
    /// # Panics
    /// It never does; `what` says what was expected.
    pub fn wait(&self, what: &str, holds: impl Fn(&Server) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A field in KiB of the process's `/proc` status, as `VmHWM`; `None` where the system has none.
    pub fn memory_kib(&self, field: &str) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = text.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Open file descriptors; `None` where the system does not tell.
    pub fn open_files(&self) -> Option<usize> {
        Some(std::fs::read_dir(format!("/proc/{}/fd", self.pid())).ok()?.count())
    }

    /// Asks it to stop, as a service manager does.
    ///
    /// # Panics
    /// The signal cannot be sent.
    pub fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success(), "the server has ended already");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Http {
    /// A GET request.
    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], "")
    }

    /// A POST request with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    /// Any request, on a connection of its own.
    ///
    /// # Panics
    /// No whole response comes.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut stream = self.send(method, path, headers, body);
        let (status, headers) = read_head(&mut stream);
        let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, n)| n.parse().ok());
        let mut bytes = vec![0; length.unwrap_or(0)];
        match length {
            // A server that keeps the connection would not end the stream.
            Some(_) => stream.read_exact(&mut bytes),
            None => stream.read_to_end(&mut bytes).map(drop),
        }
        .expect("the body arrives");
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = if chunked { unchunked(&bytes) } else { bytes };
        Reply { status, headers, body: String::from_utf8(body).expect("the body is text") }
    }

    /// A POST request whose response is read as it comes; dropping the stream hangs up.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        let mut reader = self.send("POST", path, &[("content-type", "application/json")], &body.to_string());
        let (status, _) = read_head(&mut reader);
        Stream { status, reader, chunk: 0 }
    }

    /// Sends a request and reads nothing.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> BufReader<TcpStream> {
        let mut socket = TcpStream::connect(&self.address).expect("the server listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}");
        let head = format!("{head}content-length: {}\r\n\r\n", body.len());
        // A server that refuses early closes before it has read all.
        let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body.as_bytes()));
        BufReader::new(socket)
    }
}

impl std::ops::Deref for Server {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.http
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Reply {
    /// Its body as JSON.
    ///
    /// # Panics
    /// It is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Stream {
    /// The next line of the body, without its end; `None` behind the last or when the connection broke.
    pub fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        loop {
            if self.chunk == 0 {
                self.chunk = self.next_chunk()?;
            }
            let mut byte = [0];
            self.reader.read_exact(&mut byte).ok()?;
            self.chunk -= 1;
            match byte[0] {
                b'\n' => return String::from_utf8(line).ok(),
                byte => line.push(byte),
            }
        }
    }

    /// The next event's data, or a comment with its colon; `None` behind the last.
    pub fn event(&mut self) -> Option<String> {
        loop {
            let line = self.line()?;
            if !line.is_empty() {
                return Some(line.strip_prefix("data: ").map_or(line.clone(), str::to_string));
            }
        }
    }

    /// All events that are left.
    pub fn events(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.event()).collect()
    }

    /// The size of the next chunk; `None` for the last.
    fn next_chunk(&mut self) -> Option<usize> {
        let mut size = String::new();
        while size.trim().is_empty() {
            size.clear();
            if self.reader.read_line(&mut size).ok()? == 0 {
                return None;
            }
        }
        usize::from_str_radix(size.trim(), 16).ok().filter(|size| 0 < *size)
    }
}

fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line).expect("the head arrives");
        if read == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_string());
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let header =
        |line: &String| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_string()));
    (status.expect("a status line"), lines.iter().skip(1).filter_map(header).collect())
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(size) = size.filter(|size| 0 < *size && end + 2 + size <= bytes.len()) else { break };
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[(end + 4 + size).min(bytes.len())..];
    }
    body
}
