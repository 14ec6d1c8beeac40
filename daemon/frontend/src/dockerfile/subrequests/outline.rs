//! The parameters of a build: arguments, secrets, agents.

use serde::Serialize;

use super::{Answer, Location, base64_list, is_false, json, table};

/// The parameters of a target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Outline {
    /// The target's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// From the comment above it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Build arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// Secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Forwarded>,
    /// Agents.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Forwarded>,
    /// The file.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "base64_list")]
    pub sources: Vec<Vec<u8>>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// From the comment above it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its value in this build.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Where it is declared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

/// A secret or an agent of the client.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Forwarded {
    /// Its id.
    pub name: String,
    /// The build fails without it.
    #[serde(skip_serializing_if = "is_false")]
    pub required: bool,
    /// Where it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

impl Outline {
    /// Puts everything into the order of the file.
    pub fn sort(&mut self) {
        let key = |location: &Option<Location>| {
            location.as_ref().map_or((0, 0), |l| (l.source_index, l.first_line()))
        };
        self.args.sort_by_key(|a| key(&a.location));
        self.secrets.sort_by_key(|s| key(&s.location));
        self.ssh.sort_by_key(|s| key(&s.location));
    }

    /// The document.
    pub fn answer(&self) -> Answer {
        let mut text = String::new();
        if !self.name.is_empty() || !self.description.is_empty() {
            let name = if self.name.is_empty() { "(default)" } else { &self.name };
            let mut head = format!("TARGET:\t{name}\n");
            if !self.description.is_empty() {
                head.push_str(&format!("DESCRIPTION:\t{}\n", self.description));
            }
            text.push_str(&table::align(&head, 1));
            text.push('\n');
        }
        let mut section = |head: &str, rows: Vec<String>| {
            if !rows.is_empty() {
                text.push_str(&table::align(&format!("{head}\n{}", rows.concat()), 3));
                text.push('\n');
            }
        };
        let row = |a: &Argument| format!("{}\t{}\t{}\n", a.name, a.value, a.description);
        section("BUILD ARG\tVALUE\tDESCRIPTION", self.args.iter().map(row).collect());
        let row = |f: &Forwarded| format!("{}\t{}\n", f.name, if f.required { "true" } else { "" });
        section("SECRET\tREQUIRED", self.secrets.iter().map(row).collect());
        section("SSH\tREQUIRED", self.ssh.iter().map(row).collect());
        Answer { version: super::VERSION, json: json(self), text, status: None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Lines;
    use super::*;

    #[test]
    fn writes_parameters() {
        let at = |n| Some(Lines::new(n, n).into());
        let argument = |name: &str, value: &str, line| Argument {
            name: name.into(),
            value: value.into(),
            location: at(line),
            ..Argument::default()
        };
        let mut outline = Outline {
            description: "does it".into(),
            args: vec![argument("BB", "", 3), argument("A", "value", 2)],
            secrets: vec![Forwarded { name: "s".into(), required: true, location: at(5) }],
            ssh: vec![Forwarded { name: "default".into(), ..Forwarded::default() }],
            ..Outline::default()
        };
        outline.sort();
        let answer = outline.answer();
        assert_eq!(
            answer.text,
            "TARGET:      (default)\nDESCRIPTION: does it\n\n\
             BUILD ARG   VALUE   DESCRIPTION\nA           value   \nBB                  \n\n\
             SECRET   REQUIRED\ns        true\n\n\
             SSH       REQUIRED\ndefault   \n\n"
        );
        assert!(String::from_utf8(answer.json).unwrap().starts_with(
            "{\n  \"description\": \"does it\",\n  \"args\": [\n    {\n      \"name\": \"A\",\n      \"value\""
        ));
        assert_eq!(Outline::default().answer().json, b"{}");
    }
}
