//! Warnings about Dockerfiles that build but should be written differently.
//!
//! A [`Linter`] carries the configuration and collects what was found. Rules
//! that need no more than the parsed file are checked by
//! [`instructions::parse`](super::instructions::parse) and by [`checks`]; the
//! others are reported by the converter, with the texts from [`rules`].

pub mod checks;
pub mod rules;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::gotext::{parse_bool, quote};

use super::directives::{Name, Reader};
use super::{Error, Lines};

pub use rules::{Rule, Violation};

/// Which rules count: the value of `# check=` or of the build argument
/// `BUILDKIT_DOCKERFILE_CHECK`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// All experimental rules.
    pub experimental_all: bool,
    /// Experimental rules by name.
    pub experimental: BTreeSet<String>,
    /// No rules that are not experimental.
    pub skip_all: bool,
    /// Rules that do not count, by name.
    pub skip: BTreeSet<String>,
    /// A violation fails the build.
    pub error: bool,
}

/// The configuration or its outcome is an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("invalid check option {}", quote(.0))]
    Option(String),
    #[error("failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax", quote(.option), quote(.value))]
    Bool { option: String, value: String },
    #[error("lint violation found for rules: {}", .0.join(", "))]
    Violations(Vec<&'static str>),
}

impl Config {
    /// Reads `skip=A,B|all;experimental=A|all;error=true`.
    ///
    /// # Errors
    /// When an option is none of these.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        let names = |value: &str| value.split(',').map(|name| name.trim().to_owned()).collect();
        for option in text.splitn(3, ';') {
            let Some((key, value)) = option.split_once('=') else {
                return Err(Problem::Option(option.to_owned()));
            };
            let value = value.trim();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = names(value),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = names(value),
                "error" => {
                    config.error = parse_bool(value).ok_or_else(|| Problem::Bool {
                        option: option.to_owned(),
                        value: value.to_owned(),
                    })?;
                }
                other => return Err(Problem::Option(other.to_owned())),
            }
        }
        Ok(config)
    }

    fn wants(&self, rule: &Rule) -> bool {
        if rule.experimental {
            self.experimental_all || self.experimental.contains(rule.name)
        } else {
            !self.skip_all && !self.skip.contains(rule.name)
        }
    }
}

/// A violation of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Which rule.
    pub rule: &'static Rule,
    /// What is wrong here.
    pub message: String,
    /// Where.
    pub lines: Lines,
}

impl Warning {
    /// `Rule: message (line N)`, as a build shows it.
    pub fn short(&self) -> String {
        let Self { rule, message, lines } = self;
        match lines.first {
            0 => format!("{}: {message}", rule.name),
            line => format!("{}: {message} (line {line})", rule.name),
        }
    }
}

/// Decides which violations count, and collects them. Clones share what they
/// collect.
#[derive(Debug, Clone, Default)]
pub struct Linter {
    config: Arc<Config>,
    /// None: nobody listens.
    found: Option<Arc<Mutex<Found>>>,
}

#[derive(Debug, Default)]
struct Found {
    pending: Vec<Warning>,
    violated: BTreeSet<&'static str>,
}

impl Linter {
    /// A linter that collects.
    pub fn new(config: Config) -> Self {
        Self { config: Arc::new(config), found: Some(Arc::default()) }
    }

    /// A linter that ignores everything.
    pub fn off() -> Self {
        Self::default()
    }

    /// This linter with the rules that `other` skips or adds, too.
    #[must_use]
    pub fn merged(&self, other: Config) -> Self {
        let mut config = Config::clone(&self.config);
        config.experimental_all |= other.experimental_all;
        config.experimental.extend(other.experimental);
        config.skip_all |= other.skip_all;
        config.skip.extend(other.skip);
        Self { config: Arc::new(config), found: self.found.clone() }
    }

    /// This linter as changed by the first `check=` among the comments above an
    /// instruction. One that cannot be read changes nothing.
    #[must_use]
    pub fn for_comments(&self, comments: &[String]) -> Self {
        let check = comments.iter().find_map(|comment| {
            Reader::new("").line(comment.as_bytes()).ok().flatten().filter(|d| d.name == Name::Check)
        });
        match check.map(|d| Config::parse(d.first_word())) {
            Some(Ok(config)) => self.merged(config),
            _ => self.clone(),
        }
    }

    /// Notes a violation, if its rule counts.
    pub fn report(&self, lines: Lines, violation: &Violation) {
        let rule = violation.rule();
        let Some(mut found) = self.found() else { return };
        if self.config.wants(rule) {
            found.violated.insert(rule.name);
            found.pending.push(Warning { rule, message: violation.to_string(), lines });
        }
    }

    /// The violations since the last call, in the order in which they were
    /// found.
    pub fn take(&self) -> Vec<Warning> {
        self.found().map(|mut found| std::mem::take(&mut found.pending)).unwrap_or_default()
    }

    /// # Errors
    /// When there was any violation and the configuration makes that an error.
    pub fn verdict(&self) -> Result<(), Error> {
        match self.found() {
            Some(found) if self.config.error && !found.violated.is_empty() => {
                Err(Problem::Violations(found.violated.iter().copied().collect()).into())
            }
            _ => Ok(()),
        }
    }

    fn found(&self) -> Option<MutexGuard<'_, Found>> {
        // Nothing that holds the lock can leave the lists half changed.
        self.found.as_ref().map(|found| found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_configuration() {
        let config = Config::parse(" skip= A, B ;experimental=all; error = true").unwrap();
        assert_eq!(config.skip, ["A", "B"].map(String::from).into());
        assert!(config.experimental_all && config.error && !config.skip_all);
        assert_eq!(Config::parse(""), Ok(Config::default()));
        let fails = |s: &str| Config::parse(s).unwrap_err().to_string();
        assert_eq!(fails("skip"), "invalid check option \"skip\"");
        assert_eq!(fails("skip=a;"), "invalid check option \"\"");
        assert_eq!(fails("foo=a"), "invalid check option \"foo\"");
        assert_eq!(
            fails("error=x"),
            "failed to parse check option \"error=x\": strconv.ParseBool: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            fails("skip=a;skip=b;error=true;skip=c"),
            "failed to parse check option \"error=true;skip=c\": strconv.ParseBool: parsing \
             \"true;skip=c\": invalid syntax"
        );
    }

    #[test]
    fn counts_what_is_configured() {
        let violation = Violation::EmptyContinuation;
        let experimental = Violation::DefinitionDescription { instruction: "ARG", name: "x".into() };
        let at = Lines::new(3, 3);
        let linter = Linter::new(Config { error: true, ..Config::default() });
        linter.report(at, &experimental);
        assert!(linter.verdict().is_ok());
        let skips = linter.for_comments(&["x".into(), "check=skip=NoEmptyContinuation".into()]);
        skips.report(at, &violation);
        assert!(linter.take().is_empty());
        let all = linter.for_comments(&["Check = experimental=all;skip=all trailing".into()]);
        all.report(at, &violation);
        all.report(at, &experimental);
        let found = linter.take();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].short(),
            "InvalidDefinitionDescription: Comment for ARG should follow the format: \
             `# x <description>` (line 3)"
        );
        linter.report(at, &violation);
        linter.report(at, &violation);
        assert_eq!(linter.take().len(), 2);
        assert_eq!(
            linter.verdict().unwrap_err().to_string(),
            "lint violation found for rules: InvalidDefinitionDescription, NoEmptyContinuation"
        );
        Linter::off().report(at, &violation);
        assert!(Linter::off().take().is_empty());
    }
}
