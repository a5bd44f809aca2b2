//! Typed access to the fields of a JSON object; every refusal names the field.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::PayloadError;
use super::create::Secret;
use crate::ids;
use crate::net::Ipv4Net;

/// Longest piece of a foreign value that is repeated in an error.
const MAX_QUOTE: usize = 60;
/// Longest `KEY=value` that Linux passes to a program, its NUL included (`MAX_ARG_STRLEN`).
const MAX_ENV: usize = 128 << 10;
/// Most entries of an allow list (PROTOCOL.md 10).
const MAX_NETWORKS: usize = 10;
/// What an entry of an allow list must look like.
const NETWORK: &str = "an IPv4 network such as 10.0.0.0/8, with prefix 0 to 32";

/// The fields of one object.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn new(fields: &'a Map<String, Value>) -> Self {
        Self(fields)
    }

    /// The value, unless absent or null.
    fn value(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text, unless absent or empty.
    pub(super) fn text(self, name: &str) -> Result<Option<&'a str>, PayloadError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(wrong(name, "text", other)),
        }
    }

    /// A copy of [`Fields::text`].
    pub(super) fn owned(self, name: &str) -> Result<Option<String>, PayloadError> {
        Ok(self.text(name)?.map(str::to_owned))
    }

    /// A text that must not appear in errors.
    pub(super) fn secret(self, name: &str) -> Result<Option<Secret>, PayloadError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(Secret::from(text.clone()))),
            Some(other) => Err(error(name, "text", kind(other))),
        }
    }

    /// An identifier of [`crate::ids`].
    pub(super) fn id<T>(self, name: &str, what: &str) -> Result<Option<T>, PayloadError>
    where
        T: std::str::FromStr<Err = ids::Error>,
    {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|cause| error(name, format!("{what} ({cause})"), quoted(text)))
    }

    /// True or false; false when absent.
    pub(super) fn flag(self, name: &str) -> Result<bool, PayloadError> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    /// A whole number in a range; none when absent or 0, which both stand for the default.
    pub(super) fn amount(
        self,
        name: &str,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Result<Option<u64>, PayloadError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match whole(value) {
            Some(0) => Ok(None),
            Some(amount) if range.contains(&amount) => Ok(Some(amount)),
            _ => Err(wrong(name, &format!("{} to {} whole {unit}", range.start(), range.end()), value)),
        }
    }

    /// An array; empty when absent.
    pub(super) fn list(self, name: &str) -> Result<&'a [Value], PayloadError> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(wrong(name, "an array", other)),
        }
    }

    /// An array of texts; empty when absent.
    pub(super) fn texts(self, name: &str) -> Result<Vec<String>, PayloadError> {
        let text = |(at, value): (usize, &Value)| match value {
            Value::String(text) if !text.contains('\0') => Ok(text.clone()),
            other => Err(wrong(&format!("{name}[{at}]"), "text without NUL", other)),
        };
        self.list(name)?.iter().enumerate().map(text).collect()
    }

    pub(super) fn object(self, name: &str) -> Result<Option<&'a Map<String, Value>>, PayloadError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong(name, "an object", other)),
        }
    }

    /// An object of remarks; empty when absent.
    pub(super) fn metadata(self, name: &str) -> Result<BTreeMap<String, String>, PayloadError> {
        Ok(self.object(name)?.map(metadata).unwrap_or_default())
    }

    /// An object of environment variables; empty when absent. Their values may be secrets and are never repeated.
    pub(super) fn environment(self, name: &str) -> Result<BTreeMap<String, String>, PayloadError> {
        let mut environment = BTreeMap::new();
        for (key, value) in self.object(name)?.into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            let field = format!("{name}.{}", shortened(key));
            if !is_variable(key) {
                let expected = "a variable name of letters, digits and '_', the first one no digit";
                return Err(error(name, expected, quoted(key)));
            }
            match value {
                Value::String(text) if text.contains('\0') => {
                    return Err(error(field, "text without NUL", "one with NUL"));
                }
                Value::String(text) if key.len() + text.len() + 2 > MAX_ENV => {
                    let expected = format!("less than {MAX_ENV} bytes together with its name");
                    return Err(error(field, expected, format!("{} bytes", key.len() + text.len())));
                }
                Value::String(text) => environment.insert(key.clone(), text.clone()),
                other => return Err(error(field, "text", kind(other))),
            };
        }
        Ok(environment)
    }

    /// Comma-separated networks; spaces and empty entries do not matter. An empty list is not the same as none.
    pub(super) fn networks(self, name: &str) -> Result<Option<Vec<Ipv4Net>>, PayloadError> {
        let text = match self.value(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(other) => return Err(wrong(name, "comma-separated IPv4 networks", other)),
        };
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let parse = |entry: &str| network(entry).ok_or_else(|| error(name, NETWORK, quoted(entry)));
        let networks: Vec<Ipv4Net> = entries.map(parse).collect::<Result<_, _>>()?;
        if networks.len() > MAX_NETWORKS {
            return Err(error(name, format!("at most {MAX_NETWORKS} networks"), networks.len().to_string()));
        }
        Ok(Some(networks))
    }
}

/// Remarks as texts: what is no text is kept as its JSON, since nothing depends on their form.
pub(super) fn metadata(map: &Map<String, Value>) -> BTreeMap<String, String> {
    let entries = map.iter().filter(|(_, value)| !value.is_null());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    entries.map(|(key, value)| (key.clone(), text(value))).collect()
}

/// A whole, not negative number; JSON may write it as `4` or as `4.0`.
fn whole(value: &Value) -> Option<u64> {
    let exact = |number: &f64| number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(number);
    value.as_u64().or_else(|| value.as_f64().filter(exact).map(|number| number as u64))
}

/// An entry of an allow list. The API lets bits behind the prefix be set; they do not count. (The parser of
/// [`Ipv4Net`] refuses them: in a setting they are a typing error.)
fn network(entry: &str) -> Option<Ipv4Net> {
    let (address, prefix) = entry.split_once('/')?;
    let digits = prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix: u8 = prefix.parse().ok().filter(|prefix| digits && *prefix <= 32)?;
    Some(Ipv4Net::around(address.parse::<Ipv4Addr>().ok()?, prefix))
}

fn is_variable(key: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    key.len() <= 255 && key.bytes().all(inner) && !key.starts_with(|c: char| c.is_ascii_digit()) && !key.is_empty()
}

pub(super) fn error(field: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> PayloadError {
    PayloadError { field: field.into(), expected: expected.into(), got: got.into() }
}

/// An error that repeats the value itself.
fn wrong(field: &str, expected: &str, value: &Value) -> PayloadError {
    let got = match value {
        Value::String(text) => quoted(text),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        other => kind(other).to_owned(),
    };
    error(field, expected, got)
}

/// A foreign text, quoted and shortened.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The kind of a JSON value, for errors that must not repeat it.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
