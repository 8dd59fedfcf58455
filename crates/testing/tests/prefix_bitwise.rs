//! Invariant 3 with the prefix cache: an answer is the same to the bit whether its prompt was read or came out of the
//! cache, on the bundled model and for every algorithm.

use engine::{Attention, Event, Request};
use model::{ModelSource, needle_text};
use testing::rig::{Answer, Rig, RigOptions, wait};

const ALGORITHMS: [&str; 4] = ["dense", "shadowkv", "shadowkv+estimate", "sketch"];

/// Tokens generated: another unit becomes indexed.
const GENERATED: usize = 50;

fn rig(options: RigOptions) -> Rig {
    Rig::start(&model::open(&ModelSource::Bundled).expect("the bundled model opens"), None, options)
}

fn attention(rig: &Rig, name: &str) -> Attention {
    rig.attention(name, |selection| {
        (selection.min_context, selection.floor_tokens, selection.budget) = (0, 0, 0.05);
    })
}

fn text(tokens: usize, seed: u64) -> Vec<u32> {
    let mut ids = needle_text::document(tokens + 64, 12, seed).ids();
    ids.truncate(tokens);
    ids
}

/// A request whose prompt may come out of the cache, or not.
fn request(rig: &Rig, prompt: &[u32], attention: Attention, cache: bool) -> Request {
    Request { cache, ..rig.request(prompt.to_vec(), attention, GENERATED, 9) }
}

/// Every choice's tokens and log-probabilities, and how many of the prompt's tokens were cached.
fn ask(rig: &Rig, request: Request) -> (Vec<Answer>, usize) {
    let choices = request.choices as u32;
    let events: Vec<Event> = rig.engine.submit(request).expect("the request is taken").collect();
    let cached = events.iter().find_map(|event| match event {
        Event::Finished(finished) => Some(finished.usage.cached_tokens),
        _ => None,
    });
    let of = |wanted: u32| {
        let mut events = events.clone();
        events.retain_mut(|event| match event {
            Event::Token(token) => std::mem::take(&mut token.choice) == wanted,
            Event::Finished(finished) => std::mem::take(&mut finished.choice) == wanted,
            _ => true,
        });
        wait(events)
    };
    ((0..choices).map(of).collect(), cached.expect("it has finished"))
}

/// Asks twice, the second time with the cache; the answers are equal. Tells how many tokens were cached.
fn check(rig: &Rig, request: Request, what: &str) -> usize {
    let (want, none) = ask(rig, Request { cache: false, ..request.clone() });
    let (got, cached) = ask(rig, request);
    assert_eq!(none, 0);
    assert_eq!(got, want, "{what}, {cached} tokens cached");
    cached
}

#[test]
fn a_cached_prefix_of_any_length_changes_no_bit() {
    for name in ALGORITHMS {
        // A rig of its own, so that all summaries are its own algorithm's.
        let rig = rig(RigOptions::new(2, 1200));
        for (seed, tokens) in [383, 384, 385, 392, 1007, 1008, 1009].into_iter().enumerate() {
            let first = text(tokens, seed as u64);
            assert_eq!(ask(&rig, request(&rig, &first, attention(&rig, name), true)).1, 0, "{name} {tokens}");
            for more in [1, 90] {
                let second = [&first[..], &text(more, 77)].concat();
                let cached = check(&rig, request(&rig, &second, attention(&rig, name), true), name);
                // The second of these begins with the first.
                let known = tokens + usize::from(more == 90);
                assert_eq!(cached, known / 8 * 8, "{name}: {tokens} and {more}");
            }
            let same = check(&rig, request(&rig, &first, attention(&rig, name), true), name);
            assert_eq!(same, (tokens - 1) / 8 * 8, "{name}: a prompt again");
        }
    }
}

