//! Points in time and durations.

use jiff::tz::TimeZone;

fn timestamp(time: &prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// Nanoseconds since 1970.
pub(crate) fn nanos(time: &prost_types::Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

/// RFC 3339 in UTC with fractions as needed; the beginning of 1970 for none.
pub(crate) fn rfc3339(time: Option<&prost_types::Timestamp>) -> String {
    time.and_then(timestamp).map_or_else(|| "1970-01-01T00:00:00Z".to_owned(), |t| t.to_string())
}

/// RFC 3339 in local time, to the second; empty for none.
pub(crate) fn local(time: Option<&prost_types::Timestamp>) -> String {
    let Some(time) = time.and_then(timestamp) else { return String::new() };
    let zoned = time.to_zoned(TimeZone::system());
    let text = zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    match text.strip_suffix("+00:00") {
        Some(utc) => format!("{utc}Z"),
        None => text,
    }
}

/// `2026-11-21 03:00:00.5 +0000 UTC`.
pub(crate) fn long(time: Option<&prost_types::Timestamp>) -> String {
    let text = rfc3339(time).replace('T', " ");
    format!("{} +0000 UTC", text.trim_end_matches('Z'))
}

/// `48h0m0s`, `1.5s`, `250ms`: nanoseconds as Go prints durations.
pub(crate) fn duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let rest = nanos.unsigned_abs();
    if rest == 0 {
        return "0s".to_owned();
    }
    if rest < 1_000_000_000 {
        let (unit, size) = match rest {
            0..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{sign}{}{unit}", rest as f64 / f64::from(size));
    }
    let (hours, rest) = (rest / 3_600_000_000_000, rest % 3_600_000_000_000);
    let (minutes, rest) = (rest / 60_000_000_000, rest % 60_000_000_000);
    let mut seconds = (rest / 1_000_000_000).to_string();
    let fraction = format!("{:09}", rest % 1_000_000_000);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        seconds = format!("{seconds}.{fraction}");
    }
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (172_800_000_000_000, "48h0m0s"),
            (1_500_000_000, "1.5s"),
            (250_000_000, "250ms"),
            (90_000_000_000, "1m30s"),
            (-1_000, "-1µs"),
        ] {
            assert_eq!(duration(nanos), text);
        }
    }

    #[test]
    fn times_read_as_go_prints_them() {
        let time = prost_types::Timestamp { seconds: 0, nanos: 500_000_000 };
        assert_eq!(long(Some(&time)), "1970-01-01 00:00:00.5 +0000 UTC");
        assert_eq!(rfc3339(Some(&time)), "1970-01-01T00:00:00.5Z");
        assert_eq!(local(None), "");
    }
}
