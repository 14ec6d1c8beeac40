//! What steps are called, and other words about them.

use base::Platform;
use base::failure;
use llb::build::{EnvList, Options, SourceMap};
use proto::pb;
use std::sync::Arc;

use super::platform::cross;
use super::stage::Stage;
use crate::dockerfile::Lines;
use crate::dockerfile::instructions::ArgVar;
use crate::dockerfile::shell::{Env, Lex};

/// Where the command of a vertex is described.
const COMMAND: &str = "com.docker.dockerfile.v1.command";

/// Options that say which command of the file a vertex comes from.
pub(super) fn command(code: &str) -> Options {
    Options::new().description(COMMAND, code)
}

/// Options that say where in the file a vertex comes from.
pub(super) fn located(options: Options, map: &Arc<SourceMap>, lines: Lines) -> Options {
    options.location(map, wire_ranges(lines))
}

/// Places in the file. An image that is only mounted from is nowhere.
pub(super) fn places(lines: Lines) -> Vec<failure::Range> {
    if lines == Lines::default() { Vec::new() } else { lines.ranges() }
}

fn wire_ranges(lines: Lines) -> Vec<pb::Range> {
    let position = |p: failure::Position| Some(pb::Position { line: p.line, character: p.character });
    places(lines).iter().map(|r| pb::Range { start: position(r.start), end: position(r.end) }).collect()
}

/// Numbers a step and says so: `[stage 2/5] RUN …`.
pub(super) fn step(
    stage: &mut Stage,
    text: &str,
    with_platform: bool,
    platform: Option<&Platform>,
    env: &EnvList,
) -> String {
    if stage.total == 0 {
        return text.to_owned();
    }
    let mut name = String::from("[");
    if with_platform && let Some(platform) = platform {
        name.push_str(&platform.format_all());
        name.push_str(&cross(platform, env));
        name.push(' ');
    }
    if !stage.title.is_empty() {
        name.push_str(&stage.title);
        name.push(' ');
    }
    stage.index += 1;
    let width = stage.total.to_string().len();
    name.push_str(&format!("{:width$}/{}] ", stage.index, stage.total));
    if stage.in_trigger {
        name.push_str("ONBUILD ");
    }
    name.push_str(text);
    name
}

/// With its first word in capitals.
pub(super) fn uppercase(text: &str) -> String {
    match text.split_once(' ') {
        Some((first, rest)) => format!("{} {rest}", first.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// With variables replaced; as it is when that fails.
pub(super) fn expanded(lex: &Lex, text: &str, env: &dyn Env) -> String {
    lex.expand(text, env).map_or_else(|_| text.to_owned(), |e| e.text)
}

/// A command as histories have it: build arguments first.
pub(super) fn run_history(args: &[String], build_args: &[ArgVar], env: &EnvList) -> String {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for arg in build_args {
        let value = env.get(&arg.key).map(str::to_owned).or_else(|| arg.value.clone()).unwrap_or_default();
        let text = format!("{}={value}", arg.key);
        match pairs.iter_mut().find(|(key, _)| *key == arg.key) {
            Some((_, old)) => *old = text,
            None => pairs.push((&arg.key, text)),
        }
    }
    let mut words = Vec::new();
    if !pairs.is_empty() {
        words.push(format!("|{}", pairs.len()));
    }
    words.extend(pairs.into_iter().map(|(_, text)| text));
    words.extend_from_slice(args);
    words.join(" ")
}

/// The first line of a document, with dots when there is more.
pub(super) fn summary(document: &str) -> String {
    let text = document.trim().replace("\r\n", "\n");
    match text.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}

/// `["a" "b"]`, each quoted.
pub(super) fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|w| base::gotext::quote(w)).collect();
    format!("[{}]", words.join(" "))
}
