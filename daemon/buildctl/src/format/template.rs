//! `--format`: the part of Go's templates that scripts use.
//!
//! Text, `{{.Field.Field}}`, `{{json .Field}}`, `{{len .Field}}`,
//! `{{range .Field}}…{{end}}`, `{{if .Field}}…{{else}}…{{end}}`, comments and the trim
//! markers `{{-` and `-}}`. Fields are found by their JSON name in any case, so
//! that both `.ID` and `.inUse` mean what one thinks.

use base::Failure;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Print(Expression),
    Range { over: Path, body: Vec<Node>, otherwise: Vec<Node> },
    If { condition: Path, body: Vec<Node>, otherwise: Vec<Node> },
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Value(Path),
    Json(Path),
    Len(Path),
    Literal(String),
}

/// `.` or `.A.B`.
type Path = Vec<String>;

/// A template, ready to be used.
#[derive(Debug, Clone)]
pub(crate) struct Template(Vec<Node>);

impl Template {
    /// Reads a template; `json` alone is short for `{{json .}}`.
    ///
    /// # Errors
    /// When it is none, or uses what is not known here.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let text = if text == "json" { "{{json .}}" } else { text };
        let mut tokens = tokens(text)?.into_iter().peekable();
        let (nodes, end) = block(&mut tokens)?;
        match end {
            None => Ok(Self(nodes)),
            Some(word) => Err(bad(format!("unexpected {{{{{word}}}}}"))),
        }
    }

    /// The text for `value`.
    ///
    /// # Errors
    /// When it has no such field.
    pub(crate) fn apply(&self, value: &Value) -> Result<String, Failure> {
        let mut out = String::new();
        run(&self.0, value, &mut out)?;
        Ok(out)
    }
}

fn bad(text: String) -> Failure {
    Failure::invalid(format!("template: {text}"))
}

enum Token {
    Text(String),
    Action(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, Failure> {
    let mut out: Vec<Token> = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some(at) = rest.find("{{") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        let Some(end) = after.find("}}") else { return Err(bad("unclosed action".into())) };
        let mut action = &after[..end];
        let mut before = if trim { before.trim_start() } else { before };
        if let Some(tail) = action.strip_prefix("- ") {
            (action, before) = (tail, before.trim_end());
        }
        trim = false;
        if let Some(head) = action.strip_suffix(" -") {
            (action, trim) = (head, true);
        }
        if !before.is_empty() {
            out.push(Token::Text(before.to_owned()));
        }
        let action = action.trim();
        if !action.starts_with("/*") {
            out.push(Token::Action(action.to_owned()));
        }
        rest = &after[end + 2..];
    }
    let rest = if trim { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        out.push(Token::Text(rest.to_owned()));
    }
    Ok(out)
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

/// Nodes up to `end` or `else`, which is given as well.
fn block(tokens: &mut Tokens) -> Result<(Vec<Node>, Option<String>), Failure> {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action.as_str(), ""));
        match word {
            "end" | "else" => return Ok((nodes, Some(word.to_owned()))),
            "range" | "if" => {
                let of = path(rest)?;
                let (body, mut end) = block(tokens)?;
                let mut otherwise = Vec::new();
                if end.as_deref() == Some("else") {
                    (otherwise, end) = block(tokens)?;
                }
                if end.as_deref() != Some("end") {
                    return Err(bad(format!("{word} without end")));
                }
                nodes.push(match word {
                    "range" => Node::Range { over: of, body, otherwise },
                    _ => Node::If { condition: of, body, otherwise },
                });
            }
            "json" => nodes.push(Node::Print(Expression::Json(path(rest)?))),
            "len" => nodes.push(Node::Print(Expression::Len(path(rest)?))),
            _ => {
                let (value, pipe) = action.split_once('|').unwrap_or((action.as_str(), ""));
                let expression = match (value.trim(), pipe.trim()) {
                    (text, "") if text.starts_with('"') => Expression::Literal(literal(text)?),
                    (value, "") => Expression::Value(path(value)?),
                    (value, "json") => Expression::Json(path(value)?),
                    (value, "len") => Expression::Len(path(value)?),
                    (_, other) => return Err(bad(format!("function {other:?} not defined"))),
                };
                nodes.push(Node::Print(expression));
            }
        }
    }
    Ok((nodes, None))
}

