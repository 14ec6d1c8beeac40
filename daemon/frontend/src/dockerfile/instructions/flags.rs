//! The `--flags` of an instruction.

use std::collections::BTreeMap;

use super::super::suggest::suggest;
use super::Problem;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing, `true` or `false`.
    Bool,
    /// One value.
    Value,
    /// A value, any number of times.
    Values,
}

/// The flags that were given, with their values.
#[derive(Debug, Default)]
pub(super) struct Flags(BTreeMap<&'static str, Vec<String>>);

impl Flags {
    /// Reads flags of which `known` exist.
    pub(super) fn parse(args: &[String], known: &[(&'static str, Takes)]) -> Result<Self, Problem> {
        let mut flags = Self::default();
        for arg in args {
            if arg == "--" {
                break;
            }
            let (flag, value) = match arg.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (arg.as_str(), None),
            };
            let Some(name) = flag.strip_prefix("--") else {
                return Err(Problem::NotAFlag(arg.clone()));
            };
            let Some(&(name, takes)) = known.iter().find(|(known, _)| *known == name) else {
                let suggestion = suggest(name, known.iter().map(|(known, _)| *known), true);
                return Err(Problem::UnknownFlag { flag: flag.to_owned(), suggestion });
            };
            let values = flags.0.entry(name).or_default();
            if !values.is_empty() && takes != Takes::Values {
                return Err(Problem::DuplicateFlag(flag.to_owned()));
            }
            let value = match (takes, value) {
                (Takes::Bool, None) => "true".to_owned(),
                (Takes::Bool, Some("")) | (_, None) => return Err(Problem::FlagValue(flag.to_owned())),
                (Takes::Bool, Some(value)) => match value.to_lowercase() {
                    word if word == "true" || word == "false" => word,
                    _ => {
                        return Err(Problem::FlagBool { flag: flag.to_owned(), value: value.to_owned() });
                    }
                },
                (_, Some(value)) => value.to_owned(),
            };
            values.push(value);
        }
        Ok(flags)
    }

    /// The value of a flag, empty when it was not given.
    pub(super) fn value(&mut self, name: &str) -> String {
        self.values(name).pop().unwrap_or_default()
    }

    /// All values of a flag.
    pub(super) fn values(&mut self, name: &str) -> Vec<String> {
        self.0.get_mut(name).map(std::mem::take).unwrap_or_default()
    }

    /// The value of a flag that is on or off.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.0.get(name).and_then(|values| values.first()).map(|value| value == "true")
    }

    /// The flags that were given.
    pub(super) fn used(&self) -> Vec<String> {
        self.0.keys().map(|name| (*name).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_flags() {
        let known = [("bool", Takes::Bool), ("value", Takes::Value), ("many", Takes::Values)];
        let parse =
            |args: &[&str]| Flags::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(), &known);
        let mut flags = parse(&["--bool", "--value=a=b", "--many=1", "--many="]).unwrap();
        assert_eq!(flags.used(), ["bool", "many", "value"]);
        assert_eq!(flags.switch("bool"), Some(true));
        assert_eq!(flags.value("value"), "a=b");
        assert_eq!(flags.values("many"), ["1", ""]);
        assert_eq!(parse(&["--bool=False"]).unwrap().switch("bool"), Some(false));
        assert_eq!(parse(&["--", "x"]).unwrap().switch("bool"), None);
        for (args, want) in [
            (&["x"][..], "arg should start with -- : x"),
            (&["--boool"], "unknown flag: --boool (did you mean bool?)"),
            (&["--foobar=1"], "unknown flag: --foobar"),
            (&["--bool", "--bool"], "duplicate flag specified: --bool"),
            (&["--value=", "--value=a"], "duplicate flag specified: --value"),
            (&["--bool="], "missing a value on flag: --bool"),
            (&["--value"], "missing a value on flag: --value"),
            (&["--many"], "missing a value on flag: --many"),
            (&["--bool=Maybe"], "expecting boolean value for flag --bool, not: Maybe"),
        ] {
            assert_eq!(parse(args).unwrap_err().to_string(), want);
        }
    }
}
