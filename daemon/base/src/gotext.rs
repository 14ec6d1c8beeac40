//! Text as Go's standard library reads and writes it.
//!
//! Error texts, histories and configuration files contain values written by
//! `strconv`, `%q` and `time.ParseDuration`; these are the same functions.

use std::fmt::Write as _;
use std::time::Duration;

/// `strconv.Quote`, which is also `%q` and, for text, `%#v`.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            _ if printable(c) => out.push(c),
            _ => {
                let n = u32::from(c);
                // Writing to a String cannot fail.
                let _ = match n {
                    0..0x80 => write!(out, "\\x{n:02x}"),
                    0x80..0x1_0000 => write!(out, "\\u{n:04x}"),
                    _ => write!(out, "\\U{n:08x}"),
                };
            }
        }
    }
    out.push('"');
    out
}

/// `unicode.IsPrint`: letters, marks, numbers, punctuation, symbols and the
/// ASCII space.
fn printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // Rust escapes in text just the characters that do not print, except that
    // the first may also be a mark which would combine with the quote.
    let text: String = ['a', c].iter().collect();
    text.escape_debug().count() == 2
}

/// `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The text is not a number, in the words of `strconv`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("strconv.{function}: parsing {}: {why}", quote(.text))]
pub struct NumberError {
    function: &'static str,
    text: String,
    why: &'static str,
}

/// `strconv.ParseInt` in base 10 for numbers of 8, 16, 32 or 64 bits.
///
/// # Errors
/// When it is no number, or too large for `bits`.
pub fn parse_int(text: &str, bits: u32) -> Result<i64, NumberError> {
    let fail = |why| NumberError { function: "ParseInt", text: text.to_owned(), why };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fail("invalid syntax"));
    }
    let limit = 64u32.saturating_sub(bits);
    match text.parse::<i64>() {
        Ok(n) if (i64::MIN >> limit..=i64::MAX >> limit).contains(&n) => Ok(n),
        _ => Err(fail("value out of range")),
    }
}

/// `strconv.ParseUint` for a base up to ten, without prefix, as `None` for any
/// error.
pub fn parse_uint(text: &str, base: u32, bits: u32) -> Option<u64> {
    if text.is_empty() || !text.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let n = u64::from_str_radix(text, base).ok()?;
    (n <= u64::MAX >> 64u32.saturating_sub(bits)).then_some(n)
}

/// The text is not a length of time, in the words of `time`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum DurationError {
    #[error("time: invalid duration {}", quote(.0))]
    Invalid(String),
    #[error("time: missing unit in duration {}", quote(.0))]
    MissingUnit(String),
    #[error("time: unknown unit {} in duration {}", quote(.unit), quote(.text))]
    UnknownUnit { unit: String, text: String },
}

/// `time.ParseDuration`: sign and length.
///
/// # Errors
/// When it is not a sequence of numbers with units `ns us µs ms s m h`, or
/// longer than 2⁶³ nanoseconds.
pub fn parse_duration(text: &str) -> Result<(bool, Duration), DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok((false, Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, tail) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let scale: u128 = match unit {
            "" => return Err(DurationError::MissingUnit(text.to_owned())),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(DurationError::UnknownUnit { unit: unit.to_owned(), text: text.to_owned() });
            }
        };
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total += whole.checked_mul(scale).filter(|t| *t <= 1 << 63).ok_or_else(invalid)?;
        // More digits than this do not change a nanosecond of an hour.
        let fraction = fraction.get(..18).unwrap_or(fraction);
        if let Ok(part) = fraction.parse::<u128>() {
            total += part * scale / 10u128.pow(fraction.len() as u32);
        }
        if total > 1 << 63 {
            return Err(invalid());
        }
        rest = next;
    }
    if !negative && total == 1 << 63 {
        return Err(invalid());
    }
    let nanos = u64::try_from(total).map_err(|_| invalid())?;
    Ok((negative, Duration::from_nanos(nanos)))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(quote("a\"b\\c\n\t\u{1}\u{7f}"), r#""a\"b\\c\n\t\x01\x7f""#);
        assert_eq!(quote("é\u{301}世"), "\"é\u{301}世\"");
        assert_eq!(quote("\u{a0}\u{ad}\u{feff}\u{e0001}"), r#""\u00a0\u00ad\ufeff\U000e0001""#);
    }

    #[test]
    fn reads_numbers() {
        assert_eq!(parse_int("-5", 32), Ok(-5));
        assert_eq!(parse_int("+2147483647", 32), Ok(2_147_483_647));
        let text = |r: Result<i64, NumberError>| r.unwrap_err().to_string();
        assert_eq!(text(parse_int("x", 32)), "strconv.ParseInt: parsing \"x\": invalid syntax");
        assert_eq!(
            text(parse_int("2147483648", 32)),
            "strconv.ParseInt: parsing \"2147483648\": value out of range"
        );
        assert_eq!(parse_uint("0777", 8, 32), Some(0o777));
        assert_eq!(parse_uint("4294967296", 10, 32), None);
        assert_eq!(parse_uint("+1", 10, 32), None);
        assert_eq!(parse_uint("8", 8, 32), None);
    }

    #[test]
    fn reads_durations() {
        let ok = |s: &str| parse_duration(s).unwrap();
        assert_eq!(ok("1h2m3.5s"), (false, Duration::from_millis(3_723_500)));
        assert_eq!(ok("-1.5us"), (true, Duration::from_nanos(1_500)));
        assert_eq!(ok("0"), (false, Duration::ZERO));
        assert_eq!(ok(".5s"), (false, Duration::from_millis(500)));
        let text = |s: &str| parse_duration(s).unwrap_err().to_string();
        assert_eq!(text("5"), "time: missing unit in duration \"5\"");
        assert_eq!(text("5x"), "time: unknown unit \"x\" in duration \"5x\"");
        assert_eq!(text(""), "time: invalid duration \"\"");
        assert_eq!(text(".s"), "time: invalid duration \".s\"");
        assert_eq!(text("9223372037s"), "time: invalid duration \"9223372037s\"");
    }
}
