//! From words to instructions.

use std::collections::HashMap;
use std::time::Duration;

use base::gotext::{parse_duration, parse_int};

use super::super::lint::{Linter, Violation};
use super::super::parser::{self, Node, chomp, heredoc};
use super::super::suggest::suggest;
use super::super::text::{is_ascii_space, lossy};
use super::super::{Error, Lines};
use super::flags::{Flags, Takes};
use super::{
    Add, Arg, ArgVar, Command, CommandLine, Copy, Device, Dockerfile, Healthcheck, InlineFile, Instruction,
    KeyValue, Label, Network, Problem, Run, Security, SourceContent, Sources, Stage, mount,
};

/// Every keyword.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads the instructions of a file and puts them into stages.
///
/// # Errors
/// With the line and the place of the first instruction that is wrong.
pub fn parse(nodes: &[Node], linter: &Linter) -> Result<Dockerfile, Error> {
    let mut file = Dockerfile::default();
    for node in nodes {
        let parsed = read(node, linter).map_err(|problem| Error {
            line: Some(node.lines.first),
            ..Error::from(problem).at(node.lines)
        })?;
        match (parsed, file.stages.last_mut()) {
            (Read::Stage(stage), _) => file.stages.push(stage),
            (Read::Command(command), Some(stage)) => stage.instructions.push(instruction(node, command)),
            (Read::Command(Command::Arg(arg)), None) => file.args.push(instruction(node, arg)),
            (Read::Command(_), None) => return Err(Error::from(Problem::NoStage).at(node.lines)),
        }
    }
    Ok(file)
}

/// Reads the instruction that an image keeps for builds upon it. Errors and the
/// result are placed at `lines`, the `FROM` which brought it.
///
/// # Errors
/// When it is not exactly one instruction, or one that begins a stage.
pub fn parse_trigger(expression: &str, lines: Lines) -> Result<Instruction, Error> {
    let parsed = parser::parse(expression.as_bytes()).map_err(|e| e.only_at(lines))?;
    let Ok([mut node]) = <[Node; 1]>::try_from(parsed.nodes) else {
        return Err(Error::from(Problem::SeveralTriggers).at(lines));
    };
    node.lines = lines;
    match read(&node, &Linter::off()) {
        Ok(Read::Command(command)) => Ok(instruction(&node, command)),
        Ok(Read::Stage(_)) => Err(Error::from(Problem::NotACommand).at(lines)),
        Err(problem) => Err(Error::from(problem).at(lines)),
    }
}

enum Read {
    Stage(Stage),
    Command(Command),
}

fn instruction<C>(node: &Node, command: C) -> Instruction<C> {
    Instruction {
        name: node.keyword.clone(),
        code: node.original.trim().to_owned(),
        lines: node.lines,
        comments: node.comments.clone(),
        command,
    }
}

