//! Decodes that are recorded: documents of the bundled model, and real text through a real model.

use crate::observer::{Notebook, Observer};
use crate::recording::Recording;
use backend::Sampling;
use backend::cpu::{CpuBackend, CpuOptions};
use kv::TokenId;
use model::{ModelSource, Opened, needle_text};
use std::path::Path;
use std::sync::{Arc, Mutex};
use testing::golden::GoldenContext;
use testing::solo::Solo;

const ALGORITHMS: [&str; 2] = ["shadowkv", "sketch"];

/// Tokens of the bundled model's documents.
const DOCUMENT_TOKENS: usize = 32_768;

/// How many of them are read.
const DOCUMENTS: usize = 4;

/// Steps through the end of a document.
const DOCUMENT_STEPS: usize = 256;

/// Questions asked one after the other behind a document, each of nine words, four digits and a full stop.
const QUESTIONS: usize = 20;

/// Tokens of text that the real model reads before the first step; its context is 8,192.
const TEXT_TOKENS: usize = 7680;

/// Its steps.
const TEXT_STEPS: usize = 384;

/// What a recorded decode goes through.
#[derive(Clone)]
enum Course<'a> {
    /// Tokens that are given.
    Forced(&'a [TokenId]),
    /// As many tokens as the model likes to say.
    Sampled(usize),
}

/// Records the bundled model.
pub(crate) fn record_needle(folder: &Path) {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let golden = GoldenContext::read(DOCUMENT_TOKENS);
    for document in 0..DOCUMENTS {
        let mut tokens = golden.document(document);
        let prompt = tokens.len() - DOCUMENT_STEPS;
        for question in golden.questions.iter().filter(|q| q.document == document).take(QUESTIONS) {
            tokens.extend(needle_text::ids(&question.text.split(' ').collect::<Vec<_>>()));
            let digits: Vec<String> = question.answer.chars().map(String::from).collect();
            tokens.extend(needle_text::ids(&digits.iter().map(String::as_str).chain(["."]).collect::<Vec<_>>()));
        }
        for algorithm in ALGORITHMS {
            let course = Course::Forced(&tokens[prompt..]);
            let whole = record(&opened, algorithm, &tokens[..prompt], course);
            let part = |text: String, context: usize, steps: std::ops::Range<usize>| Recording {
                model: "needle".to_string(),
                text,
                context,
                heads: whole.heads.iter().map(|head| head[steps.clone()].to_vec()).collect(),
                ..whole.clone()
            };
            let split = DOCUMENT_STEPS;
            let name = format!("needle-{document}-{algorithm}");
            save(folder, &format!("{name}-end"), &part(format!("end of document {document}"), prompt, 0..split));
            let questions = format!("{QUESTIONS} questions behind document {document}");
            save(folder, &format!("{name}-questions"), &part(questions, prompt + split, split..whole.steps()));
        }
    }
}

/// Records a real model on texts, each `name=file,file,...`; the first one is also continued by the model itself.
pub(crate) fn record_texts(folder: &Path, model: &Path, texts: &[String]) {
    let source = ModelSource::detect(model).expect("a model");
    let opened = model::open(&source).expect("it opens");
    let name = model.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_string();
    for (number, text) in texts.iter().enumerate() {
        let (text, files) = text.split_once('=').expect("a text is name=file,file,...");
        let read = |file| std::fs::read_to_string(file).unwrap_or_else(|e| panic!("cannot read {file}: {e}"));
        let all: String = files.split(',').map(read).collect();
        let tokens = opened.tokenizer.encode(&all, false).expect("it encodes");
        assert!(TEXT_TOKENS + TEXT_STEPS <= tokens.len(), "{text} has {} tokens", tokens.len());
        let mut courses = vec![(text.to_string(), Course::Forced(&tokens[TEXT_TOKENS..][..TEXT_STEPS]))];
        if number == 0 {
            courses.push((format!("{text}, continued by the model"), Course::Sampled(TEXT_STEPS)));
        }
        for (text, course) in &courses {
            for algorithm in ALGORITHMS {
                let recording = record(&opened, algorithm, &tokens[..TEXT_TOKENS], course.clone());
                let file = format!("{name}-{algorithm}-{}", text.replace([',', ' '], "-"));
                save(folder, &file, &Recording { model: name.clone(), text: text.clone(), ..recording });
            }
        }
    }
}

/// Reads a prompt and decodes, with an observer around the algorithm.
fn record(opened: &Opened, algorithm: &str, prompt: &[TokenId], course: Course<'_>) -> Recording {
    let backend = CpuBackend::new(CpuOptions::default()).expect("the instruction set is present");
    let steps = match course {
        Course::Forced(tokens) => tokens.len(),
        Course::Sampled(steps) => steps,
    };
    let mut solo = Solo::new(&backend, opened, prompt.len() + steps + 8, algorithm, |_| ());
    let config = opened.config();
    let notebook = Arc::new(Notebook {
        lane: Solo::LANE,
        selection: *solo.selection(),
        pages: solo.kv_rows().iter().enumerate().map(|(page, row)| (*row, page as u32)).collect(),
        seen: Mutex::new(vec![vec![Vec::new(); config.kv_heads]; config.layers]),
    });
    solo.observe(|inner| Box::new(Observer { inner, notebook: notebook.clone() }));
    match course {
        Course::Forced(tokens) => {
            solo.prefill_forced(prompt, Sampling::default(), tokens[0]);
            // A step's input is what the step before it was told to say.
            let next = tokens[1..].iter().copied().map(Some).chain([None]);
            next.for_each(|token| drop(solo.step(token, false)));
        }
        Course::Sampled(steps) => {
            let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: 7, ..Sampling::default() };
            solo.prefill(prompt, prompt.len(), sampling);
            (0..steps).for_each(|_| drop(solo.step(None, false)));
        }
    }
    let first_page = solo.selection().sink_pages();
    drop(solo);
    let notebook = Arc::into_inner(notebook).expect("the observers are gone");
    let heads = notebook.seen.into_inner().expect("no observer panicked").into_iter().flatten().collect();
    let (model, text, algorithm) = (String::new(), String::new(), algorithm.to_string());
    Recording { model, text, algorithm, context: prompt.len(), first_page, heads }
}

fn save(folder: &Path, name: &str, recording: &Recording) {
    let path = folder.join(format!("{name}.selections"));
    recording.write(&path).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    println!("{name}: {} steps, k = {}", recording.steps(), recording.k());
}
