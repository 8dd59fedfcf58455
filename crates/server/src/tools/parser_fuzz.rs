//! However a text is cut, the parser gives the same content and calls; and without a call it gives the text.

use super::ToolFormat;
use super::parser::ToolParser;
use crate::noise::Noise;

/// What a client puts together from the deltas.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    content: String,
    /// Ids, names and arguments.
    calls: Vec<(String, String, String)>,
}

impl Answer {
    fn add(&mut self, delta: super::ToolDelta) {
        match delta {
            super::ToolDelta::Content(text) => self.content += &text,
            super::ToolDelta::Call { index, id, name } => {
                assert_eq!(index, self.calls.len());
                self.calls.push((id, name, String::new()));
            }
            super::ToolDelta::Arguments { index, text } => {
                assert_eq!(index + 1, self.calls.len());
                self.calls[index].2 += &text;
            }
        }
    }
}

fn answer(format: ToolFormat, pieces: &[&str]) -> Answer {
    let mut parser = ToolParser::new(format, vec!["f".into(), "g".into()], "s");
    let mut answer = Answer::default();
    for piece in pieces {
        parser.push(piece).into_iter().for_each(|delta| answer.add(delta));
    }
    parser.finish().into_iter().for_each(|delta| answer.add(delta));
    answer
}

/// Pieces of calls in an order that often makes one.
fn text(noise: &mut Noise) -> String {
    const PARTS: &[&str] = &[
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "{\"name\": \"f\", \"arguments\": {",
        "{\"name\": \"g\", ",
        "\"parameters\": {\"é\": [1, \"x\"]}}",
        "}}",
        "}",
        "\n",
        " ",
        ";",
        "\"a\": ",
        "1",
        "\"</tool_call>\"",
        "\"",
        "<",
        "Hi.",
        "{\"arguments\":{\"b\":null},\"name\":\"f\"}",
        ", ",
        "{",
        "\\u00e9",
        "世",
    ];
    const CALLS: &[&str] = &[
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": [1, 2]}}}\n</tool_call>",
        "{\"name\": \"g\", \"parameters\": {\"a\": \"\\\"}\"}}",
    ];
    let count = noise.below(12);
    (0..count)
        .map(|_| if noise.below(4) == 0 { CALLS[noise.below(2)] } else { PARTS[noise.below(PARTS.len())] })
        .collect()
}

fn run(seed: u64) -> usize {
    let mut noise = Noise(seed);
    let text = text(&mut noise);
    let mut calls = 0;
    for format in [ToolFormat::Hermes, ToolFormat::Llama] {
        let whole = answer(format, &[&text]);
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(answer(format, &characters), whole, "seed {seed}: {text:?}");
        for _ in 0..3 {
            let mut cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).filter(|_| noise.below(3) == 0).collect();
            cuts.insert(0, 0);
            cuts.push(text.len());
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            assert_eq!(answer(format, &pieces), whole, "seed {seed}: {pieces:?}");
        }
        if whole.calls.is_empty() {
            assert_eq!(whole.content, text, "seed {seed}");
        }
        calls += whole.calls.len();
    }
    calls
}

#[test]
fn the_answer_does_not_depend_on_how_the_text_is_cut() {
    let calls: usize = (0..20_000).map(run).sum();
    assert!(5_000 < calls, "{calls}");
}
