//! What a request's completions must spell, before it is compiled.

use super::schema::{self, Schema};
use super::{GrammarError, ResponseFormat};
use crate::tools::ToolFormat;
use crate::tools::choice::{ToolChoice, Tools};
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::Value;

/// JSON of a schema, calls of tools, or either.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    json: Option<Schema>,
    calls: Option<Calls>,
}

#[derive(Clone, Debug, PartialEq)]
struct Calls {
    format: ToolFormat,
    /// Names and the schemas of their arguments.
    tools: Vec<(String, Schema)>,
    /// One call or more, not exactly one.
    several: bool,
}

impl Rule {
    /// What a request's fields ask for together; `None` where its completions may be anything. `format` is the
    /// model's, and `None` where it has none.
    ///
    /// A call that is required leaves no room for an answer's format. With `tool_choice` at `auto` the answer is of
    /// the format or calls tools; without a format it may be anything, and calls in it are the model's own.
    ///
    /// # Errors
    /// Tools may be called and the model has no format of calls, or a schema is out of its bounds.
    pub(crate) fn of(
        answer: &ResponseFormat,
        tools: &Tools,
        format: Option<ToolFormat>,
    ) -> Result<Option<Rule>, GrammarError> {
        let json = match answer {
            ResponseFormat::Text => None,
            ResponseFormat::Json(schema) => Some(schema.clone()),
        };
        if tools.choice == ToolChoice::None {
            return Ok(json.map(|json| Rule { json: Some(json), calls: None }));
        }
        let format = format.ok_or_else(|| {
            let reason = "the model's chat template has no tool calls of a kind that is known here (Hermes, Llama 3)";
            GrammarError::new("tools", reason)
        })?;
        let calls = || Calls::of(tools, format).map(Some);
        match (&tools.choice, json) {
            (ToolChoice::Auto, None) | (ToolChoice::None, _) => Ok(None),
            (ToolChoice::Auto, json) => Ok(Some(Rule { json, calls: calls()? })),
            (ToolChoice::Required | ToolChoice::Named(_), _) => Ok(Some(Rule { json: None, calls: calls()? })),
        }
    }

    pub(super) fn has_calls(&self) -> bool {
        self.calls.is_some()
    }

    /// The field that errors of the whole are about.
    pub(super) fn field(&self) -> &str {
        match (&self.json, &self.calls) {
            (Some(schema), None) => &schema.field,
            _ => "tools",
        }
    }

    pub(super) fn schemas(&self) -> Vec<&Schema> {
        let calls = self.calls.iter().flat_map(|calls| calls.tools.iter().map(|(_, schema)| schema));
        self.json.iter().chain(calls).collect()
    }

    /// As llguidance takes it: every schema is a grammar of its own, so that its references are into itself.
    ///
    /// ```text
    /// start: @json | calls
    /// calls: call ("\n" call)*
    /// call: "<tool_call>\n{\"name\": \"f\", \"arguments\": " @tool-0 "}\n</tool_call>" | ...
    /// ```
    pub(super) fn to_grammar(&self) -> TopLevelGrammar {
        let Some(calls) = &self.calls else {
            let schema = self.json.as_ref().map_or(Value::Null, Schema::to_json);
            return TopLevelGrammar::from_json_schema(schema);
        };
        let start = if self.json.is_some() { "@json | calls" } else { "calls" };
        let frames: Vec<_> = calls.tools.iter().map(|(name, _)| calls.format.frame(name)).collect();
        let between = quoted(frames.first().map_or("", |frame| frame.between));
        let more = if calls.several { format!(" ({between} call)*") } else { String::new() };
        let call = |(at, frame): (usize, &crate::tools::CallFrame)| {
            format!("{} @tool-{at} {}", quoted(&frame.before), quoted(&frame.behind))
        };
        let call = frames.iter().enumerate().map(call).collect::<Vec<_>>().join("\n  | ");
        let lark = format!("start: {start}\ncalls: call{more}\ncall: {call}\n");
        let mut grammars = vec![GrammarWithLexer::from_lark(lark)];
        let named = |name: String, schema: &Schema| GrammarWithLexer {
            name: Some(name),
            ..GrammarWithLexer::from_json_schema(schema.to_json())
        };
        grammars.extend(self.json.iter().map(|schema| named("json".into(), schema)));
        grammars.extend(calls.tools.iter().enumerate().map(|(at, (_, schema))| named(format!("tool-{at}"), schema)));
        TopLevelGrammar { grammars, max_tokens: None }
    }
}

impl Calls {
    fn of(tools: &Tools, format: ToolFormat) -> Result<Self, GrammarError> {
        let called = tools.called().map(|tool| {
            let field = format!("{}.function.parameters", tool.field);
            let schema = match &tool.parameters {
                Some(parameters) => Schema::new(parameters, field)?,
                None => Schema::empty_object(field),
            };
            Ok((tool.name.clone(), schema))
        });
        let called = called.collect::<Result<Vec<_>, GrammarError>>()?;
        let bytes: usize = called.iter().map(|(_, schema)| schema.bytes()).sum();
        if schema::BYTES_MAX < bytes {
            let reason = format!("their parameters have {bytes} bytes and may have {} together", schema::BYTES_MAX);
            return Err(GrammarError::new("tools", reason));
        }
        let several = tools.several && !matches!(tools.choice, ToolChoice::Named(_));
        Ok(Calls { format, tools: called, several })
    }
}

/// A text as Lark writes it, which is as JSON does.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
