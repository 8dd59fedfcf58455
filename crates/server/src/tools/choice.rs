//! The fields `tools`, `tool_choice` and `parallel_tool_calls`.

use crate::grammar::GrammarError;
use serde_json::Value;

/// Tools of a request.
pub(crate) const TOOLS_MAX: usize = 128;

/// Characters of a tool's name.
const NAME_CHARS_MAX: usize = 64;

/// What may be called, and what must be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tools {
    /// Every tool of the request.
    pub(crate) list: Vec<Tool>,
    /// Which of them a completion calls.
    pub(crate) choice: ToolChoice,
    /// Whether a completion may have more than one call.
    pub(crate) several: bool,
}

/// A function that the client offers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    /// What calls name.
    pub(crate) name: String,
    /// The schema of its arguments; without one it takes none.
    pub(crate) parameters: Option<Value>,
    /// Where it stands in the request, as `tools[3]`.
    pub(crate) field: String,
}

/// Whether a completion calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// It does not, and its text is not searched for calls.
    None,
    /// The model decides.
    Auto,
    /// It calls at least one tool and says nothing else.
    Required,
    /// It calls the tool at this place of the list, once.
    Named(usize),
}

impl Tools {
    /// Reads the three fields.
    ///
    /// # Errors
    /// A tool is no function with a name of its own, or the choice names none of them.
    pub(crate) fn read(
        tools: Option<&Value>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Self, GrammarError> {
        let list = match tools.filter(|tools| !tools.is_null()) {
            None => Vec::new(),
            Some(Value::Array(list)) if list.len() <= TOOLS_MAX => read_list(list)?,
            Some(Value::Array(list)) => {
                let reason = format!("has {} entries and may have {TOOLS_MAX}", list.len());
                return Err(GrammarError::new("tools", reason));
            }
            Some(_) => return Err(GrammarError::new("tools", "must be a list")),
        };
        let choice = read_choice(choice.filter(|choice| !choice.is_null()), &list)?;
        Ok(Tools { list, choice, several: parallel.unwrap_or(true) })
    }

    /// The tools that a completion may call.
    pub(crate) fn called(&self) -> impl Iterator<Item = &Tool> {
        let range = match self.choice {
            ToolChoice::None => 0..0,
            ToolChoice::Auto | ToolChoice::Required => 0..self.list.len(),
            ToolChoice::Named(at) => at..at + 1,
        };
        self.list[range].iter()
    }

    /// Their names, for [`super::parser::ToolParser`].
    pub(crate) fn names(&self) -> Vec<String> {
        self.called().map(|tool| tool.name.clone()).collect()
    }
}

fn read_list(list: &[Value]) -> Result<Vec<Tool>, GrammarError> {
    let mut tools: Vec<Tool> = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let tool = read_tool(value, format!("tools[{at}]"))?;
        if tools.iter().any(|other| other.name == tool.name) {
            let reason = format!("{} is the name of another tool as well", tool.name);
            return Err(GrammarError::new(format!("{}.function.name", tool.field), reason));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn read_tool(value: &Value, field: String) -> Result<Tool, GrammarError> {
    if value.get("type").and_then(Value::as_str) != Some("function") {
        return Err(GrammarError::new(format!("{field}.type"), "must be function"));
    }
    let Some(function) = value.get("function").and_then(Value::as_object) else {
        return Err(GrammarError::new(format!("{field}.function"), "must be an object with a name"));
    };
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_name = |name: &&str| (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_name_char);
    let Some(name) = function.get("name").and_then(Value::as_str).filter(is_name) else {
        let reason = format!("must be 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes and underscores");
        return Err(GrammarError::new(format!("{field}.function.name"), reason));
    };
    let parameters = match function.get("parameters").filter(|parameters| !parameters.is_null()) {
        Some(parameters) if !parameters.is_object() => {
            let reason = "must be a JSON schema, which is an object";
            return Err(GrammarError::new(format!("{field}.function.parameters"), reason));
        }
        parameters => parameters.cloned(),
    };
    Ok(Tool { name: name.to_owned(), parameters, field })
}

/// Without a choice the model decides, where there are tools.
fn read_choice(choice: Option<&Value>, list: &[Tool]) -> Result<ToolChoice, GrammarError> {
    let wrong = |reason: &str| Err(GrammarError::new("tool_choice", reason));
    let Some(choice) = choice else {
        return Ok(if list.is_empty() { ToolChoice::None } else { ToolChoice::Auto });
    };
    match (choice.as_str(), choice.pointer("/function/name").and_then(Value::as_str)) {
        (Some("none"), _) => Ok(ToolChoice::None),
        (Some("auto"), _) if list.is_empty() => Ok(ToolChoice::None),
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("required"), _) if list.is_empty() => wrong("is required and there are no tools"),
        (Some("required"), _) => Ok(ToolChoice::Required),
        (None, Some(name)) if choice["type"] == "function" => match list.iter().position(|tool| tool.name == name) {
            Some(at) => Ok(ToolChoice::Named(at)),
            None => Err(GrammarError::new("tool_choice.function.name", "is none of the tools")),
        },
        _ => wrong("must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(tools: Value, choice: Value, expected: &str) {
        let text = match Tools::read(Some(&tools), Some(&choice), None) {
            Ok(tools) => format!("{:?} of {}", tools.choice, tools.names().join(" ")),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected);
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn a_choice_says_what_may_be_called() {
        let two = json!([function("f"), function("get-weather_2")]);
        check(json!(null), json!(null), "None of ");
        check(json!([]), json!("auto"), "None of ");
        check(two.clone(), json!(null), "Auto of f get-weather_2");
        check(two.clone(), json!("none"), "None of ");
        check(two.clone(), json!("required"), "Required of f get-weather_2");
        let named = json!({"type": "function", "function": {"name": "get-weather_2"}});
        check(two, named, "Named(1) of get-weather_2");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = json!([function("f")]);
        check(json!({}), json!(null), "tools: must be a list");
        check(json!(vec![function("f"); 129]), json!(null), "tools: has 129 entries and may have 128");
        check(json!([1]), json!(null), "tools[0].type: must be function");
        check(json!([{"type": "function"}]), json!(null), "tools[0].function: must be an object with a name");
        let name = "must be 1 to 64 letters, digits, dots, dashes and underscores";
        check(json!([function("a b")]), json!(null), &format!("tools[0].function.name: {name}"));
        check(json!([function("")]), json!(null), &format!("tools[0].function.name: {name}"));
        check(
            json!([function("f"), function("f")]),
            json!(null),
            "tools[1].function.name: f is the name of another tool as well",
        );
        check(
            json!([{"type": "function", "function": {"name": "f", "parameters": [1]}}]),
            json!(null),
            "tools[0].function.parameters: must be a JSON schema, which is an object",
        );
        check(json!([]), json!("required"), "tool_choice: is required and there are no tools");
        let named = json!({"type": "function", "function": {"name": "g"}});
        check(one.clone(), named, "tool_choice.function.name: is none of the tools");
        let kinds = "must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}";
        check(one.clone(), json!("any"), &format!("tool_choice: {kinds}"));
        check(one, json!({"type": "allowed_tools"}), &format!("tool_choice: {kinds}"));
    }
}
