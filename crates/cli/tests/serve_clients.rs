//! The server under clients of other people: the official Python SDK and a browser. Each test needs something that a
//! machine may lack, and says so where it skips.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testing::http::{Http, Server};

const BINARY: &str = env!("CARGO_BIN_EXE_spindle");
const QUESTION: &str = "the code for the amber lamp is 4 0 7 1 . what is the code for the amber lamp ?";

fn server() -> Server {
    Server::start(BINARY, &["--kv-memory", "64MiB", "--max-model-len", "4K"])
}

#[test]
fn the_official_python_sdk_understands_every_answer() {
    let Some(python) = python_with_openai() else {
        println!("skipped: the Python package openai cannot be installed here");
        return;
    };
    let server = server();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/sdk_check.py");
    let run = Command::new(python).arg(script).arg(format!("http://{}", server.address)).output().expect("python runs");
    let (out, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && out.trim() == "ok", "{out}{errors}");
}

/// A Python of our own with the SDK; kept between runs.
fn python_with_openai() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk");
    let python = folder.join("bin/python");
    let runs = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let has_sdk = || runs(Command::new(&python).args(["-c", "import openai"]));
    if !has_sdk() {
        runs(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        runs(Command::new(&python).args(["-m", "pip", "install", "--quiet", "openai"]));
    }
    has_sdk().then_some(python)
}

#[test]
fn the_page_chats_and_shows_what_the_server_does() {
    let Some(browser) = Browser::start() else {
        println!("skipped: there is no chromedriver here (Debian: chromium-driver)");
        return;
    };
    let server = server();
    browser.go(&format!("http://{}/", server.address));
    browser.wait("return document.getElementById('lanes').textContent", "0 of 64");
    browser.wait("return document.getElementById('model').textContent", "needle, 4,096 tokens");
    browser.wait("return document.getElementById('algorithm').length", "5");
    let ask = format!(
        "document.getElementById('algorithm').value = 'sketch'; \
         document.getElementById('prompt').value = '{QUESTION}'; document.getElementById('send').click();"
    );
    browser.script(&ask);
    let last = "return Array.from(document.querySelectorAll('.turn.assistant')).pop()";
    browser.wait(&format!("{last}.querySelector('.text').textContent.trim()"), "4 0 7 1 .");
    browser.wait(&format!("{last}.querySelector('.note').textContent.includes('below min-context')"), "true");
    // Turn two holds turn one.
    browser.script(&ask);
    browser.wait("return document.querySelectorAll('.turn').length", "4");
    browser.wait(&format!("{last}.querySelector('.note').textContent.includes('prompt tokens')"), "true");
    // What is refused is shown, and the text comes back to be changed.
    browser.script(
        "document.getElementById('budget').value = '999'; document.getElementById('prompt').value = 'the'; \
                    document.getElementById('send').click();",
    );
    browser.wait(&format!("{last}.querySelector('.note').textContent.includes('attention.budget')"), "true");
    browser.wait("return document.getElementById('prompt').value", "the");
    browser.wait("return document.getElementById('requests').textContent", "none");
    browser.wait("return document.querySelector('#rows').textContent.includes('pool')", "true");
    browser.wait("return document.getElementById('host').hidden", "true");
    let behind = Server::start(BINARY, &["--kv-memory", "64MiB", "--host-memory", "16MiB", "--max-model-len", "4K"]);
    browser.go(&format!("http://{}/", behind.address));
    browser.wait("return document.getElementById('host').hidden", "false");
    browser.wait("return document.querySelector('#host-rows').textContent.includes('1,024 (16 MiB)')", "true");
    browser.wait("return document.getElementById('sparse').textContent", "0");
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is silent");
}

/// A headless Chromium behind its driver.
struct Browser {
    driver: Child,
    http: Http,
    session: String,
}

impl Browser {
    /// `None` where no driver is installed.
    fn start() -> Option<Browser> {
        let mut command = Command::new("chromedriver");
        let mut driver = command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let out = BufReader::new(driver.stdout.take().expect("piped"));
        let mut lines = out.lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            line.split("successfully on port ").nth(1).map(|rest| rest.trim_end_matches('.').to_string())
        });
        let http = Http { address: format!("127.0.0.1:{}", port.expect("it says its port")) };
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chromium-{}", std::process::id()));
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let options = json!({"args": args});
        let wanted = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let reply = http.post("/session", &json!({"capabilities": {"alwaysMatch": wanted}}));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let session = reply.json()["value"]["sessionId"].as_str().expect("a session").to_string();
        Some(Browser { driver, http, session })
    }

    fn call(&self, command: &str, body: &Value) -> Value {
        let reply = self.http.post(&format!("/session/{}/{command}", self.session), body);
        assert_eq!(reply.status, 200, "{command}: {}", reply.body);
        reply.json()["value"].clone()
    }

    fn go(&self, url: &str) {
        self.call("url", &json!({"url": url}));
    }

    fn script(&self, script: &str) -> Value {
        self.call("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script's value, as text, is `wanted`.
    fn wait(&self, script: &str, wanted: &str) {
        let start = Instant::now();
        loop {
            let found = match self.script(script) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            if found == wanted {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{script}: '{found}', expected '{wanted}'");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the page's console has to complain about, but for the answers with an error status that a test provoked.
    fn errors(&self) -> Vec<String> {
        let log = self.call("se/log", &json!({"type": "browser"}));
        let text = |entry: &Value| entry["message"].as_str().unwrap_or_default().to_string();
        let entries = log.as_array().expect("a list").iter().map(text);
        entries.filter(|entry| !entry.contains("status of 400")).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Closing the session ends the browser, which outlives its driver otherwise.
        self.http.request("DELETE", &format!("/session/{}", self.session), &[], "");
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
