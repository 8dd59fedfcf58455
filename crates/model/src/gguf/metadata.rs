//! The metadata fields of a GGUF file, with errors that name file, field and value.

use std::collections::BTreeMap;
use std::fmt;

use super::cursor::Cursor;
use crate::Error;

/// Fields by key. Numbers are kept in the widest type of their kind.
#[derive(Default)]
pub(crate) struct Metadata {
    file: String,
    fields: BTreeMap<String, Value>,
}

pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

/// GGUF's type ids.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Metadata {
    pub(super) fn parse(cursor: &mut Cursor, count: usize) -> Result<Self, Error> {
        let mut fields = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.string("a metadata key")?.to_owned();
            let kind = cursor.u32(&key)?;
            let value = Value::parse(cursor, kind, &key)?;
            if fields.insert(key.clone(), value).is_some() {
                return Err(cursor.corrupt(format!("it has the field {key} twice")));
            }
        }
        Ok(Self { file: cursor.file().to_owned(), fields })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key)
    }

    pub(crate) fn str(&self, key: &str) -> Result<&str, Error> {
        self.str_opt(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn str_opt(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn usize(&self, key: &str) -> Result<usize, Error> {
        self.usize_opt(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn usize_opt(&self, key: &str) -> Result<Option<usize>, Error> {
        self.typed(key, "a whole number", Value::whole)
    }

    /// A number, or a list with the same number for every layer.
    pub(crate) fn uniform_usize_opt(&self, key: &str) -> Result<Option<usize>, Error> {
        match self.get(key) {
            Some(Value::Numbers(numbers)) => match numbers.split_first() {
                Some((first, rest)) if 0.0 <= *first && first.fract() == 0.0 && rest.iter().all(|n| n == first) => {
                    Ok(Some(*first as usize))
                }
                _ => Err(self.unsupported(key, "different in every layer", "the same number for all layers")),
            },
            _ => self.usize_opt(key),
        }
    }

    pub(crate) fn u32_opt(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "a token id", |value| value.whole().and_then(|id| u32::try_from(id).ok()))
    }

    pub(crate) fn f64_opt(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", |value| match value {
            Value::Float(number) => Some(*number),
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            _ => None,
        })
    }

    pub(crate) fn bool_opt(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        })
    }

    pub(crate) fn texts_opt(&self, key: &str) -> Result<Option<&[String]>, Error> {
        self.typed(key, "a list of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            Value::Numbers(numbers) if numbers.is_empty() => Some(&[]),
            _ => None,
        })
    }

    pub(crate) fn numbers_opt(&self, key: &str) -> Result<Option<&[f64]>, Error> {
        self.typed(key, "a list of numbers", |value| match value {
            Value::Numbers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.wrong(key, format!("is {value}, expected {expected}"))),
            },
        }
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        self.wrong(key, "is missing")
    }

    pub(crate) fn wrong(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::field(&*self.file, key, problem)
    }

    pub(crate) fn unsupported(&self, key: &str, value: impl fmt::Display, supported: impl Into<String>) -> Error {
        Error::unsupported(&*self.file, key, value, supported)
    }
}

impl Value {
    fn parse(cursor: &mut Cursor, kind: u32, key: &str) -> Result<Self, Error> {
        Ok(match kind {
            0 => Self::Unsigned(cursor.u8(key)?.into()),
            1 => Self::Signed((cursor.u8(key)? as i8).into()),
            2 => Self::Unsigned(cursor.u16(key)?.into()),
            3 => Self::Signed((cursor.u16(key)? as i16).into()),
            4 => Self::Unsigned(cursor.u32(key)?.into()),
            5 => Self::Signed((cursor.u32(key)? as i32).into()),
            6 => Self::Float(f32::from_bits(cursor.u32(key)?).into()),
            7 => match cursor.u8(key)? {
                truth @ 0..=1 => Self::Bool(truth == 1),
                other => return Err(cursor.corrupt(format!("{key} is the truth value {other}"))),
            },
            TEXT => Self::Text(cursor.text(key)?.to_owned()),
            ARRAY => Self::parse_array(cursor, key)?,
            10 => Self::Unsigned(cursor.u64(key)?),
            11 => Self::Signed(cursor.u64(key)? as i64),
            12 => Self::Float(f64::from_bits(cursor.u64(key)?)),
            other => return Err(cursor.corrupt(format!("{key} has the unknown type {other}"))),
        })
    }

    fn parse_array(cursor: &mut Cursor, key: &str) -> Result<Self, Error> {
        let kind = cursor.u32(key)?;
        if kind == TEXT {
            let count = cursor.count(key, 8)?;
            let texts = (0..count).map(|_| cursor.text(key).map(str::to_owned)).collect::<Result<_, _>>()?;
            return Ok(Self::Texts(texts));
        }
        let bytes_each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            ARRAY => {
                return Err(Error::unsupported(cursor.file(), key, "a list of lists", "a list of numbers or texts"));
            }
            other => return Err(cursor.corrupt(format!("{key} is a list of the unknown type {other}"))),
        };
        let count = cursor.count(key, bytes_each)?;
        let numbers = (0..count).map(|_| match Self::parse(cursor, kind, key)? {
            Self::Unsigned(number) => Ok::<f64, Error>(number as f64),
            Self::Signed(number) => Ok(number as f64),
            Self::Float(number) => Ok(number),
            Self::Bool(truth) => Ok(f64::from(u8::from(truth))),
            _ => unreachable!("texts and lists were handled above"),
        });
        Ok(Self::Numbers(numbers.collect::<Result<_, _>>()?))
    }

    fn whole(&self) -> Option<usize> {
        match self {
            Self::Unsigned(number) => usize::try_from(*number).ok(),
            Self::Signed(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => write!(f, "{number}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Text(text) => write!(f, "{:?}", text.chars().take(60).collect::<String>()),
            Self::Numbers(numbers) => write!(f, "a list of {} numbers", numbers.len()),
            Self::Texts(texts) => write!(f, "a list of {} texts", texts.len()),
        }
    }
}
