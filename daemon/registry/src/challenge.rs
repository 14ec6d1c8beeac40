//! `WWW-Authenticate`: what a registry wants to see before it answers.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What one challenge asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Challenge {
    /// A token from `realm`.
    Bearer {
        realm: String,
        service: String,
        scopes: Vec<String>,
        /// Why the token that was sent did not do.
        error: String,
    },
    /// A user and a password.
    Basic,
}

/// Every challenge we can answer, the better ones first.
pub(crate) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> =
        headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| one(v.to_str().ok()?)).collect();
    challenges.sort_by_key(|c| matches!(c, Challenge::Basic));
    challenges
}

fn one(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = token(text);
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope, mut error) = (None, String::new(), String::new(), String::new());
    loop {
        let (key, after) = token(rest.trim_start());
        let Some(after) = after.strip_prefix('=').filter(|_| !key.is_empty()) else { break };
        let (value, after) = value(after)?;
        match key.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = value,
            "scope" => scope = value,
            "error" => error = value,
            _ => {}
        }
        match after.trim_start().strip_prefix(',') {
            Some(after) => rest = after,
            None => break,
        }
    }
    let scopes = scope.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    Some(Challenge::Bearer { realm: realm?, service, scopes, error })
}

/// A token of RFC 2616 and what follows it.
fn token(text: &str) -> (&str, &str) {
    let end =
        text.find(|c: char| !c.is_ascii_graphic() || "()<>@,;:\\\"/[]?={}".contains(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// A token or a quoted string and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = token(text);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_registries_send() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Digest realm=\"x\"".parse().unwrap());
        headers.append(
            WWW_AUTHENTICATE,
            r#"bearer Realm="https://a/\"t\"",service=reg , scope="repository:a:pull,push b", error="insufficient_scope""#
                .parse()
                .unwrap(),
        );
        let bearer = Challenge::Bearer {
            realm: "https://a/\"t\"".into(),
            service: "reg".into(),
            scopes: vec!["repository:a:pull,push".into(), "b".into()],
            error: "insufficient_scope".into(),
        };
        assert_eq!(parse(&headers), [bearer, Challenge::Basic]);
    }

    #[test]
    fn survives_rubbish() {
        for text in
            ["", "Bearer", "Bearer realm=\"", "Bearer realm=\"\\", "Bearer =,=", "\"", "Bearer service=x"]
        {
            assert_eq!(one(text), None, "{text}");
        }
    }
}
