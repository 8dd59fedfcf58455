//! The `tojson` filter with the output of Python's `json.dumps(value, ensure_ascii=False)`, as models were trained on.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Deeper indents than this are a template's mistake.
pub(super) const INDENT_MAX: usize = 16;

/// `value | tojson`, `value | tojson(indent=4)`.
pub(super) fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    // Python's other options do not occur in chat templates with values other than these defaults.
    let _ = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<Value>>("separators")?);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;

    let wrong = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(wrong)?;
    if sort {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    match indent {
        None => json.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced(CompactFormatter))),
        Some(width) => {
            let spaces = " ".repeat(width.min(INDENT_MAX));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            json.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
    }
    .map_err(wrong)?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python puts a space after `,` and `:`.
struct Spaced(CompactFormatter);

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)?;
        writer.write_all(b" ")
    }
}
