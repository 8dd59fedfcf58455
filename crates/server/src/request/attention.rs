//! `"attention": {"algorithm": "sketch", "budget": 0.008}`: which algorithm decodes a request, and how much it selects.

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, shown};
use engine::Attention;
use serde_json::Value;

/// The request's attention, or the server's default.
///
/// # Errors
/// An unknown algorithm or field, or a budget that is no share.
pub(crate) fn take(fields: &mut Fields, app: &App) -> Result<Attention, ApiError> {
    let config = &app.config;
    let Some(mut given) = fields.object("attention")? else {
        return Ok(config.attentions[config.default_attention]);
    };
    let algorithm = given.text("algorithm")?;
    let at = match &algorithm {
        Some(name) => usize::from(
            config.specs.by_name(name).map_err(|no| ApiError::invalid("attention.algorithm", no.to_string()))?.0,
        ),
        None => config.default_attention,
    };
    let mut attention = config.attentions[at];
    if let Some(budget) = given.take("budget") {
        let share = share(&budget).ok_or_else(|| {
            let message = format!(
                "attention.budget must be a share of the context, as 0.008 or \"0.8%\"; it is {}",
                shown(&budget)
            );
            ApiError::invalid("attention.budget", message)
        })?;
        if !config.specs.all()[at].is_sparse() {
            let message = "attention.budget needs a sparse algorithm: dense attention reads every token";
            return Err(ApiError::invalid("attention.budget", message));
        }
        attention.selection.budget = share;
    }
    match given.rest().first() {
        Some(name) => Err(ApiError::invalid(name, format!("{name} is not known: attention has algorithm and budget"))),
        None => Ok(attention),
    }
}

/// A share from 0 to 1, as a number or as a percentage.
fn share(value: &Value) -> Option<f64> {
    let share = match value {
        Value::String(text) => match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().ok()? / 100.0,
            None => text.trim().parse().ok()?,
        },
        other => other.as_f64()?,
    };
    (0.0..=1.0).contains(&share).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_budget_is_a_share_or_a_percentage() {
        let check = |value: Value, expected: Option<f64>| assert_eq!(share(&value), expected, "{value}");
        check(json!(0.008), Some(0.008));
        check(json!(1), Some(1.0));
        check(json!("0.8%"), Some(0.008));
        check(json!("0.25"), Some(0.25));
        check(json!(8), None);
        check(json!(-0.1), None);
        check(json!("much"), None);
        check(json!([]), None);
    }
}
