//! Fetching a token from the place a registry names.

use base::{Secret, Timestamp};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::auth::{Login, Token, TokenRequest, basic, protocol};
use crate::error::Problem;
use crate::wire::{self, transport};

/// No token answer is larger; bytes.
const MAX_ANSWER: u64 = 1 << 20;
const MAX_REDIRECTS: usize = 5;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<f64>,
    #[serde(default)]
    issued_at: Option<String>,
}

/// A token for `request`, for `login` or for anybody.
pub(crate) async fn fetch(
    client: &Client,
    request: &TokenRequest,
    login: Option<&Login>,
) -> Result<Token, Problem> {
    let realm = Url::parse(&request.realm)
        .ok()
        .filter(|u| matches!(u.scheme(), "http" | "https"))
        .ok_or_else(|| protocol(&request.realm, "the challenge's realm is no address"))?;
    let got = get(client, &realm, request, login).await;
    let Some(login) = login else { return got };
    match got {
        // Some places only know the newer way: GCR answers 404, Artifactory 401.
        Err(Problem::Status { code: 404 | 401, .. }) => post(client, &realm, request, login).await,
        Err(Problem::Status { code: 405, .. }) if !login.user.is_empty() => {
            post(client, &realm, request, login).await
        }
        got => got,
    }
}

async fn get(
    client: &Client,
    realm: &Url,
    request: &TokenRequest,
    login: Option<&Login>,
) -> Result<Token, Problem> {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            query.append_pair("scope", scope);
        }
    }
    let header = login.map(basic).transpose()?;
    exchange(client, Method::GET, url, header, None).await
}

async fn post(client: &Client, realm: &Url, request: &TokenRequest, login: &Login) -> Result<Token, Problem> {
    exchange(client, Method::POST, realm.clone(), None, Some(form(request, login))).await
}

fn form(request: &TokenRequest, login: &Login) -> String {
    let mut form = Serializer::new(String::new());
    if !request.scopes.is_empty() {
        form.append_pair("scope", &request.scopes.join(" "));
    }
    form.append_pair("service", &request.service).append_pair("client_id", &request.client_id);
    if login.user.is_empty() {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", login.secret.expose());
    } else {
        form.append_pair("grant_type", "password")
            .append_pair("username", &login.user)
            .append_pair("password", login.secret.expose());
    }
    form.finish()
}

async fn exchange(
    client: &Client,
    method: Method,
    mut url: Url,
    header: Option<HeaderValue>,
    form: Option<String>,
) -> Result<Token, Problem> {
    let anonymous = header.is_none() && form.is_none();
    let origin = url.origin();
    for _ in 0..=MAX_REDIRECTS {
        let mut headers = HeaderMap::new();
        if let Some(header) = header.as_ref().filter(|_| url.origin() == origin) {
            headers.insert(AUTHORIZATION, header.clone());
        }
        let mut call = client.request(method.clone(), url.clone());
        if let Some(form) = &form {
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8"),
            );
            call = call.body(form.clone());
        }
        let response = tokio::time::timeout(wire::TOKEN_SILENCE, call.headers(headers).send())
            .await
            .map_err(|_| stalled(&url))?
            .map_err(|e| transport(&method, &url, e))?;
        // A form carries a password, so it never follows anybody anywhere.
        if let Some(next) = redirect(&response, &url).filter(|_| form.is_none()) {
            url = next;
            continue;
        }
        return read(response, &method, &url, anonymous).await;
    }
    Err(protocol(&wire::shown(&url), "too many redirects"))
}

fn redirect(response: &Response, url: &Url) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let next = url.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    matches!(next.scheme(), "http" | "https").then_some(next)
}

async fn read(response: Response, method: &Method, url: &Url, anonymous: bool) -> Result<Token, Problem> {
    let status = response.status();
    let body = tokio::time::timeout(wire::TOKEN_SILENCE, wire::body(response, method, url, MAX_ANSWER))
        .await
        .map_err(|_| stalled(url))?;
    if status != StatusCode::OK && !status.is_success() {
        let message = body.map(|b| wire::message(&b)).unwrap_or_default();
        return Err(Problem::Status {
            method: method.to_string(),
            url: wire::shown(url),
            status: status.to_string(),
            code: status.as_u16(),
            message,
            anonymous,
        });
    }
    let answer: Answer = serde_json::from_slice(&body?)
        .map_err(|e| protocol(&wire::shown(url), format!("token answer: {e}")))?;
    let token = if answer.access_token.is_empty() { answer.token } else { answer.access_token };
    if token.is_empty() {
        return Err(protocol(&wire::shown(url), "the authorization server did not include a token"));
    }
    Ok(Token {
        token: Secret::new(token),
        // Fractions and nonsense are as good as nothing said.
        expires_in: answer.expires_in.map_or(0, |s| s.clamp(0.0, 86_400.0) as u64),
        issued_at: answer.issued_at.as_deref().and_then(Timestamp::parse),
    })
}

fn stalled(url: &Url) -> Problem {
    Problem::Stalled { url: wire::shown(url), seconds: wire::TOKEN_SILENCE.as_secs() }
}
