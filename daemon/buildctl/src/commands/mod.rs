//! Everything but building.

pub(crate) mod history;
pub(crate) mod offline;
pub(crate) mod usage;
pub(crate) mod workers;

use std::io::Write;

use base::Failure;
use serde_json::Value;

use crate::format::template::Template;

/// Writes to standard output.
///
/// # Errors
/// When nobody reads it.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let result = out.write_all(text.as_ref()).and_then(|()| out.flush());
    result.map_err(|e| Failure::internal(format!("write to standard output: {e}")))
}

/// Prints `value` by a template, and a line feed.
pub(crate) fn print_with(template: &Template, value: &Value) -> Result<(), Failure> {
    print(template.apply(value)? + "\n")
}

/// A message in the JSON that Go makes of it.
pub(crate) fn json_of(name: &str, message: &impl prost::Message) -> Result<Value, Failure> {
    let bytes = session::json::encode_go(name, message);
    let value = bytes.and_then(|b| serde_json::from_slice(&b).ok());
    value.ok_or_else(|| Failure::internal(format!("{name} has no JSON form")))
}
