//! The document in which a cache is described, `cacheconfig.v0`.
//!
//! The order of records and layers is a contract: the same records are the same
//! bytes, whoever wrote them.

use std::cmp::Ordering;

use base::{Digest, Timestamp, gojson};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Error;

/// What it calls itself.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The document. The order of fields is that of Go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(default, deserialize_with = "gojson::nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<Layer>,
    #[serde(default, deserialize_with = "gojson::nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) records: Vec<Record>,
}

/// A layer on another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) blob: Digest,
    /// The layer below; -1 is none. The first layer goes without saying.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<Annotations>,
}

/// What is known of a layer, where there is no manifest that says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Annotations {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    #[serde(
        default,
        rename = "diffID",
        deserialize_with = "digest",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) diff_id: Option<Digest>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) size: i64,
    #[serde(default = "never", deserialize_with = "when", serialize_with = "year_one")]
    pub(crate) created_at: Timestamp,
}

/// What was done, on what, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(
        default,
        rename = "layers",
        deserialize_with = "gojson::nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) results: Vec<Result>,
    #[serde(default, deserialize_with = "gojson::nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) chains: Vec<Chain>,
    #[serde(default, deserialize_with = "digest", skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Digest>,
    /// Per input, records that stand for it.
    #[serde(default, deserialize_with = "inputs", skip_serializing_if = "Vec::is_empty")]
    pub(crate) inputs: Vec<Vec<Input>>,
}

/// A layer with all below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Result {
    #[serde(default)]
    pub(crate) layer: i64,
    #[serde(default = "never", rename = "createdAt", deserialize_with = "when", serialize_with = "year_one")]
    pub(crate) created: Timestamp,
}

/// Layers, whatever is below them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    #[serde(default, deserialize_with = "gojson::nullable")]
    pub(crate) layers: Vec<i64>,
    #[serde(default = "never", rename = "createdAt", deserialize_with = "when", serialize_with = "year_one")]
    pub(crate) created: Timestamp,
}

/// A record of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Input {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) selector: String,
    #[serde(default)]
    pub(crate) link: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants it so
fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn never() -> Timestamp {
    NEVER
}

/// Stands for Go's zero time, which is before what nanoseconds can count.
pub(crate) const NEVER: Timestamp = Timestamp::from_nanos(i64::MIN);

fn year_one<S: serde::Serializer>(time: &Timestamp, s: S) -> std::result::Result<S::Ok, S::Error> {
    if *time == NEVER { s.serialize_str("0001-01-01T00:00:00Z") } else { time.serialize(s) }
}

/// A time out of what can be counted is never.
fn when<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Timestamp, D::Error> {
    Ok(time(d)?.unwrap_or(NEVER))
}

fn time<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
    match Timestamp::parse(&text) {
        Some(time) => Ok(Some(time)),
        None if text.starts_with("0001-01-01T00:00:00") => Ok(None),
        None => Err(serde::de::Error::custom(format!("invalid time {text:?}"))),
    }
}

fn digest<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Digest>, D::Error> {
    let text = Option::<String>::deserialize(d)?.unwrap_or_default();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}

fn inputs<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<Vec<Input>>, D::Error> {
    let all: Vec<Option<Vec<Input>>> = gojson::nullable(d)?;
    Ok(all.into_iter().map(Option::unwrap_or_default).collect())
}

