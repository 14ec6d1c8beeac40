//! Tokens from a registry's token server.

use base::{Failure, Kind, Secret};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use session::client::Credential;
use session::{Token, TokenRequest};

/// Seconds a token lives of which nothing else is said.
pub(super) const DEFAULT_LIFE: i64 = 60;
/// The most bytes of an answer that are looked at.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: i64,
    #[serde(default)]
    issued_at: String,
}

/// Fetches a token: with a secret as OAuth, or as in older days when the server
/// does not know that; without a secret as nobody.
pub(super) async fn fetch(
    client: &Client,
    request: &TokenRequest,
    who: &Credential,
) -> Result<Token, Failure> {
    if who.secret.is_empty() {
        return get(client, request, None).await.map_err(|e| e.context("failed to fetch anonymous token"));
    }
    match post(client, request, who).await {
        // These servers answer so to what they do not know.
        Err((Some(status), _)) if falls_back(status, who) => get(client, request, Some(who)).await,
        Err((_, e)) => Err(e),
        Ok(token) => Ok(token),
    }
    .map_err(|e| e.context("failed to fetch oauth token"))
}

fn falls_back(status: StatusCode, who: &Credential) -> bool {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => !who.username.is_empty(),
        StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED => true,
        _ => false,
    }
}

fn realm(request: &TokenRequest) -> Result<Url, Failure> {
    Url::parse(&request.realm)
        .map_err(|e| Failure::invalid(format!("invalid token realm {:?}: {e}", request.realm)))
}

async fn post(
    client: &Client,
    request: &TokenRequest,
    who: &Credential,
) -> Result<Token, (Option<StatusCode>, Failure)> {
    let url = realm(request).map_err(|e| (None, e))?;
    let request =
        client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form(request, who));
    send(request).await
}

fn form(request: &TokenRequest, who: &Credential) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("client_id", "buildkit-client");
    form.append_pair("service", &request.service);
    if !request.scopes.is_empty() {
        form.append_pair("scope", &request.scopes.join(" "));
    }
    if who.username.is_empty() {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", who.secret.expose());
    } else {
        form.append_pair("grant_type", "password");
        form.append_pair("username", &who.username).append_pair("password", who.secret.expose());
    }
    form.finish()
}

async fn get(client: &Client, request: &TokenRequest, who: Option<&Credential>) -> Result<Token, Failure> {
    let mut url = realm(request)?;
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            query.append_pair("scope", scope);
        }
    }
    let mut request = client.get(url);
    if let Some(who) = who {
        request = request.basic_auth(&who.username, Some(who.secret.expose()));
    }
    send(request).await.map_err(|(_, e)| e)
}

async fn send(request: RequestBuilder) -> Result<Token, (Option<StatusCode>, Failure)> {
    let lost = |e: reqwest::Error| {
        (None, Failure::new(Kind::Unavailable, format!("token server: {}", e.without_url())))
    };
    let mut response = request.send().await.map_err(lost)?;
    let status = response.status();
    if !status.is_success() {
        let kind = if status == StatusCode::UNAUTHORIZED { Kind::Unauthenticated } else { Kind::Unknown };
        let text = format!("unexpected status from token server: {status}");
        return Err((Some(status), Failure::new(kind, text)));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err((None, Failure::invalid("the token server's answer is too long")));
        }
        body.extend_from_slice(&chunk);
    }
    token(&body).map_err(|e| (None, e))
}

fn token(body: &[u8]) -> Result<Token, Failure> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|e| Failure::invalid(format!("unable to decode token response: {e}")))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(Failure::invalid("the token server sent no token"));
    }
    Ok(Token {
        token: Secret::new(token),
        expires_in: if answer.expires_in == 0 { DEFAULT_LIFE } else { answer.expires_in },
        issued_at: base::Timestamp::parse(&answer.issued_at).map_or(0, base::Timestamp::secs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_kinds_are_read() {
        let old = token(br#"{"token": "a", "issued_at": "1970-01-01T00:01:00Z"}"#).unwrap();
        assert_eq!((old.token.expose(), old.expires_in, old.issued_at), ("a", 60, 60));
        let new = token(br#"{"access_token": "b", "expires_in": 300}"#).unwrap();
        assert_eq!((new.token.expose(), new.expires_in, new.issued_at), ("b", 300, 0));
        assert!(token(b"{}").is_err() && token(b"[").is_err());
    }

    #[test]
    fn old_servers_are_asked_again() {
        let who = Credential { username: "u".into(), ..Credential::default() };
        assert!(falls_back(StatusCode::NOT_FOUND, &who) && falls_back(StatusCode::METHOD_NOT_ALLOWED, &who));
        assert!(!falls_back(StatusCode::METHOD_NOT_ALLOWED, &Credential::default()));
        assert!(!falls_back(StatusCode::FORBIDDEN, &who));
    }
}