fn literal(text: &str) -> Result<String, Failure> {
    serde_json::from_str(text).map_err(|_| bad(format!("bad string {text}")))
}

fn path(text: &str) -> Result<Path, Failure> {
    let text = text.trim();
    let Some(fields) = text.strip_prefix('.') else {
        let word = text.split_whitespace().next().unwrap_or_default();
        return Err(bad(format!("function {word:?} not defined")));
    };
    let good = |f: &str| !f.is_empty() && f.chars().all(|c| c.is_alphanumeric() || c == '_');
    if !fields.is_empty() && !fields.split('.').all(good) {
        return Err(bad(format!("bad field {text:?}")));
    }
    Ok(fields.split('.').filter(|f| !f.is_empty()).map(str::to_owned).collect())
}

fn lookup<'a>(value: &'a Value, path: &[String]) -> Result<&'a Value, Failure> {
    let mut at = value;
    for field in path {
        let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
        let found = at.as_object().and_then(|o| o.iter().find(|(name, _)| plain(name) == plain(field)));
        at = match found {
            Some((_, value)) => value,
            // Fields with nothing in them are not written.
            None if at.is_object() || at.is_null() => &Value::Null,
            None => return Err(bad(format!("can't evaluate field {field}"))),
        };
    }
    Ok(at)
}

fn run(nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), Failure> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(Expression::Literal(text)) => out.push_str(text),
            Node::Print(Expression::Value(path)) => print(lookup(dot, path)?, out),
            Node::Print(Expression::Json(path)) => out.push_str(&lookup(dot, path)?.to_string()),
            Node::Print(Expression::Len(path)) => {
                let len = match lookup(dot, path)? {
                    Value::Array(items) => items.len(),
                    Value::Object(fields) => fields.len(),
                    Value::String(text) => text.len(),
                    _ => 0,
                };
                out.push_str(&len.to_string());
            }
            Node::Range { over, body, otherwise } => match lookup(dot, over)? {
                Value::Array(items) if !items.is_empty() => {
                    items.iter().try_for_each(|item| run(body, item, out))?;
                }
                Value::Object(fields) if !fields.is_empty() => {
                    fields.values().try_for_each(|item| run(body, item, out))?;
                }
                _ => run(otherwise, dot, out)?,
            },
            Node::If { condition, body, otherwise } => {
                let body = if truth(lookup(dot, condition)?) { body } else { otherwise };
                run(body, dot, out)?;
            }
        }
    }
    Ok(())
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(v) => *v,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(v) => !v.is_empty(),
        Value::Array(v) => !v.is_empty(),
        Value::Object(v) => !v.is_empty(),
    }
}

fn print(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                print(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push_str("map[");
            for (i, (name, item)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(name);
                out.push(':');
                print(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(template: &str) -> String {
        let value = serde_json::json!([
            {"id": "a", "inUse": true, "size": 3, "labels": {"k": "v"}, "parents": ["x", "y"]},
            {"id": "b", "inUse": false, "size": 0, "labels": null, "parents": []},
        ]);
        match Template::parse(template).and_then(|t| t.apply(&value)) {
            Ok(text) => text,
            Err(e) => format!("error: {e}"),
        }
    }

    #[test]
    fn what_scripts_use_works() {
        assert_eq!(apply("{{range .}}{{.ID}} {{end}}"), "a b ");
        assert_eq!(apply("{{range .}}{{.ID}}={{.InUse}};{{end}}"), "a=true;b=false;");
        assert_eq!(apply("{{range .}}{{if .InUse}}{{.Size}}{{else}}-{{end}}{{end}}"), "3-");
        assert_eq!(apply("{{range .}}{{json .Labels}}{{.Parents}}{{end}}"), "{\"k\":\"v\"}[x y]null[]");
        assert_eq!(apply("{{len .}} {{- \"\\n\" -}} \n x"), "2\nx");
        assert_eq!(apply("{{range .}}{{.Labels.k}}{{end}}"), "v<nil>");
        assert!(apply("json").starts_with("[{\"id\":\"a\""));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(apply("{{.ID").contains("unclosed"));
        assert!(apply("{{range .}}").contains("without end"));
        assert!(apply("{{end}}").contains("unexpected"));
        assert!(apply("{{upper .}}").contains("\"upper\" not defined"));
        assert!(apply("{{range .}}{{.ID.x}}{{end}}").contains("can't evaluate field x"));
    }
}
