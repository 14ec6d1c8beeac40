//! The rules of a policy, applied to one source at a time. No I/O.
//!
//! Within a policy the last of the rules that allow or deny decides; a rule that
//! puts another source in place ends the round, and the next begins with that one.

use std::sync::OnceLock;

use base::gotext::quote;
use proto::moby::buildkit::v1::sourcepolicy as wire;
use proto::pb;
use regex::Regex;

use super::Denied;

/// A source may be changed so often.
const MAX_ROUNDS: usize = 20;

/// One policy, checked.
pub(super) struct Policy {
    rules: Vec<Rule>,
}

struct Rule {
    rule: wire::Rule,
    selector: wire::Selector,
    /// Of the selector, unless it is meant literally.
    pattern: OnceLock<Result<Regex, String>>,
}

impl Policy {
    /// Takes a policy as it came.
    pub(super) fn new(policy: &wire::Policy) -> Result<Self, Denied> {
        let rules = policy.rules.iter().map(|rule| match &rule.selector {
            Some(selector) => {
                Ok(Rule { rule: rule.clone(), selector: selector.clone(), pattern: OnceLock::new() })
            }
            None => Err(Denied::Invalid("invalid nil selector in policy".to_owned())),
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// Whether the source was changed.
    fn round(&self, source: &mut pb::SourceOp) -> Result<bool, Denied> {
        let mut denied = false;
        for rule in &self.rules {
            if !rule
                .matches(source)
                .map_err(|e| Denied::Invalid(format!("error matching source policy: {e}")))?
            {
                continue;
            }
            match wire::PolicyAction::try_from(rule.rule.action) {
                Ok(wire::PolicyAction::Allow) => denied = false,
                Ok(wire::PolicyAction::Deny) => denied = true,
                Ok(wire::PolicyAction::Convert) => {
                    let failed = |e| Denied::Invalid(format!("error mutating source policy: {e}"));
                    if rule.convert(source).map_err(failed)? {
                        return Ok(true);
                    }
                }
                Err(_) => {
                    return Err(Denied::Invalid(format!(
                        "source policy: rule {} {}: unknown type {}",
                        rule.rule.action,
                        rule.selector.identifier,
                        quote(&source.identifier)
                    )));
                }
            }
        }
        if denied { Err(Denied::ByRule(quote(&source.identifier))) } else { Ok(false) }
    }
}

/// Applies all of them, until none has anything to change. Whether one had.
pub(super) fn apply<'a>(
    policies: impl Iterator<Item = &'a Policy> + Clone,
    source: &mut pb::SourceOp,
) -> Result<bool, Denied> {
    let mut changed = false;
    for _ in 0..=MAX_ROUNDS {
        let mut moved = false;
        for policy in policies.clone() {
            if policy.round(source)? {
                moved = true;
                break;
            }
        }
        if !moved {
            return Ok(changed);
        }
        changed = true;
    }
    Err(Denied::Endless)
}

impl Rule {
    fn matches(&self, source: &pb::SourceOp) -> Result<bool, String> {
        for constraint in &self.selector.constraints {
            let value = source.attrs.get(&constraint.key).map_or("", String::as_str);
            let holds = match wire::AttrMatch::try_from(constraint.condition) {
                Ok(wire::AttrMatch::Equal) => value == constraint.value,
                Ok(wire::AttrMatch::Notequal) => value != constraint.value,
                Ok(wire::AttrMatch::Matches) => {
                    let pattern = Regex::new(&constraint.value)
                        .map_err(|e| format!("invalid regex {}: {e}", quote(&constraint.value)))?;
                    pattern.is_match(value)
                }
                Err(_) => return Err(format!("unknown attr condition: {}", constraint.condition)),
            };
            if !holds {
                return Ok(false);
            }
        }
        if self.selector.identifier == source.identifier {
            return Ok(true);
        }
        match self.kind()? {
            wire::MatchType::Exact => Ok(false),
            wire::MatchType::Regex | wire::MatchType::Wildcard => {
                Ok(self.pattern()?.is_match(&source.identifier))
            }
        }
    }

    fn kind(&self) -> Result<wire::MatchType, String> {
        let kind = self.selector.match_type;
        wire::MatchType::try_from(kind).map_err(|_| format!("unknown match type: {kind}"))
    }

    fn pattern(&self) -> Result<&Regex, String> {
        let make = || {
            let text = &self.selector.identifier;
            let text = match self.kind()? {
                wire::MatchType::Wildcard => wildcard(text)?,
                _ => text.clone(),
            };
            Regex::new(&text).map_err(|e| e.to_string())
        };
        self.pattern.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Puts another source in place, or changes its attributes.
    fn convert(&self, source: &mut pb::SourceOp) -> Result<bool, String> {
        let updates = self.rule.updates.as_ref().ok_or("missing destination for convert rule")?;
        let template = match updates.identifier.as_str() {
            "" => &self.selector.identifier,
            given => given,
        };
        let to = self.fill(template, &source.identifier)?;
        let mut changed = false;
        if !to.is_empty() && source.identifier != to {
            source.identifier = to;
            changed = true;
        }
        for (key, value) in &updates.attrs {
            if source.attrs.get(key) != Some(value) {
                source.attrs.insert(key.clone(), value.clone());
                changed = true;
            }
        }
        Ok(changed)
    }

    /// `template` with what the selector's pattern found in `identifier`.
    fn fill(&self, template: &str, identifier: &str) -> Result<String, String> {
        Ok(match self.kind()? {
            wire::MatchType::Exact => template.to_owned(),
            wire::MatchType::Regex => self.pattern()?.replace_all(identifier, template).into_owned(),
            wire::MatchType::Wildcard => match self.pattern()?.captures(identifier) {
                Some(found) => {
                    let mut out = String::new();
                    found.expand(template, &mut out);
                    out
                }
                None => identifier.to_owned(),
            },
        })
    }
}

/// A text in which `*` stands for anything, as a regular expression.
fn wildcard(text: &str) -> Result<String, String> {
    if text.contains("**") {
        return Err(format!(
            "failed to translate wildcard {} to regexp: invalid wildcard: \"**\"",
            quote(text)
        ));
    }
    Ok(format!("^{}$", regex::escape(text).replace("\\*", "(.*)")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::moby::buildkit::v1::sourcepolicy::{
        AttrConstraint, AttrMatch, MatchType, PolicyAction, Selector, Update,
    };

    const ALLOW: PolicyAction = PolicyAction::Allow;
    const DENY: PolicyAction = PolicyAction::Deny;

    fn rule(action: PolicyAction, kind: MatchType, identifier: &str) -> wire::Rule {
        let selector =
            Selector { identifier: identifier.to_owned(), match_type: kind.into(), constraints: Vec::new() };
        wire::Rule { action: action.into(), selector: Some(selector), updates: None }
    }

    fn convert(kind: MatchType, from: &str, to: &str, attrs: &[(&str, &str)]) -> wire::Rule {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let updates = Some(Update { identifier: to.to_owned(), attrs });
        wire::Rule { updates, ..rule(PolicyAction::Convert, kind, from) }
    }

    fn run(rules: &[wire::Rule], identifier: &str) -> Result<(bool, pb::SourceOp), String> {
        let policy =
            Policy::new(&wire::Policy { version: 1, rules: rules.to_vec() }).map_err(|e| e.to_string())?;
        let mut source = pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() };
        let changed = apply(std::iter::once(&policy), &mut source).map_err(|e| e.to_string())?;
        Ok((changed, source))
    }

    #[test]
    fn the_last_word_counts() {
        let (w, e) = (MatchType::Wildcard, MatchType::Exact);
        let busybox = "docker-image://docker.io/library/busybox:latest";
        assert!(!run(&[], busybox).unwrap().0);
        let error = run(&[rule(DENY, e, busybox)], busybox).unwrap_err();
        let said = format!("source \"{busybox}\" denied by policy: source denied by policy");
        assert_eq!(error, said);
        assert!(run(&[rule(DENY, w, "docker-image://*"), rule(ALLOW, e, busybox)], busybox).is_ok());
        assert!(run(&[rule(ALLOW, e, busybox), rule(DENY, w, "docker-image://*")], busybox).is_err());
        assert!(run(&[rule(DENY, e, "docker-image://docker.io/library/busybox")], busybox).is_ok());
        assert!(run(&[rule(DENY, MatchType::Regex, "busybox:l.t")], busybox).is_err());
    }

    #[test]
    fn sources_are_put_in_place_of_others() {
        let to = |rules: &[wire::Rule], from: &str| run(rules, from).map(|(_, source)| source.identifier);
        let golang = "docker-image://golang:*";
        let alpine = convert(MatchType::Wildcard, golang, "docker-image://golang:${1}-alpine", &[]);
        // Its own product matches again, and again.
        assert!(to(&[alpine], "docker-image://golang:1.19").unwrap_err().contains("too many operations"));
        let mirror =
            convert(MatchType::Regex, "^docker-image://docker.io/(.*)$", "docker-image://m.lan/$1", &[]);
        assert_eq!(to(&[mirror], "docker-image://docker.io/a/b:c").unwrap(), "docker-image://m.lan/a/b:c");
        let file = convert(MatchType::Exact, "https://a/b", "", &[("http.checksum", "x")]);
        let (changed, source) = run(&[file], "https://a/b").unwrap();
        assert!(changed && source.identifier == "https://a/b");
        assert_eq!(source.attrs.get("http.checksum").map(String::as_str), Some("x"));
        // What it becomes may still be denied.
        let chain = [convert(MatchType::Exact, "a", "b", &[]), rule(DENY, MatchType::Exact, "b")];
        assert!(to(&chain, "a").unwrap_err().contains("\"b\" denied"));
        let circle = [convert(MatchType::Exact, "a", "b", &[]), convert(MatchType::Exact, "b", "a", &[])];
        assert!(to(&circle, "a").unwrap_err().contains("too many"));
    }

    #[test]
    fn attributes_count() {
        let with = |condition: i32, value: &str| {
            let mut rule = rule(DENY, MatchType::Wildcard, "*");
            let constraint = AttrConstraint { key: "k".to_owned(), value: value.to_owned(), condition };
            rule.selector.as_mut().unwrap().constraints.push(constraint);
            let policy = Policy::new(&wire::Policy { version: 1, rules: vec![rule] }).unwrap();
            let mut source = pb::SourceOp { identifier: "x".to_owned(), ..pb::SourceOp::default() };
            source.attrs.insert("k".to_owned(), "value".to_owned());
            apply(std::iter::once(&policy), &mut source).map_err(|e| e.to_string())
        };
        let (equal, not, matches) =
            (AttrMatch::Equal.into(), AttrMatch::Notequal.into(), AttrMatch::Matches.into());
        assert!(with(equal, "value").is_err() && with(equal, "other").is_ok());
        assert!(with(not, "other").is_err() && with(not, "value").is_ok());
        assert!(with(matches, "^va.ue$").is_err() && with(matches, "^x").is_ok());
        assert!(with(matches, "(").unwrap_err().contains("invalid regex"));
        assert!(with(77, "").unwrap_err().contains("unknown attr condition: 77"));
    }

    #[test]
    fn nonsense_is_refused() {
        let none = wire::Rule { action: 0, selector: None, updates: None };
        assert!(run(&[none], "x").unwrap_err().contains("invalid nil selector in policy"));
        let double = rule(DENY, MatchType::Wildcard, "a**");
        assert!(run(&[double], "x").unwrap_err().contains("invalid wildcard"));
        let mut odd = rule(DENY, MatchType::Wildcard, "x");
        odd.action = 9;
        assert!(run(&[odd], "x").unwrap_err().contains("unknown type"));
        let mut odd = rule(DENY, MatchType::Wildcard, "y");
        if let Some(selector) = &mut odd.selector {
            selector.match_type = 9;
        }
        assert!(run(&[odd], "x").unwrap_err().contains("unknown match type"));
        let nowhere = rule(PolicyAction::Convert, MatchType::Exact, "x");
        assert!(run(&[nowhere], "x").unwrap_err().contains("missing destination"));
        // A pattern that would take forever elsewhere.
        let slow = rule(DENY, MatchType::Regex, "^(a+)+$");
        assert!(run(&[slow], &format!("{}b", "a".repeat(5000))).is_ok());
    }
}
