//! From JSON to what the engine is asked.

pub(crate) mod attention;
pub(crate) mod limits;
pub(crate) mod messages;
pub(crate) mod params;
pub(crate) mod prompt;
pub(crate) mod unsupported;

use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;

/// The field `model`, or the model's first name.
///
/// # Errors
/// It names another model.
pub(crate) fn take_model(fields: &mut Fields, app: &App) -> Result<String, ApiError> {
    let names = &app.config.names;
    match fields.text("model")? {
        Some(asked) if !names.contains(&asked) => Err(ApiError::unknown_model(&asked, names)),
        asked => Ok(asked.unwrap_or_else(|| names[0].clone())),
    }
}
