//! Bytes that are mostly text.

use std::borrow::Cow;

/// `bytes` as text, each byte that is no part of a character replaced by one
/// U+FFFD.
pub(super) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|_| out.push(char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(out)
}

/// `bytes` without the white space in front.
pub(super) fn trim_start(bytes: &[u8]) -> &[u8] {
    // Nearly all of it is ASCII; only then look at characters.
    let ascii = bytes.iter().position(|b| !matches!(b, b'\t'..=b'\r' | b' ')).unwrap_or(bytes.len());
    let rest = &bytes[ascii..];
    match rest.first() {
        Some(0x80..) => {
            let end = rest.iter().position(u8::is_ascii).unwrap_or(rest.len());
            let run = rest[..end].utf8_chunks().next().map_or("", |c| c.valid());
            let skipped = run.len() - run.trim_start().len();
            if skipped == 0 { rest } else { trim_start(&rest[skipped..]) }
        }
        _ => rest,
    }
}

/// A byte that is white space when taken for a Latin-1 character.
pub(super) fn is_space_byte(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0x85 | 0xa0)
}

/// White space within an instruction.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// White space as `\s` of a regular expression has it.
pub(super) fn is_ascii_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ')
}

/// Splits at the first run of blanks.
pub(super) fn split_blank(text: &str) -> (&str, Option<&str>) {
    match text.find(is_blank) {
        Some(at) => (&text[..at], Some(text[at..].trim_start_matches(is_blank))),
        None => (text, None),
    }
}

/// The lines of a file, each with its line end. Stops before a line that is
/// longer than [`MAX_LINE`].
pub(super) struct RawLines<'a> {
    rest: &'a [u8],
    /// A line was too long.
    pub(super) too_long: bool,
}

/// The bytes of the longest line, without its line end.
pub(super) const MAX_LINE: usize = 65535;

impl<'a> RawLines<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data, too_long: false }
    }
}

impl<'a> Iterator for RawLines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() || self.too_long {
            return None;
        }
        let window = self.rest.get(..MAX_LINE + 1).unwrap_or(self.rest);
        let end = match window.iter().position(|b| *b == b'\n') {
            Some(at) => at + 1,
            None if self.rest.len() <= MAX_LINE => self.rest.len(),
            None => {
                self.too_long = true;
                return None;
            }
        };
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_each_bad_byte() {
        assert_eq!(lossy(b"a\xf0\x9f\x98b\xff"), "a\u{fffd}\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!(lossy("é".as_bytes()), "é");
    }

    #[test]
    fn trims_unicode_space() {
        assert_eq!(trim_start(" \u{a0} \u{2003}x ".as_bytes()), b"x ");
        assert_eq!(trim_start(b"\xa0x"), b"\xa0x");
        assert_eq!(trim_start("é ".as_bytes()), "é ".as_bytes());
        assert_eq!(trim_start(b" \x85"), b"\x85");
        assert_eq!(trim_start(b""), b"");
    }

    #[test]
    fn ends_at_a_long_line() {
        let mut lines = RawLines::new(b"a\n\nb");
        assert_eq!(lines.by_ref().collect::<Vec<_>>(), [b"a\n".as_slice(), b"\n", b"b"]);
        assert!(!lines.too_long);
        for (length, end, long) in
            [(65535, "\n", false), (65535, "", false), (65536, "\n", true), (65536, "", true)]
        {
            let data = "x".repeat(length) + end;
            let mut lines = RawLines::new(data.as_bytes());
            assert_eq!(lines.by_ref().count(), usize::from(!long));
            assert_eq!(lines.too_long, long, "{length} {end:?}");
        }
    }
}
