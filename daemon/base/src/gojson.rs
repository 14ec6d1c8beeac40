//! JSON exactly as Go's `encoding/json` writes it.
//!
//! Several digests are the sha256 of such JSON: cache keys, image configs. They
//! only match those of other implementations when the bytes do: `<`, `>`, `&`,
//! U+2028 and U+2029 are escaped, control characters are written `\u00xx`
//! (except `\n`, `\r`, `\t`, `\b`, `\f`).

use std::io;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

/// `json.Marshal`.
///
/// # Errors
/// When `value` has no JSON form, such as a map with keys that are not text.
pub fn to_vec(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Go(CompactFormatter)))?;
    Ok(out)
}

/// `json.MarshalIndent(value, "", "  ")`.
///
/// # Errors
/// As for [`to_vec`].
pub fn to_vec_indent(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Go(PrettyFormatter::new())))?;
    Ok(out)
}

/// For `#[serde(deserialize_with)]`: `null` is what a field is without being given,
/// as `json.Unmarshal` has it.
///
/// # Errors
/// When the value is neither `null` nor what the field takes.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

struct Go<F>(F);

impl<F: Formatter> Formatter for Go<F> {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, w: &mut W, text: &str) -> io::Result<()> {
        let mut from = 0;
        for (at, c) in text.char_indices() {
            let escaped: &[u8] = match c {
                '<' => b"\\u003c",
                '>' => b"\\u003e",
                '&' => b"\\u0026",
                '\u{2028}' => b"\\u2028",
                '\u{2029}' => b"\\u2029",
                _ => continue,
            };
            w.write_all(&text.as_bytes()[from..at])?;
            w.write_all(escaped)?;
            from = at + c.len_utf8();
        }
        w.write_all(&text.as_bytes()[from..])
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.begin_array(w)
    }
    fn end_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_array(w)
    }
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(w, first)
    }
    fn end_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_array_value(w)
    }
    fn begin_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.begin_object(w)
    }
    fn end_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_object(w)
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(w, first)
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.begin_object_value(w)
    }
    fn end_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.0.end_object_value(w)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_like_go() {
        let text = super::to_vec(&"a<b>&\u{2028}\n\u{1}\u{7f}é\"\\").unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "\"a\\u003cb\\u003e\\u0026\\u2028\\n\\u0001\u{7f}é\\\"\\\\\""
        );
    }

    #[test]
    fn indents_like_go() {
        let text = super::to_vec_indent(&serde_json::json!({"a": [1, 2], "b": {}, "c": []})).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {},\n  \"c\": []\n}"
        );
    }
}
