//! Server-sent events, byte by byte: whatever the cuts between two reads, the same events come out.
//!
//! As the WHATWG standard says: lines end with LF, CR or CRLF, a field's value loses one leading space, several `data`
//! lines are joined by LF, an event that the end of the stream cuts off is dropped. Unlike it, comments are given too,
//! because servers put progress there. Bytes that are no UTF-8 become replacement characters.

use std::collections::VecDeque;

/// What a stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SseEvent {
    /// A line that starts with a colon, without it and one space.
    Comment(String),
    /// An event with data.
    Message {
        /// What the `event` field says, if there is one.
        name: Option<String>,
        /// The data lines, joined.
        data: String,
    },
}

/// The parser's state between two reads.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that has no end yet.
    line: Vec<u8>,
    /// Whether the last byte was CR: an LF after it belongs to the same end.
    after_return: bool,
    /// Whether the first line is behind us, which may begin with a byte order mark.
    begun: bool,
    name: Option<String>,
    data: Option<String>,
    ready: VecDeque<SseEvent>,
}

impl SseParser {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if self.after_return && !bytes.is_empty() {
            self.after_return = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| [b'\n', b'\r'].contains(byte)) {
            self.line.extend_from_slice(&bytes[..end]);
            self.end_line();
            let rest = &bytes[end + 1..];
            bytes = match bytes[end] {
                b'\r' if rest.is_empty() => {
                    self.after_return = true;
                    rest
                }
                b'\r' => rest.strip_prefix(b"\n").unwrap_or(rest),
                _ => rest,
            };
        }
        self.line.extend_from_slice(bytes);
    }

    /// The next event, if it is whole.
    pub fn pop(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    /// Bytes of the event that is not whole yet, by which a caller bounds what a server can make it keep.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.line.len() + self.data.as_ref().map_or(0, String::len)
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with("\u{feff}".as_bytes()) {
            line.drain(..3);
        }
        let text = String::from_utf8_lossy(&line);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if text.is_empty() => self.end_event(),
            "" => self.ready.push_back(SseEvent::Comment(value.to_string())),
            "event" => self.name = Some(value.to_string()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_string()),
            },
            _ => {}
        }
        // The line's memory serves the next one.
        line.clear();
        self.line = line;
    }

    fn end_event(&mut self) {
        let name = self.name.take();
        if let Some(data) = self.data.take() {
            self.ready.push_back(SseEvent::Message { name, data });
        }
    }
}
