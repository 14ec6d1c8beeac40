//! Rules that need no more than parsed stages, values and names.
//!
//! Which of them are called when is the converter's affair; what they need
//! beyond the file is given as arguments.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use base::Platform;
use base::gopath;
use base::patterns::{self, Matcher};
use regex::Regex;

use super::super::Lines;
use super::super::instructions::{Instruction, Stage};
use super::super::parser::EmptyContinuation;
use super::super::shell::{Env, Expanded};
use super::super::suggest::{search, suggest};
use super::{Linter, Violation};

/// Empty lines within instructions.
pub fn empty_continuations(warnings: &[EmptyContinuation], linter: &Linter) {
    for warning in warnings {
        linter.report(warning.lines, &Violation::EmptyContinuation);
    }
}

/// Stage names that are reserved or used twice.
pub fn stage_names(stages: &[Stage], linter: &Linter) {
    let mut seen = BTreeSet::new();
    for Stage { name, lines, .. } in stages.iter().filter(|s| !s.name.is_empty()) {
        if matches!(name.as_str(), "context" | "scratch") {
            linter.report(*lines, &Violation::ReservedStageName { name: name.clone() });
        }
        if !seen.insert(name) {
            linter.report(*lines, &Violation::DuplicateStageName { name: name.clone() });
        }
    }
}

/// Keywords that are not written as most of them are.
pub fn instruction_casing(stages: &[Stage], linter: &Linter) {
    let keywords = || {
        stages.iter().flat_map(|stage| {
            let own = std::iter::once((&stage.keyword, stage.lines));
            own.chain(stage.instructions.iter().map(|i| (&i.name, i.lines)))
        })
    };
    let is_lower = |s: &str| s == s.to_lowercase();
    let is_upper = |s: &str| s == s.to_uppercase();
    let lower = keywords().filter(|(k, _)| is_lower(k)).count();
    let upper = keywords().filter(|(k, _)| !is_lower(k) && is_upper(k)).count();
    let (fits, casing): (fn(&str) -> bool, _) =
        if lower > upper { (is_lower, "lowercase") } else { (is_upper, "uppercase") };
    for (keyword, lines) in keywords().filter(|(k, _)| !fits(k)) {
        linter.report(lines, &Violation::InstructionCasing { name: keyword.clone(), casing });
    }
}

/// A base image that only has a valid name when a build argument is given:
/// `valid` says whether the expanded name is one.
pub fn default_base_names(
    stages: &[Stage],
    mut expand: impl FnMut(&str) -> Option<String>,
    valid: impl Fn(&str) -> bool,
    linter: &Linter,
) {
    for stage in stages {
        let Some(name) = expand(&stage.base_name) else { return };
        if !valid(&name) {
            linter.report(stage.lines, &Violation::DefaultArgInFrom { base: stage.base_name.clone() });
        }
    }
}

/// Variables in an instruction that are neither build arguments nor set.
pub fn undefined_variables<C>(
    instruction: &Instruction<C>,
    unmatched: &BTreeSet<String>,
    build_args: &BTreeSet<String>,
    env: &dyn Env,
    linter: &Linter,
) {
    // These are not variables of the build, even when they are declared.
    const ALWAYS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
    let names = env.names();
    for name in unmatched.difference(build_args).filter(|n| !ALWAYS.contains(&n.as_str())) {
        let meant = search(name, names.iter().copied(), true).filter(|m| !m.is_empty());
        linter.report(instruction.lines, &Violation::UndefinedVar { name: name.clone(), meant });
    }
}

/// Variables in `FROM` that are not declared before it.
pub fn undefined_from_args(
    declared: &BTreeSet<String>,
    unmatched: &BTreeSet<String>,
    lines: Lines,
    linter: &Linter,
) {
    for name in unmatched.difference(declared) {
        let suggestion = suggest(name, declared.iter().map(String::as_str), true);
        linter.report(lines, &Violation::UndefinedArgInFrom { name: name.clone(), suggestion });
    }
}

/// `FROM --platform=$TARGETPLATFORM`; `written` is the flag's value.
pub fn redundant_platform(written: &str, expanded: &Expanded, lines: Lines, env: &dyn Env, linter: &Linter) {
    const TARGET: &str = "TARGETPLATFORM";
    let only_target = expanded.unmatched.is_empty() && expanded.matched.iter().eq([TARGET]);
    if only_target && env.get(TARGET).unwrap_or_default() == expanded.text {
        linter.report(lines, &Violation::RedundantTargetPlatform { variable: written.to_owned() });
    }
}

/// `FROM --platform=linux/amd64` of a stage whose name does not say so.
pub fn constant_platform(stage_name: &str, expanded: &Expanded, lines: Lines, linter: &Linter) {
    if !(expanded.matched.is_empty() && expanded.unmatched.is_empty()) {
        return;
    }
    let Ok(platform) = expanded.text.parse::<Platform>() else { return };
    if !stage_name.contains(&platform.os) && !stage_name.contains(&platform.architecture) {
        linter.report(lines, &Violation::ConstantPlatform { platform: expanded.text.clone() });
    }
}

/// A base image for another platform than the build's.
pub fn base_image_platform(
    image: &str,
    expected: &Platform,
    actual: &Platform,
    lines: Lines,
    linter: &Linter,
) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        let violation = Violation::BaseImagePlatform {
            image: image.to_owned(),
            expected: expected.format_all(),
            actual: actual.format_all(),
        };
        linter.report(lines, &violation);
    }
}

/// An instruction that replaces an earlier one of its sort, at `earlier`. The
/// earlier one is reported: it is the one without effect.
pub fn used_once<C>(instruction: &Instruction<C>, earlier: &mut Option<Lines>, linter: &Linter) {
    if let Some(lines) = earlier.replace(instruction.lines) {
        linter.report(lines, &Violation::MultipleInstructions { name: instruction.name.clone() });
    }
}

/// A variable whose name says that it holds a secret.
pub fn secret_name(instruction: &'static str, key: &str, lines: Lines, linter: &Linter) {
    static SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let words = "apikey|auth|credential|credentials|key|password|pword|passwd|secret|token";
        Regex::new(&format!("(?:_|^)(?:{words})(?:_|$)")).ok()
    });
    static HARMLESS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("(?:_|^)(?:public|file|version)(?:_|$)").ok());
    let lower = key.to_lowercase();
    let matches = |regex: &Option<Regex>| regex.as_ref().is_some_and(|r| r.is_match(&lower));
    if matches(&SECRET) && !matches(&HARMLESS) {
        linter.report(lines, &Violation::SecretInArgOrEnv { instruction, key: key.to_owned() });
    }
}

/// A file that is copied from the context and left out of it. `add` tells
/// `ADD` from `COPY`.
///
/// # Errors
/// When a pattern of the ignore file is none.
pub fn copied_ignored(
    source: &str,
    add: bool,
    ignore: &Matcher,
    lines: Lines,
    linter: &Linter,
) -> Result<(), patterns::Error> {
    // What a `!` brings back below an excluded directory cannot be told.
    if ignore.has_exclusions() {
        return Ok(());
    }
    let source = gopath::clean(source);
    if (source == "." || source == "/") && !excludes_everything(ignore) {
        return Ok(());
    }
    if ignore.matches_or_parent(&source)? {
        let command = if add { "Add" } else { "Copy" };
        linter.report(lines, &Violation::CopyIgnoredFile { command, file: source });
    }
    Ok(())
}

fn excludes_everything(ignore: &Matcher) -> bool {
    ignore.patterns().iter().any(|p| !p.is_exclusion() && matches!(p.text(), "*" | "**" | "**/*"))
}
