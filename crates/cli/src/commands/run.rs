//! `spindle run`: one prompt, or a chat on a terminal. The answer goes to standard output, everything else to standard
//! error.

use crate::args::{RunArgs, SamplingArgs};
use crate::attention::Attention;
use crate::output;
use crate::session::{Plan, Session, progress_bar};
use anyhow::{Context, Result, ensure};
use backend::Sampling;
use engine::{AbortReason, Event, FinishReason, Finished, Request, Source, Usage};
use indicatif::ProgressBar;
use model::{ChatInput, Message};
use std::io::{BufRead, IsTerminal, Read, Write};

/// Unknown words named in the warning.
const UNKNOWN_SHOWN: usize = 5;

/// Runs it.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let prompt = given_prompt(args)?;
    let sampling = &args.sampling;
    ensure!(sampling.temperature.is_none_or(|t| (0.0..=100.0).contains(&t)), "--temperature is from 0 to 100");
    ensure!(sampling.top_p.is_none_or(|p| 0.0 < p && p <= 1.0), "--top-p is above 0 and at most 1");
    ensure!(sampling.min_p.is_none_or(|p| (0.0..=1.0).contains(&p)), "--min-p is from 0 to 1");
    ensure!(sampling.repetition_penalty.is_none_or(|f| 0.0 < f), "--repetition-penalty is above 0");
    let plan = Plan::resolve(&args.model)?;
    let attention = Attention::of(&plan.specs, &args.attention)?;
    let session = plan.start()?;
    match prompt {
        Some(text) => {
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let tokens = match args.raw || session.opened.chat.is_none() {
                true => session.opened.tokenizer.encode(text, true)?,
                false => chat_tokens(&session, &opening(args, text))?,
            };
            warn_of_unknown_words(&session, text)?;
            answer(&session, args, &attention, tokens).map(|_| ())
        }
        None => chat(&session, args, &attention),
    }
}

/// `--prompt`, `--file`, or standard input where it is not a terminal.
fn given_prompt(args: &RunArgs) -> Result<Option<String>> {
    if let Some(prompt) = &args.prompt {
        return Ok(Some(prompt.clone()));
    }
    if let Some(path) = &args.file {
        let read = std::fs::read_to_string(path);
        return read.map(Some).with_context(|| format!("cannot read {}", path.display()));
    }
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input is not text")?;
    ensure!(!text.trim().is_empty(), "there is no prompt: give --prompt TEXT, --file FILE or text on standard input");
    Ok(Some(text))
}

fn opening(args: &RunArgs, text: &str) -> Vec<Message> {
    let system = args.system.iter().map(|system| Message::new("system", system));
    system.chain([Message::new("user", text)]).collect()
}

fn chat_tokens(session: &Session, messages: &[Message]) -> Result<Vec<u32>> {
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = session.opened.chat()?.render(&input)?;
    // The template writes the special tokens that the model wants.
    Ok(session.opened.tokenizer.encode(&text, false)?)
}

/// The bundled model knows some five hundred words.
fn warn_of_unknown_words(session: &Session, text: &str) -> Result<()> {
    let unknown = session.opened.tokenizer.unknown_words(text)?;
    if 0 < unknown.count {
        let shown = unknown.words.iter().take(UNKNOWN_SHOWN).map(|word| format!("'{word}'")).collect::<Vec<_>>();
        eprintln!(
            "warning: {} words of the prompt are not in the model's vocabulary ({}{}){}",
            unknown.count,
            shown.join(", "),
            if unknown.words.len() <= UNKNOWN_SHOWN { "" } else { ", ..." },
            match session.bundled {
                true => format!(". {}", model::bundled::NOTICE),
                false => String::new(),
            }
        );
    }
    Ok(())
}

/// Lines from the terminal, answered one after the other, until its end.
fn chat(session: &Session, args: &RunArgs, attention: &Attention) -> Result<()> {
    eprintln!("type a message and press enter; ctrl-d ends the chat");
    let mut messages: Vec<Message> = args.system.iter().map(|system| Message::new("system", system)).collect();
    let mut transcript = String::new();
    loop {
        eprint!("> ");
        std::io::stderr().flush()?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            eprintln!();
            return Ok(());
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        warn_of_unknown_words(session, line)?;
        messages.push(Message::new("user", line));
        let tokens = match args.raw || session.opened.chat.is_none() {
            true => session.opened.tokenizer.encode(&format!("{transcript}{line}"), true)?,
            false => chat_tokens(session, &messages)?,
        };
        match answer(session, args, attention, tokens) {
            Ok(text) => {
                transcript += line;
                transcript += &text;
                messages.push(Message::new("assistant", text));
            }
            Err(error) => {
                // The line that could not be answered is forgotten; the chat goes on.
                messages.pop();
                eprintln!("error: {error:#}");
            }
        }
    }
}

