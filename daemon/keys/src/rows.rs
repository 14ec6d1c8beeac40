//! Rows of the tables, and what is done with them in one transaction.

use std::sync::Arc;

use base::{Digest, Timestamp};
use solver::{Change, KeyDigest, KeyId, Link, Record};
use store::{Read, Table, WriteTx};

use crate::Error;

const LINKS: Table = Table("keys.links");
const BACKLINKS: Table = Table("keys.backlinks");
const RESULTS: Table = Table("keys.results");
const HOLDERS: Table = Table("keys.holders");

const NUL: &str = "\0";

/// Refuses names that would run into each other.
pub(crate) fn check(changes: &[Change]) -> Result<(), Error> {
    let fine = |name: &str| {
        if name.contains(NUL) { Err(Error::Name { name: name.to_owned() }) } else { Ok(()) }
    };
    for change in changes {
        match change {
            Change::Link { from, link, to } => {
                fine(from)?;
                fine(to)?;
                fine(&link.digest.to_string())?;
            }
            Change::Result { key, record } => {
                fine(key)?;
                fine(&record.id)?;
            }
        }
    }
    Ok(())
}

fn join(parts: &[&str]) -> Vec<u8> {
    parts.join(NUL).into_bytes()
}

/// Of rows that begin with exactly these parts.
fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut row = join(parts);
    row.push(0);
    row
}

fn link_text(link: &Link) -> String {
    let selector = link.selector.as_ref().map_or("", Digest::as_str);
    let parts = [&link.input.to_string(), &link.output.to_string(), &link.digest.to_string(), selector];
    parts.join(NUL)
}

/// `None` for rows that are not ours to understand; they are passed over.
fn parse_link(parts: &[&str]) -> Option<Link> {
    let [input, output, digest, selector] = parts else { return None };
    let digest = match digest.strip_prefix("random:") {
        Some(text) => KeyDigest::Random(text.into()),
        None => KeyDigest::Stable(digest.parse().ok()?),
    };
    let selector = if selector.is_empty() { None } else { Some(selector.parse().ok()?) };
    Some(Link { input: input.parse().ok()?, output: output.parse().ok()?, digest, selector })
}

/// The parts of each row after `start`, with its value.
fn rest(tx: &impl Read, table: Table, start: &[u8]) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut found = Vec::new();
    tx.scan(table, start, &mut |row, value| {
        if let Some(Ok(text)) = row.get(start.len()..).map(std::str::from_utf8) {
            found.push((text.to_owned(), value.to_vec()));
        }
        true
    })?;
    Ok(found)
}

fn any(tx: &impl Read, table: Table, start: &[u8]) -> Result<bool, Error> {
    let mut found = false;
    tx.scan(table, start, &mut |_, _| {
        found = true;
        false
    })?;
    Ok(found)
}

pub(crate) fn exists(tx: &impl Read, key: &str) -> Result<bool, Error> {
    let start = prefix(&[key]);
    for table in [RESULTS, LINKS, BACKLINKS] {
        if any(tx, table, &start)? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn links(tx: &impl Read, key: &str, link: &Link) -> Result<Vec<KeyId>, Error> {
    let found = rest(tx, LINKS, &prefix(&[key, &link_text(link)]))?;
    Ok(found.into_iter().map(|(to, _)| to.into()).collect())
}

pub(crate) fn backlinks(tx: &impl Read, key: &str) -> Result<Vec<(KeyId, Link)>, Error> {
    let parse = |(row, _): (String, Vec<u8>)| {
        let (from, link) = row.split_once(NUL)?;
        Some((from.into(), parse_link(&link.split(NUL).collect::<Vec<_>>())?))
    };
    Ok(rest(tx, BACKLINKS, &prefix(&[key]))?.into_iter().filter_map(parse).collect())
}

pub(crate) fn results(tx: &impl Read, key: &str) -> Result<Vec<Record>, Error> {
    let record = |(id, value): (String, Vec<u8>)| {
        let created = Timestamp::from_nanos(i64::from_le_bytes(value.try_into().ok()?));
        Some(Record { id: id.into(), created })
    };
    Ok(rest(tx, RESULTS, &prefix(&[key]))?.into_iter().filter_map(record).collect())
}

pub(crate) fn keys_of(tx: &impl Read, result: &str) -> Result<Vec<KeyId>, Error> {
    Ok(rest(tx, HOLDERS, &prefix(&[result]))?.into_iter().map(|(key, _)| key.into()).collect())
}

pub(crate) fn all_results(tx: &impl Read) -> Result<Vec<Arc<str>>, Error> {
    let mut all: Vec<Arc<str>> = Vec::new();
    for (row, _) in rest(tx, HOLDERS, b"")? {
        let result = row.split(NUL).next().unwrap_or_default();
        if all.last().is_none_or(|last| &**last != result) {
            all.push(result.into());
        }
    }
    Ok(all)
}

pub(crate) fn apply(tx: &WriteTx, changes: &[Change]) -> Result<(), Error> {
    for change in changes {
        match change {
            Change::Link { from, link, to } => {
                let link = link_text(link);
                tx.put(LINKS, &join(&[from, &link, to]), b"")?;
                tx.put(BACKLINKS, &join(&[to, from, &link]), b"")?;
            }
            Change::Result { key, record } => {
                tx.put(RESULTS, &join(&[key, &record.id]), &record.created.nanos().to_le_bytes())?;
                tx.put(HOLDERS, &join(&[&record.id, key]), b"")?;
            }
        }
    }
    Ok(())
}

/// Forgets a result and the keys that lead to no other.
pub(crate) fn release(tx: &WriteTx, result: &str) -> Result<(), Error> {
    let mut dead = keys_of(tx, result)?;
    for key in &dead {
        tx.delete(RESULTS, &join(&[key, result]))?;
    }
    tx.delete_prefix(HOLDERS, &prefix(&[result]))?;
    while let Some(key) = dead.pop() {
        let start = prefix(&[&key]);
        if any(tx, LINKS, &start)? || any(tx, RESULTS, &start)? {
            continue;
        }
        for (row, _) in rest(tx, BACKLINKS, &start)? {
            if let Some((from, link)) = row.split_once(NUL) {
                tx.delete(LINKS, &join(&[from, link, &key]))?;
                dead.push(from.into());
            }
        }
        tx.delete_prefix(BACKLINKS, &start)?;
    }
    Ok(())
}
