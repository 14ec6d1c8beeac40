//! Sizes in bytes, as people write and read them.

/// Bytes from text such as `512`, `40MB`, `1.5GiB` or `2g`.
///
/// Every unit is a power of 1024, as for `docker run --memory`: `40MB` is
/// 40·1024². `None` when it is not a size.
pub fn parse_binary(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..split].parse().ok()?;
    let unit = text[split..].trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let bytes = number * (1u64 << shift) as f64;
    (bytes.is_finite() && bytes >= 0.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// `units.RAMInBytes`: as [`parse_binary`], but taking exactly what the
/// reference takes, such as `1e3` and `5 k`, and nothing around it.
pub fn ram_in_bytes(text: &str) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = match text.split_at(last) {
        (number, unit) if unit.starts_with(' ') => (number, &unit[1..]),
        _ => text.split_at(last + 1),
    };
    let number: f64 = number.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    let bytes = number * (1u64 << shift) as f64;
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

/// `1.23kB`, `45.6MB`: powers of 1000 and the same digits as docker and
/// buildctl print.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value), UNITS[unit])
}

/// Four significant digits without trailing zeros, like C's `%.4g`.
fn significant(value: f64) -> String {
    let digits = if value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse_binary("512"), Some(512));
        assert_eq!(parse_binary("40MB"), Some(40 << 20));
        assert_eq!(parse_binary("1.5 GiB"), Some(3 << 29));
        assert_eq!(parse_binary("2g"), Some(2 << 30));
        for bad in ["", "x", "-1", "1QB", "1e400"] {
            assert_eq!(parse_binary(bad), None, "{bad}");
        }
    }

    #[test]
    fn reads_what_the_reference_reads() {
        for (text, want) in [
            ("32", Some(32)),
            ("32b", Some(32)),
            ("32K", Some(32 << 10)),
            ("1.5 kiB", Some(1536)),
            ("1e3", Some(1000)),
            ("0.3 k", Some(307)),
            ("5 ", Some(5)),
            (".5k", Some(512)),
            ("", None),
            ("hello", None),
            ("-32", None),
            (" 32 ", None),
            ("32 mbb", None),
            ("32i b", None),
            ("1bb", None),
            ("1e400", None),
            ("9e18k", None),
        ] {
            assert_eq!(ram_in_bytes(text), want, "{text}");
        }
    }

    #[test]
    fn prints_as_docker_does() {
        assert_eq!(human(0), "0B");
        assert_eq!(human(999), "999B");
        assert_eq!(human(1_234), "1.234kB");
        assert_eq!(human(45_600_000), "45.6MB");
    }
}