/// Streams one request to standard output; returns the first choice's text.
fn answer(session: &Session, args: &RunArgs, attention: &Attention, tokens: Vec<u32>) -> Result<String> {
    let mut request = Request::new(Source::Prompt(tokens), attention.into(), args.max_tokens.0);
    request.choices = usize::from(args.choices);
    request.sampling = sampling(session, &args.sampling, args.logprobs);
    request.stop_strings.clone_from(&args.sampling.stop);
    request.end_tokens.clone_from(&session.opened.generation.end_tokens);
    request.joins_prompt = args.raw || session.opened.chat.is_none();
    let handle = session.engine.submit(request)?;
    let bar = progress_bar("reading", 0, "{pos}/{len} tokens");
    let mut output = Output { bar, texts: vec![String::new(); usize::from(args.choices)], logprobs: args.logprobs };
    for event in handle {
        output.show(session, event)?;
    }
    Ok(output.texts.swap_remove(0))
}

/// Where events go.
struct Output {
    bar: ProgressBar,
    texts: Vec<String>,
    logprobs: Option<u8>,
}

impl Output {
    fn show(&mut self, session: &Session, event: Event) -> Result<()> {
        match event {
            Event::Accepted { .. } | Event::Held { .. } | Event::PromptLogprobs(_) => {}
            Event::Prefill { done, total } => {
                self.bar.set_length(total as u64);
                self.bar.set_position(done as u64);
            }
            Event::Token(token) => {
                self.bar.finish_and_clear();
                self.write(token.choice as usize, &token.text)?;
                if self.logprobs.is_some() {
                    print_logprobs(session, &token);
                }
            }
            Event::Finished(finished) => {
                self.bar.finish_and_clear();
                self.write(finished.choice as usize, &finished.text)?;
                self.finish(&finished)?;
            }
            Event::Refused(refusal) => return Err((*refusal).into()),
            Event::Failed(why) => anyhow::bail!("the engine failed: {why}"),
        }
        Ok(())
    }

    /// A single choice streams; several are printed when they end, so that they do not mix.
    fn write(&mut self, choice: usize, text: &str) -> Result<()> {
        self.texts[choice] += text;
        if self.texts.len() == 1 {
            output::piece(text)?;
        }
        Ok(())
    }

    fn finish(&self, finished: &Finished) -> Result<()> {
        if 1 < self.texts.len() {
            output::line(&format!("[{}] {}", finished.choice, self.texts[finished.choice as usize].trim()))?;
        } else {
            output::line("")?;
        }
        let (usage, times) = (finished.usage, finished.timings);
        let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
        eprintln!(
            "[{} in {:.2} s ({:.0} tokens/s); {} tokens in {:.2} s ({:.1} tokens/s){}; attention: {}]",
            prompt_words(usage),
            times.prefill,
            rate(usage.prompt_tokens - usage.cached_tokens, times.prefill),
            usage.completion_tokens,
            times.decode,
            rate(usage.completion_tokens.saturating_sub(1), times.decode),
            match finished.reason {
                FinishReason::Length => "; stopped by --max-tokens or the context's end",
                FinishReason::Aborted(AbortReason::SlowReader) => "; ended early, its output was not read in time",
                FinishReason::Aborted(_) => "; ended early",
                FinishReason::Stop | FinishReason::StopString => "",
            },
            finished.attention
        );
        Ok(())
    }
}

/// How long the prompt is, and how much of it was not read again.
fn prompt_words(usage: Usage) -> String {
    match usage.cached_tokens {
        0 => format!("{} prompt tokens", usage.prompt_tokens),
        cached => format!("{} prompt tokens ({cached} cached)", usage.prompt_tokens),
    }
}

fn print_logprobs(session: &Session, token: &engine::TokenEvent) {
    let text = |id| session.opened.tokenizer.token_text(id).unwrap_or_default();
    let logprob = token.logprob.map_or("-".to_string(), |logprob| format!("{logprob:.3}"));
    let top = token.top.iter().map(|(id, logprob)| format!("{:?} {logprob:.3}", text(*id)));
    eprintln!("  {:?} {logprob}   {}", text(token.token), top.collect::<Vec<_>>().join("   "));
}

fn sampling(session: &Session, args: &SamplingArgs, logprobs: Option<u8>) -> Sampling {
    let model = &session.opened.generation;
    let off = Sampling::default();
    Sampling {
        temperature: args.temperature.or(model.temperature).unwrap_or(off.temperature),
        top_k: args.top_k.or(model.top_k.map(|k| k as usize)).unwrap_or(off.top_k),
        top_p: args.top_p.or(model.top_p).unwrap_or(off.top_p),
        min_p: args.min_p.or(model.min_p).unwrap_or(off.min_p),
        repetition_penalty: args.repetition_penalty.or(model.repetition_penalty).unwrap_or(off.repetition_penalty),
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        logit_bias: args.logit_bias.clone(),
        seed: args.seed,
        top_logprobs: logprobs.map_or(0, usize::from),
        ..off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_told_where_there_are_some() {
        let words = |cached_tokens| prompt_words(Usage { prompt_tokens: 1200, cached_tokens, completion_tokens: 5 });
        assert_eq!(words(0), "1200 prompt tokens");
        assert_eq!(words(1192), "1200 prompt tokens (1192 cached)");
    }
}
