//! Two greedy texts of one prompt, and by how little the choices were made where they part.

use crate::rig::Rig;
use engine::{Attention, Event, Request, Source};
use kv::TokenId;

/// One greedy choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Its log-probability above the next best token's.
    pub margin: f32,
}

/// Where two texts part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Tokens that are equal before it.
    pub at: usize,
    /// The one text's choice.
    pub want: Choice,
    /// The other's.
    pub got: Choice,
}

impl Difference {
    /// The first one; nothing behind it can be compared.
    pub fn first(want: &[Choice], got: &[Choice]) -> Option<Self> {
        let at = want.iter().zip(got).position(|(want, got)| want.token != got.token)?;
        Some(Difference { at, want: want[at], got: got[at] })
    }

    /// The smaller of the two margins: how little it takes to choose otherwise.
    pub fn margin(&self) -> f32 {
        self.want.margin.min(self.got.margin)
    }
}

/// A greedy request that tells its margins.
pub fn request(prompt: Vec<TokenId>, attention: Attention, tokens: usize) -> Request {
    let mut request = Request::new(Source::Prompt(prompt), attention, tokens);
    request.sampling.top_logprobs = 2;
    request.ignore_eos = true;
    request
}

/// Its choices.
///
/// # Panics
/// The engine fails.
pub fn choices(events: impl IntoIterator<Item = Event>) -> Vec<Choice> {
    let choice = |event| match event {
        Event::Token(token) => {
            let margin = match token.top[..] {
                [(_, best), (_, next), ..] => best - next,
                _ => panic!("two most likely tokens were asked for: {token:?}"),
            };
            Some(Choice { token: token.token, margin })
        }
        Event::Failed(why) => panic!("the engine failed: {why}"),
        _ => None,
    };
    events.into_iter().filter_map(choice).collect()
}

/// Asks one request and waits.
///
/// # Panics
/// It is refused, or the engine fails.
pub fn ask(rig: &Rig, request: Request) -> Vec<Choice> {
    choices(rig.engine.submit(request).expect("the request is taken"))
}

/// Pairs of texts, summed up.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Tokens that were compared: up to each pair's first difference, and that one.
    pub compared: usize,
    /// Texts.
    pub texts: usize,
    /// First differences, with what was asked.
    pub differences: Vec<(String, Difference)>,
}

impl Comparison {
    /// Adds a pair.
    ///
    /// # Panics
    /// The texts are not equally long.
    pub fn add(&mut self, what: String, want: &[Choice], got: &[Choice]) {
        assert_eq!(want.len(), got.len(), "{what}: texts of one length");
        self.texts += 1;
        let first = Difference::first(want, got);
        self.compared += first.map_or(want.len(), |difference| difference.at + 1);
        self.differences.extend(first.map(|difference| (what, difference)));
    }

    /// Differences at a margin that no rounding explains.
    pub fn unexplained(&self, margin: f32) -> Vec<String> {
        let far = self.differences.iter().filter(|(_, difference)| margin <= difference.margin());
        far.map(|(what, difference)| format!("{what}: {difference:?}")).collect()
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let equal = self.texts - self.differences.len();
        let widest = self.differences.iter().map(|(_, difference)| difference.margin()).fold(0.0, f32::max);
        let Comparison { compared, texts, .. } = self;
        format!("{equal} of {texts} texts equal, {compared} tokens compared, widest margin of a difference {widest:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_up_to_where_they_part() {
        let text = |choices: &[(TokenId, f32)]| -> Vec<Choice> {
            choices.iter().map(|&(token, margin)| Choice { token, margin }).collect()
        };
        let want = text(&[(1, 3.0), (2, 0.04), (3, 9.0)]);
        let mut comparison = Comparison::default();
        comparison.add("the same".to_string(), &want, &text(&[(1, 2.9), (2, 0.02), (3, 9.1)]));
        comparison.add("close".to_string(), &want, &text(&[(1, 3.0), (7, 0.01), (8, 5.0)]));
        comparison.add("far".to_string(), &want, &text(&[(5, 1.0), (2, 0.04), (3, 9.0)]));
        assert_eq!((comparison.texts, comparison.compared, comparison.differences.len()), (3, 6, 2));
        assert_eq!(comparison.differences[0].1.margin(), 0.01);
        assert_eq!(comparison.unexplained(0.3).len(), 1, "{:?}", comparison.unexplained(0.3));
    }
}