impl Config {
    /// Reads the document.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parse(json: &[u8]) -> std::result::Result<Self, Error> {
        // A struct could also be read from an array of its fields, which is not how anybody writes it.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Error::config("invalid document: not an object"));
        }
        serde_json::from_slice(json).map_err(|e| Error::config(e.to_string()))
    }

    /// As it is written.
    ///
    /// # Errors
    /// Never in fact.
    pub(crate) fn json(&self) -> std::result::Result<Vec<u8>, Error> {
        gojson::to_vec(self).map_err(|e| Error::config(e.to_string()))
    }

    /// Puts layers and records in the one order.
    pub(crate) fn sort(&mut self) {
        let order = sorted(self.layers.len(), |a, b| match (self.layers.get(a), self.layers.get(b)) {
            (Some(a), Some(b)) => a.blob.cmp(&b.blob).then_with(|| a.parent.cmp(&b.parent)),
            _ => Ordering::Equal,
        });
        let layer_at = places(&order);
        let mut layers: Vec<Layer> = order.iter().filter_map(|at| self.layers.get(*at).cloned()).collect();
        for layer in &mut layers {
            layer.parent = moved(&layer_at, layer.parent);
        }
        let order = sorted(self.records.len(), |a, b| match (self.records.get(a), self.records.get(b)) {
            (Some(a), Some(b)) => self.compare(a, b),
            _ => Ordering::Equal,
        });
        let record_at = places(&order);
        let mut records: Vec<Record> = order.iter().filter_map(|at| self.records.get(*at).cloned()).collect();
        for record in &mut records {
            for result in &mut record.results {
                result.layer = moved(&layer_at, result.layer);
            }
            for inputs in &mut record.inputs {
                for input in inputs.iter_mut() {
                    input.link = moved(&record_at, input.link);
                }
                inputs.sort_by_key(|input| input.link);
            }
        }
        (self.layers, self.records) = (layers, records);
    }

    fn compare(&self, a: &Record, b: &Record) -> Ordering {
        let digest = |input: &Input| {
            let record = usize::try_from(input.link).ok().and_then(|at| self.records.get(at));
            record.and_then(|r| r.digest.as_ref())
        };
        let lists = || {
            let each = a.inputs.iter().zip(&b.inputs).map(|(a, b)| {
                a.len().cmp(&b.len()).then_with(|| {
                    let pairs = a
                        .iter()
                        .zip(b)
                        .map(|(a, b)| a.selector.cmp(&b.selector).then_with(|| digest(a).cmp(&digest(b))));
                    first(pairs)
                })
            });
            first(each)
        };
        a.digest.cmp(&b.digest).then_with(|| a.inputs.len().cmp(&b.inputs.len())).then_with(lists)
    }

    /// The records, inputs before consumers.
    ///
    /// # Errors
    /// When an index is out of range, or there is a circle.
    pub(crate) fn order(&self) -> std::result::Result<Vec<usize>, Error> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.records.len()];
        let mut order = Vec::with_capacity(self.records.len());
        for start in 0..self.records.len() {
            let mut stack = vec![(start, false)];
            while let Some((at, ready)) = stack.pop() {
                let (Some(mark), Some(record)) = (marks.get_mut(at), self.records.get(at)) else { continue };
                match (*mark, ready) {
                    (_, true) => {
                        *mark = Mark::Done;
                        order.push(at);
                        continue;
                    }
                    (Mark::Done, _) => continue,
                    (Mark::Open, _) => return Err(Error::config("invalid looping record")),
                    (Mark::New, _) => *mark = Mark::Open,
                }
                stack.push((at, true));
                for input in record.inputs.iter().flatten() {
                    let to = usize::try_from(input.link).ok().filter(|to| *to < self.records.len());
                    let to = to.ok_or_else(|| Error::config(format!("invalid record ID: {}", input.link)))?;
                    match marks.get(to) {
                        Some(Mark::Open) => return Err(Error::config("invalid looping record")),
                        Some(Mark::New) => stack.push((to, false)),
                        _ => {}
                    }
                }
            }
        }
        Ok(order)
    }
}

fn first(mut all: impl Iterator<Item = Ordering>) -> Ordering {
    all.find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn sorted(count: usize, compare: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| compare(*a, *b));
    order
}

/// Where each of the old places went.
fn places(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    for (new, old) in order.iter().enumerate() {
        if let Some(place) = places.get_mut(*old) {
            *place = new;
        }
    }
    places
}

fn moved(places: &[usize], at: i64) -> i64 {
    let place = usize::try_from(at).ok().and_then(|at| places.get(at));
    place.and_then(|place| i64::try_from(*place).ok()).unwrap_or(at)
}
