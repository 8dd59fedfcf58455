//! Which page should leave the cache of a sparsely resident sequence? Records what real decodes select, and replays it
//! through eviction policies.
//!
//! ```text
//! eviction record-needle FOLDER                       the bundled model at 32K
//! eviction record FOLDER MODEL NAME=FILE,FILE...      a real model on real text
//! eviction replay FOLDER COMMIT DATE JSON SVG         all policies over all recordings of the folder
//! ```

mod recording;

mod observer;

mod decode;

mod policy;

mod replay;

mod study;

mod chart;

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["record-needle", folder] => decode::record_needle(Path::new(folder)),
        ["record", folder, model, ..] => decode::record_texts(Path::new(folder), Path::new(model), &arguments[3..]),
        ["replay", folder, commit, date, json, svg] => {
            let outcomes = study::outcomes(Path::new(folder));
            write(json, &study::json(&outcomes, commit, date));
            write(svg, &chart::chart(&outcomes[1]));
        }
        _ => panic!("say record-needle, record or replay; the header of main.rs shows how"),
    }
}

fn write(path: &str, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
}
