//! The parser against a model that sees the whole stream at once, over every way to cut it.

use crate::random::Random;
use crate::sse::{SseEvent, SseParser};

/// The events of a whole stream.
fn model(stream: &[u8]) -> Vec<SseEvent> {
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n").replace('\r', "\n");
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let (mut events, mut name, mut data) = (Vec::new(), None, Vec::new());
    for line in whole.split('\n') {
        let value = |field: &str| {
            let value = line.strip_prefix(field)?;
            let value = if value.is_empty() { value } else { value.strip_prefix(':')? };
            Some(value.strip_prefix(' ').unwrap_or(value).to_string())
        };
        if line.is_empty() {
            let name = name.take();
            if !data.is_empty() {
                events.push(SseEvent::Message { name, data: data.join("\n") });
            }
            data.clear();
        } else if let Some(comment) = line.strip_prefix(':') {
            events.push(SseEvent::Comment(comment.strip_prefix(' ').unwrap_or(comment).to_string()));
        } else if let Some(value) = value("data") {
            data.push(value);
        } else if let Some(value) = value("event") {
            name = Some(value);
        }
    }
    events
}

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<SseEvent> {
    let mut parser = SseParser::default();
    let mut events = Vec::new();
    for piece in pieces {
        parser.push(piece);
        events.extend(std::iter::from_fn(|| parser.pop()));
    }
    events
}

/// Pieces that make every state of the parser likely.
const PIECES: [&str; 22] = [
    "data: ",
    "data:",
    "data",
    ": ",
    ":",
    "event: error",
    "event",
    "id: 4",
    "retry",
    "dat",
    "{\"a\": 1}",
    "x",
    " ",
    "é世",
    "🦀",
    "\u{feff}",
    "[DONE]",
    "\n",
    "\n\n",
    "\r",
    "\r\n",
    "\r\n\r\n",
];

/// A stream of such pieces, some bytes of which are broken.
fn stream(random: &mut Random) -> Vec<u8> {
    let pieces = random.below(40);
    let pick = |random: &mut Random| PIECES[random.below(PIECES.len() as u64) as usize];
    let mut stream: Vec<u8> = (0..pieces).flat_map(|_| pick(random).bytes()).collect();
    for _ in 0..random.below(3) {
        let place = random.below(stream.len() as u64 + 1) as usize;
        stream.insert(place, random.below(256) as u8);
    }
    stream
}

#[test]
fn cuts_change_nothing() {
    for seed in 0..4000 {
        let mut random = Random::new(&[seed]);
        let stream = stream(&mut random);
        let mut cuts: Vec<usize> =
            (0..random.below(12)).map(|_| random.below(stream.len() as u64 + 1) as usize).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let wanted = model(&stream);
        let shown = || format!("seed {seed}: {:?}", String::from_utf8_lossy(&stream));
        assert_eq!(parse(cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]])), wanted, "{}", shown());
        assert_eq!(parse(stream.chunks(1)), wanted, "byte by byte, {}", shown());
        assert_eq!(parse([stream.as_slice()]), wanted, "at once, {}", shown());
    }
}

#[test]
fn a_stream_as_servers_send_it() {
    let stream = b": prefill 10/20\n\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: error\ndata: x\n\nid: 4\n\n\
        data: [DONE]\n\ndata: c";
    let message =
        |name: Option<&str>, data: &str| SseEvent::Message { name: name.map(str::to_string), data: data.to_string() };
    let wanted = vec![
        SseEvent::Comment("prefill 10/20".into()),
        message(None, "{\"a\":\n1}"),
        message(Some("error"), "x"),
        message(None, "[DONE]"),
    ];
    assert_eq!(parse([stream.as_slice()]), wanted);
    assert_eq!(model(stream), wanted);
}
