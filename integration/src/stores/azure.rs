//! Azure's blob storage.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{State, elements, mac, of, refused, target};
use crate::mock::{Reply, Request};

pub(super) fn answer(
    request: &Request,
    state: &mut State,
    (account, key): &(String, String),
) -> Option<Reply> {
    let (path, query) = target(&request.path);
    if request.headers.get("authorization") != Some(&signature(request, account, key, &query)) {
        return Some(refused(403, "AuthenticationFailed"));
    }
    let rest = path.strip_prefix(&format!("/{account}/"))?;
    let (container, name) = rest.split_once('/').unwrap_or((rest, ""));
    let there = state.made.iter().any(|made| made == container);
    if of(&query, "restype") == Some("container") {
        return Some(match request.method.as_str() {
            "PUT" if there => refused(409, "ContainerAlreadyExists"),
            "PUT" => {
                state.made.push(container.to_owned());
                Reply::new(201, "")
            }
            _ if there => Reply::new(200, ""),
            _ => refused(404, "ContainerNotFound"),
        });
    }
    if !there {
        return Some(refused(404, "ContainerNotFound"));
    }
    blob(request, state, name, &query)
}

/// What is done with one blob.
pub(super) fn blob(
    request: &Request,
    state: &mut State,
    name: &str,
    query: &[(String, String)],
) -> Option<Reply> {
    let taken =
        request.headers.get("if-none-match").is_some_and(|m| m == "*") && state.objects.contains_key(name);
    match (request.method.as_str(), of(query, "comp")) {
        ("GET" | "HEAD", None) => {
            return Some(state.get(name, request).unwrap_or_else(|| refused(404, "BlobNotFound")));
        }
        ("PUT", Some("block")) => {
            let id = of(query, "blockid")?.to_owned();
            _ = state.pieces.insert((name.to_owned(), id), request.body.clone());
        }
        ("PUT", _) if taken => return Some(refused(409, "BlobAlreadyExists")),
        ("PUT", Some("blocklist")) => {
            let Some(bytes) = state.join(name, &elements(&request.body, "Latest")) else {
                return Some(refused(400, "InvalidBlockList"));
            };
            state.put(name, bytes);
        }
        ("PUT", None) => {
            if request.headers.get("x-ms-blob-type").is_none_or(|kind| kind != "BlockBlob") {
                return Some(refused(400, "MissingRequiredHeader"));
            }
            state.put(name, request.body.clone());
        }
        _ => return None,
    }
    Some(Reply::new(201, ""))
}

fn signature(request: &Request, account: &str, key: &str, query: &[(String, String)]) -> String {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    let fixed = [
        "content-encoding",
        "content-language",
        "content-length",
        "content-md5",
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    ];
    let mut text = format!("{}\n", request.method);
    for name in fixed {
        let value = if name == "content-length" && header(name) == "0" { "" } else { header(name) };
        text.push_str(&format!("{value}\n"));
    }
    // Headers are sorted already.
    for (name, value) in request.headers.iter().filter(|(name, _)| name.starts_with("x-ms-")) {
        text.push_str(&format!("{name}:{value}\n"));
    }
    let path = request.path.split('?').next().unwrap_or_default();
    text.push_str(&format!("/{account}{path}"));
    let mut query = query.to_vec();
    query.sort();
    for (name, value) in query {
        text.push_str(&format!("\n{name}:{value}"));
    }
    format!("SharedKey {account}:{}", STANDARD.encode(mac(key, &text)))
}