fn read(node: &Node, linter: &Linter) -> Result<Read, Problem> {
    let linter = linter.for_comments(&node.comments);
    let args = node.args();
    Ok(Read::Command(match node.keyword.to_lowercase().as_str() {
        "from" => {
            casing(node, &args, &linter);
            let stage = from(node, args)?;
            if !stage.name.is_empty() {
                description("FROM", &[&stage.name], node, &linter);
            }
            return Ok(Read::Stage(stage));
        }
        "add" => Command::Add(add(node, args)?),
        "arg" => {
            let arg = arg(node, args)?;
            let keys: Vec<_> = arg.vars.iter().map(|v| v.key.as_str()).collect();
            description("ARG", &keys, node, &linter);
            Command::Arg(arg)
        }
        "cmd" => {
            no_flags(node)?;
            Command::Cmd(command_line(node, args))
        }
        "copy" => Command::Copy(copy(node, args)?),
        "entrypoint" => {
            no_flags(node)?;
            Command::Entrypoint(command_line(node, args))
        }
        "env" => Command::Env(key_values(node, args, "ENV")?),
        "expose" => {
            let mut ports = at_least_one(args, "EXPOSE")?;
            no_flags(node)?;
            ports.sort_unstable();
            Command::Expose(ports)
        }
        "healthcheck" => Command::Healthcheck(healthcheck(node, args)?),
        "label" => Command::Label(Label { labels: key_values(node, args, "LABEL")?, literal: false }),
        "maintainer" => {
            linter.report(node.lines, &Violation::Maintainer);
            Command::Maintainer(one(node, args, "MAINTAINER")?)
        }
        "onbuild" => Command::Onbuild(onbuild(node, args)?),
        "run" => Command::Run(run(node, args)?),
        "shell" => {
            no_flags(node)?;
            let shell = at_least_one(args, "SHELL")?;
            if !node.json {
                return Err(Problem::NotJson("SHELL"));
            }
            Command::Shell(shell)
        }
        // Flags of a STOPSIGNAL and of an ARG are not looked at.
        "stopsignal" => Command::StopSignal(exactly_one(args, "STOPSIGNAL")?),
        "user" => Command::User(one(node, args, "USER")?),
        "volume" => {
            let volumes = at_least_one(args, "VOLUME")?;
            no_flags(node)?;
            let trimmed = volumes.iter().map(|v| v.trim()).map(|v| match v {
                "" => Err(Problem::EmptyVolume),
                _ => Ok(v.to_owned()),
            });
            Command::Volume(trimmed.collect::<Result<_, _>>()?)
        }
        "workdir" => Command::Workdir(one(node, args, "WORKDIR")?),
        _ => {
            return Err(Problem::UnknownInstruction {
                name: node.keyword.clone(),
                suggestion: suggest(&node.keyword, KEYWORDS, false),
            });
        }
    }))
}

fn no_flags(node: &Node) -> Result<(), Problem> {
    Flags::parse(&node.flags, &[]).map(drop)
}

fn at_least_one(args: Vec<String>, keyword: &'static str) -> Result<Vec<String>, Problem> {
    if args.is_empty() { Err(Problem::AtLeastOne(keyword)) } else { Ok(args) }
}

fn exactly_one(args: Vec<String>, keyword: &'static str) -> Result<String, Problem> {
    match <[String; 1]>::try_from(args) {
        Ok([arg]) => Ok(arg),
        Err(_) => Err(Problem::ExactlyOne(keyword)),
    }
}

fn one(node: &Node, args: Vec<String>, keyword: &'static str) -> Result<String, Problem> {
    let arg = exactly_one(args, keyword)?;
    no_flags(node)?;
    Ok(arg)
}

/// Stage names in lower case, and `AS` as `FROM`.
fn casing(node: &Node, args: &[String], linter: &Linter) {
    if let [_, _, name] = args
        && *name != name.to_lowercase()
    {
        linter.report(node.lines, &Violation::StageNameCasing { name: name.clone() });
    }
    let [_, keyword, _, ..] = args else { return };
    let from = &node.keyword;
    let fits = if *from == from.to_lowercase() {
        *keyword == keyword.to_lowercase()
    } else {
        // A keyword that is neither is another rule's.
        *from != from.to_uppercase() || *keyword == keyword.to_uppercase()
    };
    if !fits {
        linter.report(node.lines, &Violation::FromAsCasing { from: from.clone(), keyword: keyword.clone() });
    }
}

/// The last comment above a definition should begin with one of its names.
fn description(instruction: &'static str, names: &[&str], node: &Node, linter: &Linter) {
    let (Some(comment), Some(&first)) = (node.comments.last(), names.first()) else { return };
    let word = comment.split(' ').next().unwrap_or_default();
    if !names.contains(&word) {
        let name = if names.len() > 1 { "<arg_key>" } else { first };
        linter.report(node.lines, &Violation::DefinitionDescription { instruction, name: name.to_owned() });
    }
}

/// The description in the first comment `# name description`.
fn doc(comments: &[String], name: &str) -> String {
    let description =
        |line: &'_ String| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).map(str::to_owned);
    if name.is_empty() { String::new() } else { comments.iter().find_map(description).unwrap_or_default() }
}

