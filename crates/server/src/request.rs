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

/// Checks the field `model` against the names that are served.
///
/// # Errors
/// It names another model.
pub(crate) fn check_model(fields: &mut Fields, app: &App) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(asked) if !app.config.names.contains(&asked) => Err(ApiError::unknown_model(&asked, &app.config.names)),
        _ => Ok(()),
    }
}
