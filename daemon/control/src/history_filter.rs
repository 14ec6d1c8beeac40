//! Which records of builds a client wants to see.
//!
//! A filter is conditions joined by commas, all of which must hold; of several
//! filters one has to match. Beside those of [`base::filter`], on `ref`,
//! `status` and `repository`, there are conditions on time: `startedAt>=2h`.

use std::sync::Arc;
use std::time::Duration;

use base::filter::Filters;
use base::gotext::parse_duration;
use base::{Failure, Timestamp};
use build::Record;

/// The filters and the limit of a request.
pub(crate) struct Choice {
    filters: Vec<Filter>,
    limit: Option<usize>,
}

struct Filter {
    times: Vec<Time>,
    fields: Filters,
}

/// A condition on time.
struct Time {
    what: What,
    compare: Compare,
    /// Seconds since 1970, or nanoseconds of a duration.
    with: i64,
}

#[derive(Clone, Copy)]
enum What {
    Started,
    Completed,
    Duration,
}

#[derive(Clone, Copy)]
enum Compare {
    AtLeast,
    AtMost,
    More,
    Less,
}

impl Choice {
    /// Reads a request's filters.
    ///
    /// # Errors
    /// When one does not parse, or the limit is negative.
    pub(crate) fn parse(filters: &[String], limit: i32) -> Result<Self, Failure> {
        let limit = usize::try_from(limit).map_err(|_| Failure::invalid(format!("invalid limit {limit}")))?;
        let filters = filters.iter().map(|text| Filter::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { filters, limit: (limit > 0).then_some(limit) })
    }

    /// Those of `records` that match; with a limit so many of the newest, the
    /// newest first.
    pub(crate) fn of(&self, mut records: Vec<Arc<Record>>) -> Vec<Arc<Record>> {
        records.retain(|r| self.filters.is_empty() || self.filters.iter().any(|f| f.matches(r)));
        if let Some(limit) = self.limit {
            records.sort_by_key(|r| std::cmp::Reverse(r.created));
            records.truncate(limit);
        }
        records
    }
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (mut times, mut fields) = (Vec::new(), Vec::new());
        for part in frontend::dockerfile::instructions::csv::fields(text)
            .map_err(|e| Failure::invalid(e.to_string()))?
        {
            match Time::parse(&part)? {
                Some(time) => times.push(time),
                None => fields.push(part),
            }
        }
        let fields = Filters::parse([fields.join(",")])
            .map_err(|e| Failure::invalid(format!("failed to parse history filters {text}: {e}")))?;
        Ok(Self { times, fields })
    }

    fn matches(&self, record: &Record) -> bool {
        self.times.iter().all(|t| t.holds(record))
            && self.fields.matches(|path| match path.first().copied()? {
                "ref" => Some(record.id.clone()).filter(|id| !id.is_empty()),
                "status" => Some(status(record).to_owned()),
                "repository" => repository(record),
                _ => None,
            })
    }
}

fn status(record: &Record) -> &'static str {
    match (&record.completed, &record.error) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some((_, message))) if message.contains("context canceled") => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

/// The repository a build was made of, if it was made of one.
fn repository(record: &Record) -> Option<String> {
    if let Some(source) = record.attrs.get("vcs:source") {
        return Some(source.clone());
    }
    frontend::dockerfile::giturl::remote(record.attrs.get("context")?)
}

impl Time {
    /// None when the text is a condition of another sort.
    fn parse(text: &str) -> Result<Option<Self>, Failure> {
        let signs =
            [(">=", Compare::AtLeast), ("<=", Compare::AtMost), (">", Compare::More), ("<", Compare::Less)];
        let found = signs.into_iter().find_map(|(sign, compare)| {
            let (key, value) = text.split_once(sign)?;
            Some((key, compare, value))
        });
        let Some((key, compare, value)) = found else { return Ok(None) };
        let what = match key {
            "startedAt" => What::Started,
            "completedAt" => What::Completed,
            "duration" => What::Duration,
            _ => return Ok(None),
        };
        let with = match (what, nanos(value)) {
            (What::Duration, Some(nanos)) => nanos,
            (What::Duration, None) => return Err(Failure::invalid(format!("invalid duration {value}"))),
            (_, Some(ago)) => Timestamp::from_nanos(Timestamp::now().nanos().saturating_sub(ago)).secs(),
            (_, None) => Timestamp::parse(value)
                .ok_or_else(|| Failure::invalid(format!("invalid time {value}")))?
                .secs(),
        };
        Ok(Some(Self { what, compare, with }))
    }

    fn holds(&self, record: &Record) -> bool {
        let value = match self.what {
            What::Started => record.created.secs(),
            What::Completed => record.completed.map_or(0, Timestamp::secs),
            What::Duration => {
                record.completed.map_or(0, |end| end.nanos().saturating_sub(record.created.nanos()))
            }
        };
        match self.compare {
            Compare::AtLeast => value >= self.with,
            Compare::AtMost => value <= self.with,
            Compare::More => value > self.with,
            Compare::Less => value < self.with,
        }
    }
}

fn nanos(text: &str) -> Option<i64> {
    let (negative, duration): (bool, Duration) = parse_duration(text).ok()?;
    let nanos = i64::try_from(duration.as_nanos()).ok()?;
    Some(if negative { -nanos } else { nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, secs_ago: i64, error: Option<&str>) -> Arc<Record> {
        let attrs = [("vcs:source".to_owned(), format!("https://example.com/{id}.git"))].into();
        let mut record = Record::begin(id, "", &attrs, &[]);
        record.created = Timestamp::from_secs(Timestamp::now().secs() - secs_ago);
        record.completed = Some(Timestamp::from_secs(record.created.secs() + 5));
        record.error = error.map(|e| (1, e.to_owned()));
        Arc::new(record)
    }

    fn chosen(filters: &[&str], limit: i32) -> Vec<String> {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        let all = vec![
            record("old", 7200, None),
            record("bad", 600, Some("exit code: 1")),
            record("gone", 60, Some("context canceled")),
        ];
        let chosen = Choice::parse(&filters, limit).unwrap().of(all);
        chosen.iter().map(|r| r.id.clone()).collect()
    }

    #[test]
    fn chooses_as_clients_ask() {
        assert_eq!(chosen(&[], 0), ["old", "bad", "gone"]);
        assert_eq!(chosen(&[], 2), ["gone", "bad"]);
        assert_eq!(chosen(&["status==error", "ref==gone"], 0), ["bad", "gone"]);
        assert_eq!(chosen(&["status!=completed,startedAt>=5m"], 0), ["gone"]);
        assert_eq!(chosen(&["duration<4s"], 0), Vec::<String>::new());
        assert_eq!(chosen(&["duration>=5s,repository~=old"], 0), ["old"]);
        assert_eq!(chosen(&["completedAt<2001-01-01T00:00:00Z"], 0), Vec::<String>::new());
    }

    #[test]
    fn refuses_what_does_not_parse() {
        for bad in ["startedAt>x", "duration>x", "status=", "\"a"] {
            assert!(Choice::parse(&[bad.to_owned()], 0).is_err(), "{bad}");
        }
        assert!(Choice::parse(&[], -1).is_err());
    }
}
