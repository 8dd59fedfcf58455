//! Standard output, whose reader may go away at any time.

use anyhow::Result;
use std::io::Write;

/// Prints a line.
///
/// # Errors
/// Nobody reads any more.
pub(crate) fn line(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Prints a piece of a line, at once.
///
/// # Errors
/// Nobody reads any more.
pub(crate) fn piece(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints one JSON value.
///
/// # Errors
/// Nobody reads any more.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<()> {
    line(&format!("{value:#}"))
}

/// Whether an error only says that the reader of standard output has gone: `spindle run ... | head`.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(|e| e.kind());
    error.chain().filter_map(io).any(|kind| kind == std::io::ErrorKind::BrokenPipe)
}
