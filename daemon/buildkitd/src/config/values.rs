//! Values that TOML has no type for: disk space, durations, on/off/auto.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// Disk space: bytes, a size such as `"40MB"` (units of 1024), or a share of
/// the disk such as `"20%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskSpace {
    Bytes(u64),
    Percent(u8),
}

impl DiskSpace {
    /// In bytes, on a disk of `total` bytes. A share is rounded up to whole
    /// gigabytes; when the size of the disk is not known it is 2 GB.
    pub(crate) fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(_) if total == 0 => 2_000_000_000,
            Self::Percent(share) => {
                let bytes = u128::from(total) * u128::from(share) / 100;
                let gigabytes = u64::try_from(bytes >> 30).unwrap_or(u64::MAX).saturating_add(1);
                gigabytes.saturating_mul(1_000_000_000)
            }
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(share) => share.trim().parse().ok().filter(|share| *share <= 100).map(Self::Percent),
            None => base::size::parse_binary(text).map(Self::Bytes),
        }
    }
}

impl<'de> Deserialize<'de> for DiskSpace {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Space;
        impl Visitor<'_> for Space {
            type Value = DiskSpace;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, a size such as \"10GB\" or a share such as \"20%\"")
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<DiskSpace, E> {
                u64::try_from(n)
                    .map(DiskSpace::Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DiskSpace, E> {
                DiskSpace::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        d.deserialize_any(Space)
    }
}

/// A span of time: seconds, or text such as `"48h"` or `"1h30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// Reads whole seconds or what Go's `time.ParseDuration` reads, without a sign.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(Self(Duration::from_secs(seconds)));
        }
        let (mut rest, mut nanos) = (text, 0f64);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
            let number: f64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit = match &rest[..unit_end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
            nanos += number * unit;
            rest = &rest[unit_end..];
        }
        (!text.is_empty() && nanos < i64::MAX as f64).then(|| Self(Duration::from_nanos(nanos as u64)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Spans;
        impl Visitor<'_> for Spans {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds or a duration such as \"48h\"")
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Span, E> {
                let seconds =
                    u64::try_from(n).map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))?;
                Ok(Span(Duration::from_secs(seconds)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        d.deserialize_any(Spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_disk_space() {
        assert_eq!(DiskSpace::parse("40MB"), Some(DiskSpace::Bytes(40 << 20)));
        assert_eq!(DiskSpace::parse("20%"), Some(DiskSpace::Percent(20)));
        assert_eq!(DiskSpace::parse("101%"), None);
        assert_eq!(DiskSpace::Percent(10).bytes(100 << 30), 11_000_000_000);
        assert_eq!(DiskSpace::Percent(10).bytes(0), 2_000_000_000);
    }

    #[test]
    fn reads_durations_like_go() {
        let secs = |t| Span::parse(t).map(|s| s.0.as_secs_f64());
        assert_eq!(secs("90"), Some(90.0));
        assert_eq!(secs("1h30m"), Some(5400.0));
        assert_eq!(secs("1.5h"), Some(5400.0));
        assert_eq!(secs("100ms"), Some(0.1));
        for bad in ["", "h", "1x", "-1s", "1h30"] {
            assert_eq!(secs(bad), None, "{bad}");
        }
    }
}