#[test]
fn nor_does_one_that_another_algorithm_has_read() {
    let rig = rig(RigOptions::new(2, 1200));
    for (seed, reader) in ALGORITHMS.into_iter().enumerate() {
        let first = text(700, 20 + seed as u64);
        ask(&rig, request(&rig, &first, attention(&rig, reader), true));
        for name in ALGORITHMS {
            let second = [&first[..], &text(30, 3)].concat();
            let cached = check(&rig, request(&rig, &second, attention(&rig, name), true), name);
            assert!(696 <= cached, "{name} behind {reader}: {cached}");
        }
    }
}

#[test]
fn nor_with_choices_penalties_and_short_passes() {
    let mut options = RigOptions { unit_seconds: 0.002, ..RigOptions::new(4, 1200) };
    options.limits.prefill_tokens = 100;
    let rig = rig(options);
    for name in ALGORITHMS {
        let first = text(601, 31);
        ask(&rig, request(&rig, &first[..400], attention(&rig, name), true));
        let mut request = request(&rig, &first, attention(&rig, name), true);
        (request.choices, request.sampling.temperature, request.sampling.repetition_penalty) = (3, 1.5, 1.2);
        let cached = check(&rig, request, name);
        assert!(400 <= cached, "{name}: {cached}");
    }
}

#[test]
fn nor_while_the_one_that_read_it_still_runs() {
    let rig = rig(RigOptions::new(8, 1200));
    for name in ALGORITHMS {
        let first = text(500, 41);
        let second = [&first[..], &text(40, 4)].concat();
        let want = ask(&rig, request(&rig, &second, attention(&rig, name), false)).0;
        let mut running = request(&rig, &first, attention(&rig, name), true);
        running.max_tokens = 600;
        let mut running = rig.engine.submit(running).expect("the request is taken");
        assert!(running.any(|event| matches!(event, Event::Token(_))), "{name}: the prompt is read");
        let (got, cached) = ask(&rig, request(&rig, &second, attention(&rig, name), true));
        assert!(got == want && 496 <= cached, "{name}: {cached} cached beside the running one");
    }
}

#[test]
fn nor_after_its_end_was_given_up() {
    for name in ALGORITHMS {
        let options = RigOptions { pool_rows: 190, ..RigOptions::new(2, 1200) };
        let rig = rig(options);
        let (first, other) = (text(900, 51), text(700, 52));
        ask(&rig, request(&rig, &first, attention(&rig, name), true));
        let (want, _) = ask(&rig, request(&rig, &other, attention(&rig, name), true));
        let second = [&first[..], &text(9, 5)].concat();
        let (got, cached) = ask(&rig, request(&rig, &second, attention(&rig, name), true));
        assert!(0 < cached && cached < 896, "{name}: a part is left: {cached}");
        assert_eq!(got, ask(&rig, request(&rig, &second, attention(&rig, name), false)).0, "{name}: the part");
        assert_eq!(ask(&rig, request(&rig, &other, attention(&rig, name), true)).0, want, "{name}: the other one");
    }
}

#[test]
fn a_chat_reads_its_document_once() {
    let rig = rig(RigOptions::new(2, 2000));
    let document = needle_text::document(1200, 12, 8);
    let mut chat = document.ids();
    for (turn, fact) in document.facts.iter().take(3).enumerate() {
        let asked = needle_text::ids(&fact.question());
        let (before, prompt) = (chat.len(), [&chat[..], &asked].concat());
        let cached = check(&rig, request(&rig, &prompt, attention(&rig, "sketch"), true), "chat");
        let wanted = if turn == 0 { 0 } else { document.ids().len() / 8 * 8 };
        assert!(
            wanted <= cached && (turn == 0 || before <= cached + 8 + GENERATED),
            "turn {turn}: {cached} of {before}"
        );
        let (answers, _) = ask(&rig, request(&rig, &prompt, attention(&rig, "sketch"), true));
        chat = [&prompt[..], &answers[0].tokens].concat();
    }
}
