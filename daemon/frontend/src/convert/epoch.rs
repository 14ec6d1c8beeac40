//! `SOURCE_DATE_EPOCH`: the time that times of files are limited to.
//!
//! The build argument is a number of seconds, or names where to look: the
//! context, a named context, or a stage that only fetches one thing.

use std::collections::BTreeMap;
use std::io::Read;

use base::{Failure, Kind, Timestamp};
use llb::attr;
use llb::build::{EnvList, Git, Http, State};
use prost::Message;
use proto::pb;

use super::Options;
use super::copy::{http_filename, is_http};
use super::error::{Failed, Result};
use super::plan::SCRATCH;
use crate::dockerfile::instructions::{Add, Command, Stage};
use crate::dockerfile::shell::Lex;
use crate::dockerui::Client;
use crate::gateway::{GitMeta, ResolveSource, SourceMeta};
use crate::gitref;

const KEY: &str = "SOURCE_DATE_EPOCH";

/// A point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    nanos: i64,
    text: String,
}

impl Epoch {
    fn utc(nanos: i64) -> Self {
        Self { nanos, text: rfc3339(nanos, 0) }
    }

    fn seconds_utc(seconds: i64) -> Self {
        // Beyond the year 2262 nanoseconds overflow; the text does not matter there.
        Self::utc(seconds.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since 1970.
    pub fn nanos(&self) -> i64 {
        self.nanos
    }

    /// Whole seconds since 1970.
    pub fn seconds(&self) -> i64 {
        self.nanos.div_euclid(1_000_000_000)
    }

    /// RFC 3339, in the time zone of whoever said it.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// What is asked for, if anything is.
pub(super) fn wanted(build_args: &BTreeMap<String, String>, global: &EnvList) -> Option<String> {
    let given = build_args.get(KEY).cloned();
    given.or_else(|| global.get(KEY).filter(|v| !v.is_empty()).map(str::to_owned))
}

/// Puts the number in place of what was asked for, or takes the argument away.
pub(super) fn settle(epoch: Option<&Epoch>, build_args: &mut BTreeMap<String, String>, global: &mut EnvList) {
    let value = epoch.map(|e| e.seconds().to_string());
    if let Some(given) = build_args.get_mut(KEY) {
        match &value {
            Some(value) => given.clone_from(value),
            None => _ = build_args.remove(KEY),
        }
    }
    if global.get(KEY).is_some() {
        match value {
            Some(value) => global.set(KEY, value),
            None => global.unset(KEY),
        }
    }
}

/// Finds out the time.
pub(super) async fn resolve(
    value: &str,
    options: &Options,
    stages: &[Stage],
    global: &EnvList,
    build_args: &BTreeMap<String, String>,
    lex: &Lex,
) -> Result<Option<Epoch>> {
    if value.is_empty() {
        return Ok(None);
    }
    if let Ok(seconds) = base::gotext::parse_int(value, 64) {
        return Ok(Some(Epoch::seconds_utc(seconds)));
    }
    let client = &*options.client;
    let (state, log_name) = if value == "context" {
        let log_name = "[internal] resolve main build context metadata".to_owned();
        (client.main_context(Vec::new()).await?, log_name)
    } else if let Some(named) = client.named_context(value, None, "")? {
        let log_name = format!("[internal] resolve SOURCE_DATE_EPOCH named context {value}");
        let loaded = client.load(&named).await?;
        if let Some(pending) = &loaded.pending {
            pending.set(Vec::new());
        }
        (loaded.state, log_name)
    } else {
        let named = |s: &&Stage| !s.name.is_empty() && s.name.to_lowercase() == value.to_lowercase();
        let Some(stage) = stages.iter().find(named) else {
            return Err(Failed::new(format!("invalid SOURCE_DATE_EPOCH: {value}")));
        };
        let mut env = global.clone();
        env.unset(KEY);
        let state = stage_source(stage, build_args, env, lex).map_err(|e| e.at(stage.lines))?;
        (state, format!("[internal] resolve SOURCE_DATE_EPOCH source stage {}", stage.name))
    };
    Ok(of_state(client, &state, log_name).await?)
}

/// The one thing a stage fetches.
fn stage_source(
    stage: &Stage,
    build_args: &BTreeMap<String, String>,
    mut env: EnvList,
    lex: &Lex,
) -> Result<State> {
    const ONE: &str = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD";
    let base = lex.expand(&stage.base_name, &env).map_err(|e| {
        let name = base::gotext::quote(&stage.base_name);
        Failed::from(e).context(format!("failed to process source stage base name {name}"))
    })?;
    if base.text != SCRATCH {
        return Err(Failed::new("SOURCE_DATE_EPOCH stage must use FROM scratch"));
    }
    let mut source = None;
    for instruction in &stage.instructions {
        match &instruction.command {
            Command::Arg(arg) => {
                for var in &arg.vars {
                    if let Some(value) = build_args.get(&var.key) {
                        env.set(&var.key, value.as_str());
                    } else if let Some(default) = &var.value {
                        let value = lex.expand(default, &env)?.text;
                        env.set(&var.key, value);
                    }
                }
            }
            Command::Add(add) => {
                if source.is_some() {
                    return Err(Failed::new(ONE));
                }
                source = Some(add_source(add, &env, lex)?);
            }
            _ => {
                return Err(Failed::new(format!(
                    "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {} instruction",
                    instruction.name
                )));
            }
        }
    }
    source.ok_or_else(|| Failed::new(ONE))
}

fn add_source(add: &Add, env: &EnvList, lex: &Lex) -> Result<State> {
    let [path] = add.sources.paths.as_slice() else {
        return Err(Failed::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source"));
    };
    if !add.sources.contents.is_empty() {
        return Err(Failed::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source"));
    }
    let source = lex.expand(path, env)?.text;
    let checksum = lex.expand(&add.checksum, env)?.text;
    if is_http(&source) {
        let checksum = match checksum.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e: base::digest::ParseError| Failed::new(e.to_string()))?),
        };
        return Ok(Http { filename: http_filename(&source), checksum, ..Http::default() }.state(&source));
    }
    match gitref::parse(&source)?.filter(|g| !g.like_a_path) {
        Some(git) => Ok(Git {
            reference: git.reference,
            subdir: git.subdir,
            keep_git_dir: add.keep_git_dir == Some(true) || git.keep_git_dir == Some(true),
            checksum: if checksum.is_empty() { git.checksum } else { checksum },
            skip_submodules: git.submodules == Some(false),
            ..Git::default()
        }
        .state(&git.remote)),
        None => Err(Failed::new("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")),
    }
}

/// The time of a source: of a commit, of a file, or the last in an archive.
async fn of_state(
    client: &Client,
    state: &State,
    log_name: String,
) -> std::result::Result<Option<Epoch>, Failure> {
    let Some(source) = source_op(state, client)? else { return Ok(None) };
    let is_http = source.identifier.starts_with("http://") || source.identifier.starts_with("https://");
    let request = ResolveSource {
        git_objects: source.identifier.starts_with("git://"),
        source: source.clone(),
        log_name,
        ..ResolveSource::default()
    };
    let meta = client.gateway().resolve_source_meta(request).await?;
    if let Some(answer) = of_meta(&meta)? {
        return Ok(answer);
    }
    let filename = source.attrs.get(attr::HTTP_FILENAME).cloned().unwrap_or_default();
    if !is_http || filename.is_empty() {
        return Ok(None);
    }
    let state = State::source(source.identifier, source.attrs, llb::build::Options::new());
    let reference = client.solve(&state, false).await?;
    let data = client.read(reference.as_ref(), &filename, None).await?;
    base::task::blocking(move || Ok(last_time(&data))).await
}

/// The only source of a state; `None` when there are several or none.
fn source_op(state: &State, client: &Client) -> std::result::Result<Option<pb::SourceOp>, Failure> {
    let mut found = None;
    for bytes in &state.marshal(&client.defaults())?.def {
        let op = pb::Op::decode(bytes.as_slice())
            .map_err(|e| Failure::internal(format!("read back a definition: {e}")))?;
        if let Some(pb::op::Op::Source(source)) = op.op
            && found.replace(source).is_some()
        {
            return Ok(None);
        }
    }
    Ok(found)
}

/// The outer option is whether the source says anything, the inner what.
fn of_meta(meta: &SourceMeta) -> std::result::Result<Option<Option<Epoch>>, Failure> {
    if let Some(GitMeta { commit_object, .. }) = &meta.git
        && !commit_object.is_empty()
    {
        return commit_time(&String::from_utf8_lossy(commit_object)).map(Some);
    }
    let modified = meta.http.as_ref().and_then(|h| h.last_modified);
    Ok(modified.map(|t: Timestamp| Some(Epoch::utc(t.nanos()))))
}

/// When a commit was made, as its object says.
fn commit_time(object: &str) -> std::result::Result<Option<Epoch>, Failure> {
    let bad = |text: String| Failure::new(Kind::Unknown, text);
    if object.starts_with("object ") {
        return Err(bad("not a commit object".to_owned()));
    }
    let headers: Vec<(&str, &str)> =
        object.lines().take_while(|l| !l.is_empty()).filter_map(|l| l.split_once(' ')).collect();
    let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    for name in ["tree", "author", "committer"] {
        if header(name).is_none() {
            return Err(bad(format!("invalid commit object: missing {name} header")));
        }
    }
    let committer = header("committer").unwrap_or_default();
    Ok(committer.rsplit_once('>').and_then(|(_, when)| actor_time(when)))
}

/// `<seconds> <zone>`.
fn actor_time(text: &str) -> Option<Epoch> {
    let mut words = text.split_whitespace();
    let seconds = base::gotext::parse_int(words.next()?, 64).ok()?;
    let zone = words.next()?;
    if zone.len() != 5 || !zone.is_ascii() {
        return None;
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let number = |t: Option<&str>| t.and_then(|t| t.parse::<i64>().ok()).unwrap_or(0);
    let offset = sign * (number(zone.get(1..3)) * 3600 + number(zone.get(3..5)) * 60);
    let nanos = seconds.saturating_mul(1_000_000_000);
    Some(Epoch { nanos, text: rfc3339(nanos, offset) })
}

/// The last time of a file in an archive, perhaps compressed with gzip; `None`
/// when it is no archive.
fn last_time(data: &[u8]) -> Option<Epoch> {
    let reader: Box<dyn Read + '_> = match data {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::read::MultiGzDecoder::new(data)),
        _ => Box::new(data),
    };
    let mut archive = tar::Archive::new(reader);
    let mut last: Option<u64> = None;
    for entry in archive.entries().ok()? {
        let entry = entry.ok()?;
        if entry.header().entry_type().is_file() {
            last = last.max(Some(entry.header().mtime().ok()?));
        }
    }
    Some(Epoch::seconds_utc(i64::try_from(last?).ok()?))
}

/// A point in time as JSON has it, `offset` seconds east of Greenwich.
fn rfc3339(nanos: i64, offset: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let local = seconds + offset;
    let (days, rest) = (local.div_euclid(86_400), local.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    let fraction = match fraction {
        0 => String::new(),
        f => format!(".{f:09}").trim_end_matches('0').to_owned(),
    };
    let zone = match offset {
        0 => "Z".to_owned(),
        o => {
            let (sign, o) = if o < 0 { ('-', -o) } else { ('+', o) };
            format!("{sign}{:02}:{:02}", o / 3_600, o / 60 % 60)
        }
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_times() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_709_210_096_500_000_000, 0), "2024-02-29T12:34:56.5Z");
        assert_eq!(rfc3339(-1_000_000_000, 0), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339(0, -5_400), "1969-12-31T22:30:00-01:30");
    }

    #[test]
    fn reads_commits() {
        let object = "tree a\nauthor A <a@b> 1 +0000\ncommitter B <b@c> 1700000000 +0200\n\nmessage\n";
        let epoch = commit_time(object).unwrap().unwrap();
        assert_eq!((epoch.seconds(), epoch.text()), (1_700_000_000, "2023-11-15T00:13:20+02:00"));
        assert!(commit_time("tree a\n\n").is_err());
        assert_eq!(last_time(b"no archive"), None);
    }
}