fn from(node: &Node, args: Vec<String>) -> Result<Stage, Problem> {
    let (base_name, name) = match <[String; 3]>::try_from(args) {
        Ok([base, keyword, name]) if keyword.eq_ignore_ascii_case("as") => (base, stage_name(&name)?),
        Ok(_) => return Err(Problem::FromArguments),
        Err(args) => match <[String; 1]>::try_from(args) {
            Ok([base]) => (base, String::new()),
            Err(_) => return Err(Problem::FromArguments),
        },
    };
    let mut flags = Flags::parse(&node.flags, &[("platform", Takes::Value)])?;
    Ok(Stage {
        doc: doc(&node.comments, &name),
        name,
        base_name,
        platform: flags.value("platform"),
        keyword: node.keyword.clone(),
        code: node.original.trim().to_owned(),
        lines: node.lines,
        comments: node.comments.clone(),
        instructions: Vec::new(),
    })
}

fn stage_name(written: &str) -> Result<String, Problem> {
    let name = written.to_lowercase();
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(rest) {
        Ok(name)
    } else {
        Err(Problem::StageName(written.to_owned()))
    }
}

fn key_values(node: &Node, args: Vec<String>, keyword: &'static str) -> Result<Vec<KeyValue>, Problem> {
    no_flags(node)?;
    let args = at_least_one(args, keyword)?;
    let triples = args.chunks(3).map(|triple| match triple {
        [key, ..] if key.is_empty() => Err(Problem::BlankName(keyword)),
        [key, value, between] => {
            Ok(KeyValue { key: key.clone(), value: value.clone(), legacy: between.is_empty() })
        }
        _ => Err(Problem::TooMany(keyword)),
    });
    triples.collect()
}

fn arg(node: &Node, args: Vec<String>) -> Result<Arg, Problem> {
    let var = |arg: String| {
        let (key, value) = match arg.split_once('=') {
            Some(("", _)) => return Err(Problem::BlankName("ARG")),
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        Ok(ArgVar { doc: doc(&node.comments, &key), key, value })
    };
    Ok(Arg { vars: at_least_one(args, "ARG")?.into_iter().map(var).collect::<Result<_, _>>()? })
}

fn command_line(node: &Node, args: Vec<String>) -> CommandLine {
    let file = |doc: &parser::Heredoc| InlineFile {
        name: doc.name.clone(),
        data: doc.content.clone(),
        chomp: doc.chomp,
    };
    CommandLine {
        args: shell_args(args, node.json),
        files: node.heredocs.iter().map(file).collect(),
        shell: !node.json,
    }
}

/// What is not an array is one argument.
fn shell_args(args: Vec<String>, json: bool) -> Vec<String> {
    if json || args.is_empty() { args } else { vec![args.join(" ")] }
}

fn run(node: &Node, args: Vec<String>) -> Result<Run, Problem> {
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("device", Takes::Values),
            ("mount", Takes::Values),
            ("network", Takes::Value),
            ("security", Takes::Value),
        ],
    )?;
    let mut value = |name: &str| flags.switch(name).is_some().then(|| flags.value(name));
    let (network, security) = (value("network"), value("security"));
    let devices = flags.values("device");
    let mount_flags = flags.values("mount");
    Ok(Run {
        devices: devices.iter().map(|d| Device::parse(d)).collect::<Result<_, _>>()?,
        mounts: mount_flags.iter().map(|m| mount::parse(m)).collect::<Result<_, _>>()?,
        network: network.map_or(Ok(Network::Default), |n| Network::parse(&n))?,
        security: security.map_or(Ok(Security::Sandbox), |s| Security::parse(&s))?,
        mount_flags,
        flags_used: flags.used(),
        line: command_line(node, args),
    })
}

fn add(node: &Node, args: Vec<String>) -> Result<Add, Problem> {
    if args.len() < 2 {
        return Err(Problem::NoDestination("ADD"));
    }
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("chown", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("keep-git-dir", Takes::Bool),
            ("checksum", Takes::Value),
            ("unpack", Takes::Bool),
            ("exclude", Takes::Values),
        ],
    )?;
    Ok(Add {
        sources: sources(node, args, "ADD")?,
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link").unwrap_or_default(),
        exclude: flags.values("exclude"),
        keep_git_dir: flags.switch("keep-git-dir"),
        checksum: flags.value("checksum"),
        unpack: flags.switch("unpack"),
    })
}

