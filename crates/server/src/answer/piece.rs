//! What one event of the engine adds to a completion.

use engine::{Event, FinishReason, Finished, TokenEvent};

/// The next part of one completion.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Which prompt's, and which of its completions.
    pub(crate) prompt: usize,
    pub(crate) choice: usize,
    /// Text that became certain; maybe none.
    pub(crate) text: String,
    /// The token; none at the end.
    pub(crate) token: Option<TokenEvent>,
    /// Set by the last piece.
    pub(crate) end: Option<Finished>,
}

impl Piece {
    /// `None` for events that add nothing.
    pub(crate) fn of(prompt: usize, event: Event) -> Option<Piece> {
        match event {
            Event::Token(token) => {
                let mut token = *token;
                let (choice, text) = (token.choice as usize, std::mem::take(&mut token.text));
                Some(Piece { prompt, choice, text, token: Some(token), end: None })
            }
            Event::Finished(finished) => {
                let mut finished = *finished;
                let (choice, text) = (finished.choice as usize, std::mem::take(&mut finished.text));
                Some(Piece { prompt, choice, text, token: None, end: Some(finished) })
            }
            _ => None,
        }
    }

    /// How the completion ended, in OpenAI's words.
    pub(crate) fn finish_reason(&self) -> Option<&'static str> {
        self.end.as_ref().map(finish_reason)
    }
}

/// OpenAI's word for the end of a completion.
pub(crate) fn finish_reason(finished: &Finished) -> &'static str {
    match finished.reason {
        FinishReason::Stop | FinishReason::StopString => "stop",
        FinishReason::Length => "length",
        FinishReason::Aborted(_) => "abort",
    }
}
