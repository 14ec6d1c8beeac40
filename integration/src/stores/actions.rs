//! The cache service of GitHub's actions.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{State, azure, of, target};
use crate::mock::{Reply, Request};

/// A token that is good for one branch.
pub fn token() -> String {
    let scopes =
        json!([{"Scope": "refs/heads/main", "Permission": 3}, {"Scope": "refs/heads/old", "Permission": 1}]);
    let claims = json!({"ac": scopes.to_string(), "nbf": 1, "exp": 4_000_000_000_u64});
    format!(
        "{}.{}.eA",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    )
}

const FIRST: &str = "/_apis/artifactcache/";
const SECOND: &str = "/twirp/github.actions.results.api.v1.CacheService/";

pub(super) fn answer(request: &Request, state: &mut State, token: &str) -> Option<Reply> {
    let (path, query) = target(&request.path);
    let host = request.headers.get("host")?.clone();
    // Addresses that were handed out are all that is needed.
    if let Some(number) = path.strip_prefix("/blob/") {
        let entry = state.made.get(number.parse::<usize>().ok()?)?.clone();
        if of(&query, "sig") != Some("signed") || request.headers.contains_key("authorization") {
            return Some(super::refused(403, "AuthenticationFailed"));
        }
        return azure::blob(request, state, &entry, &query);
    }
    if request.headers.get("authorization") != Some(&format!("Bearer {token}")) {
        return Some(Reply::new(401, r#"{"message":"who are you?"}"#));
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let key = body["key"].as_str().unwrap_or_default().to_owned();
    if let Some(method) = path.strip_prefix(SECOND) {
        let reply = match method {
            "GetCacheEntryDownloadURL" => match newest(state, &key) {
                Some((entry, number)) => {
                    let url = format!("http://{host}/blob/{number}?sig=signed");
                    json!({"ok": true, "signed_download_url": url, "matched_key": entry})
                }
                None => json!({"ok": false}),
            },
            "CreateCacheEntry" => match reserve(state, &key) {
                Some(number) => {
                    json!({"ok": true, "signed_upload_url": format!("http://{host}/blob/{number}?sig=signed")})
                }
                None => return Some(Reply::new(409, r#"{"code":"already_exists","msg":"it is there"}"#)),
            },
            "FinalizeCacheEntryUpload" => {
                let size = state.objects.get(&key).map(|object| object.bytes.len() as u64);
                json!({"ok": size == body["size_bytes"].as_u64(), "entry_id": "1"})
            }
            _ => return None,
        };
        return Some(Reply::new(200, reply.to_string()));
    }
    let path = path.strip_prefix(FIRST)?;
    let number = path.strip_prefix("caches/").and_then(|n| n.parse::<usize>().ok());
    Some(match (request.method.as_str(), number) {
        ("GET", _) if path == "cache" => match newest(state, of(&query, "keys")?) {
            Some((entry, number)) => {
                let url = format!("http://{host}/blob/{number}?sig=signed");
                Reply::new(200, json!({"cacheKey": entry, "archiveLocation": url}).to_string())
            }
            None => Reply::new(204, ""),
        },
        ("POST", None) => match reserve(state, &key) {
            Some(number) => Reply::new(201, json!({"cacheId": number}).to_string()),
            None => {
                Reply::new(400, r#"{"typeKey":"ArtifactCacheItemAlreadyExistsException","message":"taken"}"#)
            }
        },
        ("PATCH", Some(number)) => {
            let range = request.headers.get("content-range")?.strip_prefix("bytes ")?;
            let from: usize = range.split('-').next()?.parse().ok()?;
            let key = (number.to_string(), format!("{from:020}"));
            _ = state.pieces.insert(key, request.body.clone());
            Reply::new(204, "")
        }
        ("POST", Some(number)) => {
            let upload = number.to_string();
            let parts = state.pieces.keys().filter(|(id, _)| *id == upload).map(|(_, part)| part.clone());
            let parts: Vec<String> = parts.collect();
            let bytes = state.join(&upload, &parts)?;
            if Some(bytes.len() as u64) != body["size"].as_u64() {
                return Some(Reply::new(400, r#"{"message":"of another size"}"#));
            }
            let entry = state.made.get(number)?.clone();
            state.put(&entry, bytes);
            Reply::new(204, "")
        }
        _ => return None,
    })
}

/// The last entry that begins like that and is whole.
fn newest(state: &State, key: &str) -> Option<(String, usize)> {
    let whole = |(_, entry): &(usize, &String)| entry.starts_with(key) && state.objects.contains_key(*entry);
    state.made.iter().enumerate().rfind(whole).map(|(number, entry)| (entry.clone(), number))
}

/// Numbers begin with one.
fn reserve(state: &mut State, key: &str) -> Option<usize> {
    if state.made.is_empty() {
        state.made.push(String::new());
    }
    if state.made.iter().any(|made| made == key) {
        return None;
    }
    state.made.push(key.to_owned());
    Some(state.made.len() - 1)
}