fn copy(node: &Node, args: Vec<String>) -> Result<Copy, Problem> {
    if args.len() < 2 {
        return Err(Problem::NoDestination("COPY"));
    }
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("chown", Takes::Value),
            ("from", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("exclude", Takes::Values),
            ("parents", Takes::Bool),
        ],
    )?;
    Ok(Copy {
        sources: sources(node, args, "COPY")?,
        from: flags.value("from"),
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link").unwrap_or_default(),
        exclude: flags.values("exclude"),
        parents: flags.switch("parents").unwrap_or_default(),
    })
}

fn sources(node: &Node, mut args: Vec<String>, keyword: &'static str) -> Result<Sources, Problem> {
    let Some(dest) = args.pop() else { return Err(Problem::NoDestination(keyword)) };
    if heredoc(&dest).is_some() {
        return Err(Problem::HeredocDestination(keyword));
    }
    let mut sources = Sources { dest, ..Sources::default() };
    // Of several with one name the last counts.
    let contents: HashMap<_, _> =
        node.heredocs.iter().map(|d| (d.name.as_str(), d.content.as_slice())).collect();
    for arg in args {
        let Some(doc) = heredoc(&arg) else {
            sources.paths.push(arg);
            continue;
        };
        let content = contents.get(doc.name.as_str()).copied().unwrap_or_default();
        sources.contents.push(SourceContent {
            data: if doc.chomp { chomp(content) } else { content.to_vec() },
            path: doc.name,
            expand: doc.expand,
        });
    }
    Ok(sources)
}

fn onbuild(node: &Node, args: Vec<String>) -> Result<String, Problem> {
    let args = at_least_one(args, "ONBUILD")?;
    no_flags(node)?;
    let trigger = args.first().map(|t| t.trim().to_uppercase()).unwrap_or_default();
    match trigger.as_str() {
        "ONBUILD" => return Err(Problem::OnbuildOnbuild),
        "MAINTAINER" | "FROM" => return Err(Problem::OnbuildTrigger(trigger)),
        _ => {}
    }
    let original = node.original.trim_start_matches(is_ascii_space);
    let mut expression = match original.get(..7) {
        Some(keyword) if keyword.eq_ignore_ascii_case("onbuild") => {
            original[7..].trim_start_matches(is_ascii_space).to_owned()
        }
        _ => node.original.clone(),
    };
    for doc in &node.heredocs {
        expression.push('\n');
        expression.push_str(&lossy(&doc.content));
        expression.push_str(&doc.name);
    }
    Ok(expression)
}

fn healthcheck(node: &Node, args: Vec<String>) -> Result<Healthcheck, Problem> {
    let mut args = args.into_iter();
    let Some(kind) = args.next() else { return Err(Problem::AtLeastOne("HEALTHCHECK")) };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if args.next().is_some() {
            return Err(Problem::HealthNoneArguments);
        }
        return Ok(Healthcheck { test: vec![kind], ..Healthcheck::default() });
    }
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("interval", Takes::Value),
            ("timeout", Takes::Value),
            ("start-period", Takes::Value),
            ("start-interval", Takes::Value),
            ("retries", Takes::Value),
        ],
    )?;
    if kind != "CMD" {
        return Err(Problem::HealthType(kind));
    }
    let command = shell_args(args.collect(), node.json);
    if command.is_empty() {
        return Err(Problem::HealthNoCommand);
    }
    let kind = if node.json { kind } else { "CMD-SHELL".to_owned() };
    let mut length = |name| interval(name, &flags.value(name));
    Ok(Healthcheck {
        test: std::iter::once(kind).chain(command).collect(),
        interval: length("interval")?,
        timeout: length("timeout")?,
        start_period: length("start-period")?,
        start_interval: length("start-interval")?,
        retries: match flags.value("retries").as_str() {
            "" => 0,
            text => {
                let retries = parse_int(text, 32)?;
                u32::try_from(retries)
                    .ok()
                    .and_then(|r| i32::try_from(r).ok())
                    .ok_or(Problem::HealthRetries(retries))?
            }
        },
    })
}

/// A length of time, zero when it is empty.
fn interval(name: &'static str, text: &str) -> Result<Duration, Problem> {
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    match parse_duration(text)? {
        (_, Duration::ZERO) => Ok(Duration::ZERO),
        (false, length) if length >= Duration::from_millis(1) => Ok(length),
        _ => Err(Problem::HealthInterval(name)),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
