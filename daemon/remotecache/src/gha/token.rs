//! Tokens of GitHub's runners: where their bearer may read and write. They are
//! not verified, which is for the service to do.

use base::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::Error;

/// The right to write.
const WRITE: u64 = 2;

/// What a token says.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// Branches, tags and requests whose caches it is good for.
    pub(super) scopes: Vec<Scope>,
}

/// A part of the service's entries.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Scope {
    #[serde(default)]
    pub(super) scope: String,
    /// Bits.
    #[serde(default)]
    permission: u64,
}

#[derive(Deserialize)]
struct Claims {
    ac: Option<String>,
    /// Seconds since 1970.
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl Token {
    /// # Errors
    /// When it is none, or not good at the time `now`.
    pub(super) fn read(text: &str, now: Timestamp) -> Result<Self, Error> {
        let invalid = |why: &dyn std::fmt::Display| {
            Error::attribute(format!("invalid token for github actions cache: {why}"))
        };
        let claims = text.split('.').nth(1).ok_or_else(|| invalid(&"not a JSON web token"))?;
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|e| invalid(&e))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|e| invalid(&e))?;
        let scopes = claims.ac.ok_or_else(|| invalid(&"without access controls"))?;
        let end = claims.exp.ok_or_else(|| invalid(&"without expiration time"))?;
        let begin = claims.nbf.ok_or_else(|| invalid(&"without a time it begins at"))?;
        let at = |seconds: f64| Timestamp::from_secs(seconds as i64);
        if now > at(end) {
            return Err(Error::attribute(format!("token for github actions cache expired at {}", at(end))));
        }
        if now < at(begin) {
            return Err(invalid(&format!("not good before {}", at(begin))));
        }
        let scopes = serde_json::from_str(&scopes);
        Ok(Self { scopes: scopes.map_err(|e| invalid(&format!("failed to parse access controls: {e}")))? })
    }
}

/// The scope that is written to: of several the last one.
pub(super) fn writable(scopes: &[Scope]) -> &str {
    scopes.iter().rfind(|scope| scope.permission & WRITE != 0).map_or("", |scope| scope.scope.as_str())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn token(scopes: &str) -> String {
        claims(&serde_json::json!({"ac": scopes, "nbf": 1, "exp": 4_000_000_000_u64}))
    }

    fn claims(claims: &serde_json::Value) -> String {
        format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn says_where_its_bearer_may_write() {
        let scopes =
            r#"[{"Scope":"a","Permission":1},{"Scope":"b","Permission":3},{"Scope":"c","Permission":1}]"#;
        let token = Token::read(&token(scopes), Timestamp::from_secs(2)).unwrap();
        let names: Vec<&str> = token.scopes.iter().map(|s| s.scope.as_str()).collect();
        assert_eq!((names, writable(&token.scopes)), (vec!["a", "b", "c"], "b"));
        assert_eq!(writable(&[]), "");
    }

    #[test]
    fn is_good_for_a_while() {
        let said = |token: &str, now| Token::read(token, Timestamp::from_secs(now)).unwrap_err().to_string();
        let whole = token("[]");
        assert!(said(&whole, 5_000_000_000).contains("expired at 2096-10-02"));
        assert!(said(&whole, 0).contains("not good before 1970-01-01T00:00:01Z"));
        for (token, expected) in [
            ("x".to_owned(), "not a JSON web token"),
            ("a.%.b".to_owned(), "invalid token"),
            (claims(&serde_json::json!({})), "without access controls"),
            (claims(&serde_json::json!({"ac": "[]"})), "without expiration time"),
            (token("{"), "failed to parse access controls"),
        ] {
            let said = said(&token, 10);
            assert!(said.contains(expected), "{said}");
        }
    }
}
