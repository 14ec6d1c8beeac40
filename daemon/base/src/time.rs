//! Points in time, in the form the wire and the files use.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nanoseconds since 1970, UTC. Written as RFC 3339 the way Go's
/// `RFC3339Nano` does: no fraction when it is zero, no trailing zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The beginning of 1970.
    pub const EPOCH: Self = Self(0);

    /// This very moment.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From nanoseconds since 1970.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// From seconds since 1970, saturating.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since 1970.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// The nanoseconds beyond [`Self::secs`].
    pub const fn subsec_nanos(self) -> u32 {
        self.0.rem_euclid(1_000_000_000) as u32
    }

    /// How long it is since `earlier`; zero when it was later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        let nanos = text.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
        i64::try_from(nanos).ok().map(Self)
    }

    /// Reads the three forms of a date in HTTP, of which the second is written with
    /// any zone; one that is no other is UTC, as for Go.
    pub fn parse_http(text: &str) -> Option<Self> {
        let read = |format: &str, text: &str| {
            let time = jiff::fmt::strtime::parse(format, text).ok()?.to_datetime().ok()?;
            let nanos = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_nanosecond();
            i64::try_from(nanos).ok().map(Self)
        };
        match text.split_once(", ") {
            Some((_, rest)) => {
                let (time, _zone) = rest.rsplit_once(' ')?;
                read("%d %b %Y %H:%M:%S", time).or_else(|| read("%d-%b-%y %H:%M:%S", time))
            }
            None => read("%b %e %H:%M:%S %Y", text.split_once(' ')?.1),
        }
    }

    /// The form that HTTP prefers.
    pub fn format_http(self) -> String {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or_default();
        time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let nanos = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
        };
        Self(nanos)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) => write!(f, "{t}"),
            Err(_) => f.write_str("0001-01-01T00:00:00Z"),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("invalid time {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dates_of_http() {
        let time = Timestamp::from_secs(784_111_777);
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(Timestamp::parse_http(text), Some(time), "{text}");
        }
        for text in ["", "0", "Sun, 06 Nov 1994", "Sun, 99 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37Z"] {
            assert_eq!(Timestamp::parse_http(text), None, "{text}");
        }
        assert_eq!(time.format_http(), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn writes_like_go() {
        assert_eq!(Timestamp::EPOCH.to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_nanos(1_500_000_000).to_string(), "1970-01-01T00:00:01.5Z");
        assert_eq!(
            Timestamp::parse("1970-01-01T01:00:01.5+01:00"),
            Some(Timestamp::from_nanos(1_500_000_000))
        );
    }
}
