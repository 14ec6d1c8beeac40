//! `SOURCE_DATE_EPOCH`, and points in time as image configs write them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

const ATTR: &str = "source-date-epoch";
const METADATA: &str = "source.date.epoch";

/// The latest time anything in an image may claim. Given and empty means:
/// none, whatever the frontend says.
pub(crate) type Epoch = Option<Time>;

/// A point in time that is written as it was read. Image configs have times
/// far outside of what counts in nanoseconds, such as the year 1, and offsets
/// that have to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Time {
    text: String,
    at: jiff::Timestamp,
}

impl Time {
    /// From RFC 3339, written as Go writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let at: jiff::Timestamp = text.parse().ok()?;
        let zone = text.find(['Z', 'z']).or_else(|| text.rfind(['+', '-']).filter(|at| *at > 10))?;
        let (local, zone) = text.split_at_checked(zone)?;
        let local = match local.split_once('.') {
            Some((whole, fraction)) => {
                let fraction = fraction.get(..9).unwrap_or(fraction).trim_end_matches('0');
                if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
            }
            None => local.to_owned(),
        };
        let zone = if matches!(zone, "z" | "+00:00" | "-00:00") { "Z" } else { zone };
        Some(Self { text: format!("{local}{zone}"), at })
    }

    /// From seconds since 1970; none when that is beyond the year 9999.
    pub(crate) fn from_secs(secs: i64) -> Option<Self> {
        let at = jiff::Timestamp::from_second(secs).ok()?;
        Some(Self { text: at.to_string(), at })
    }

    /// Whether it is after `other`.
    pub(crate) fn is_after(&self, other: &Self) -> bool {
        self.at > other.at
    }

    /// The same for programs that count in nanoseconds.
    pub(crate) fn timestamp(&self) -> base::Timestamp {
        let nanos = i64::try_from(self.at.as_nanosecond());
        let bound = if self.at < jiff::Timestamp::UNIX_EPOCH { i64::MIN } else { i64::MAX };
        base::Timestamp::from_nanos(nanos.unwrap_or(bound))
    }

    /// For people, in UTC.
    pub(crate) fn shown(&self) -> String {
        self.at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
    }

    /// To the second, as `time.RFC3339` writes it.
    pub(crate) fn to_seconds(&self) -> String {
        jiff::Timestamp::from_second(self.at.as_second())
            .map_or_else(|_| self.text.clone(), |t| t.to_string())
    }
}

impl From<base::Timestamp> for Time {
    fn from(time: base::Timestamp) -> Self {
        let at = jiff::Timestamp::from_nanosecond(i128::from(time.nanos())).unwrap_or_default();
        Self { text: at.to_string(), at }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("invalid time {text:?}")))
    }
}

fn read(what: &str, text: &str) -> Result<Epoch, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || Error::NotInteger { what: what.to_owned(), value: text.to_owned() };
    let secs = text.parse().map_err(|_| bad())?;
    Time::from_secs(secs).ok_or_else(bad).map(Some)
}

/// Takes the option out of `attrs`. The outer none: it was not given.
///
/// # Errors
/// When it is no number of seconds.
pub(crate) fn take(attrs: &mut BTreeMap<String, String>) -> Result<Option<Epoch>, Error> {
    attrs.remove(ATTR).map(|text| read(&format!("invalid {ATTR}"), &text)).transpose()
}

/// What the frontend says, for one platform or in general. The outer none: nothing.
///
/// # Errors
/// When it is no number of seconds.
pub(crate) fn from_metadata(
    metadata: &BTreeMap<String, Vec<u8>>,
    platform: Option<&str>,
) -> Result<Option<Epoch>, Error> {
    let own = platform.and_then(|id| metadata.get(&format!("{METADATA}/{id}")));
    let Some(value) = own.or_else(|| metadata.get(METADATA)) else { return Ok(None) };
    let text = String::from_utf8_lossy(value);
    read(&format!("invalid SOURCE_DATE_EPOCH from frontend: {text:?}"), &text).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_times_as_go_does() {
        for (text, want) in [
            ("2020-01-02T03:04:05.120000000Z", "2020-01-02T03:04:05.12Z"),
            ("2020-01-02T03:04:05.000Z", "2020-01-02T03:04:05Z"),
            ("2020-01-02T03:04:05+00:00", "2020-01-02T03:04:05Z"),
            ("2020-01-02T03:04:05.5-07:30", "2020-01-02T03:04:05.5-07:30"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            let time = Time::parse(text).unwrap();
            assert_eq!(serde_json::to_string(&time).unwrap(), format!("\"{want}\""));
        }
        assert!(Time::parse("yesterday").is_none());
        assert_eq!(Time::from_secs(1).unwrap().text, "1970-01-01T00:00:01Z");
    }

    #[test]
    fn an_empty_epoch_is_one() {
        let mut attrs = BTreeMap::from([(ATTR.to_owned(), String::new())]);
        assert_eq!(take(&mut attrs).unwrap(), Some(None));
        assert_eq!(take(&mut attrs).unwrap(), None);
        let mut attrs = BTreeMap::from([(ATTR.to_owned(), "x".to_owned())]);
        let e = take(&mut attrs).unwrap_err().to_string();
        assert_eq!(e, "invalid source-date-epoch: strconv.ParseInt: parsing \"x\": invalid syntax");
    }

    #[test]
    fn a_platforms_epoch_beats_the_general_one() {
        let metadata = BTreeMap::from([
            ("source.date.epoch".to_owned(), b"1".to_vec()),
            ("source.date.epoch/linux/amd64".to_owned(), b"2".to_vec()),
        ]);
        let secs =
            |platform| from_metadata(&metadata, platform).unwrap().flatten().unwrap().timestamp().secs();
        assert_eq!((secs(None), secs(Some("linux/amd64")), secs(Some("other"))), (1, 2, 1));
    }
}
