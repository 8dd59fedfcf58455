//! `POST /v1/chat/completions`.

use crate::answer::chat::{Calls, ChatStyle};
use crate::answer::{Job, answer};
use crate::app::App;
use crate::config::TOP_LOGPROBS_MAX;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::grammar::{GrammarError, ResponseFormat, Rule};
use crate::request::{messages, params, take_model, unsupported};
use crate::tools::choice::{ToolChoice, Tools};
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use engine::ConstraintFactory;
use model::{ChatInput, Message};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Instant;

/// Answers the last message of a chat.
pub(crate) async fn chat(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    answer(&app, request, job).await
}

fn job(mut fields: Fields, app: &App) -> Result<Job, ApiError> {
    let model = take_model(&mut fields, app)?;
    unsupported::check_chat(&mut fields)?;
    let logprobs = take_logprobs(&mut fields)?;
    let mut params = params::take(&mut fields, app, logprobs)?;
    if params.max_tokens == 0 {
        return Err(ApiError::invalid("max_tokens", "max_tokens must be 1 or more in a chat"));
    }
    let prompt_top = params.prompt_logprobs;
    let messages = messages::take(&mut fields)?;
    let variables = take_variables(&mut fields)?;
    let form = Form::take(&mut fields, app)?;
    if form.constraint.is_some() && params.ignore_eos {
        let message =
            "ignore_eos cannot go with response_format or a required tool call: these say where an answer ends";
        return Err(ApiError::unsupported("ignore_eos", message));
    }
    let tokens = render(&messages, &form.tools, variables, true, app)?;
    params.check_logprobs(1, tokens.len(), logprobs)?;
    let warning = app.vocabulary_warning([&tokens[..]].into_iter());
    let mut request = params.request(tokens, app);
    request.constraint = form.constraint;
    let style = ChatStyle::new(app.opened.clone(), logprobs.is_some(), prompt_top, form.calls);
    let ignored = [fields.rest(), std::mem::take(&mut params.ignored)].concat();
    Ok(Job {
        model,
        requests: vec![request],
        prompt_param: "messages",
        params,
        style: Box::new(style),
        ignored,
        warning,
        parsed: Instant::now(),
    })
}

/// What form the answer takes: a grammar that holds it, the tools that its template sees, calls to look for in it.
struct Form {
    tools: Vec<Value>,
    constraint: Option<ConstraintFactory>,
    calls: Option<Calls>,
}

impl Form {
    /// Reads `response_format`, `tools`, `tool_choice` and `parallel_tool_calls`.
    fn take(fields: &mut Fields, app: &App) -> Result<Self, ApiError> {
        let answer = ResponseFormat::read(fields.take("response_format").as_ref()).map_err(refused)?;
        let listed = fields.take("tools");
        let several = fields.flag("parallel_tool_calls")?;
        let tools = Tools::read(listed.as_ref(), fields.take("tool_choice").as_ref(), several).map_err(refused)?;
        let rule = Rule::of(&answer, &tools, app.tool_format).map_err(refused)?;
        let field = if answer == ResponseFormat::Text { "tool_choice" } else { "response_format" };
        let compile = |rule: Rule| app.grammars(field)?.compile(&rule).map_err(refused);
        let constraint = rule.map(compile).transpose()?;
        if tools.choice == ToolChoice::None {
            return Ok(Form { tools: Vec::new(), constraint, calls: None });
        }
        if tools.choice == ToolChoice::Auto && !tools.several {
            let message =
                "parallel_tool_calls: false is not supported with tool_choice auto: use required, or a function";
            return Err(ApiError::unsupported("parallel_tool_calls", message));
        }
        let calls = app.tool_format.map(|format| Calls {
            format,
            names: tools.names(),
            request: app.public_id("", app.next_id()),
        });
        let Some(Value::Array(listed)) = listed else { return Ok(Form { tools: Vec::new(), constraint, calls }) };
        Ok(Form { tools: listed, constraint, calls })
    }
}

fn refused(error: GrammarError) -> ApiError {
    ApiError::invalid(error.field.clone(), error.to_string())
}

/// The number of alternatives where log-probabilities are wanted.
fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs: true")),
    }
}

/// What else the template reads, as `enable_thinking`.
pub(crate) fn take_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    match fields.take("chat_template_kwargs") {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(other) => Err(fields.wrong("chat_template_kwargs", "an object", &other)),
    }
}

/// A chat's tokens; `add_generation_prompt` ends them with the beginning of the answer.
///
/// # Errors
/// The model has no template, or the template does not take the messages.
pub(crate) fn render(
    messages: &[Message],
    tools: &[Value],
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    app: &App,
) -> Result<Vec<kv::TokenId>, ApiError> {
    let Some(template) = &app.opened.chat else {
        return Err(ApiError::invalid("messages", "this model has no chat template: use /v1/completions"));
    };
    let input = ChatInput { messages, tools, add_generation_prompt, variables, now: None };
    let text = template.render(&input).map_err(|error| ApiError::invalid("messages", error.to_string()))?;
    // The template writes the special tokens that the model wants.
    app.opened.tokenizer.encode(&text, false).map_err(|error| ApiError::internal(error.to_string()))
}
