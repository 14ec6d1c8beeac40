//! Amazon's S3.

use base::{Digest, digest};

use super::{State, elements, mac, of, refused, target};
use crate::mock::{Reply, Request};

pub(super) fn answer(request: &Request, state: &mut State, (id, key): &(String, String)) -> Option<Reply> {
    let Some(right) = is_signed(request, id, key) else { return Some(refused(403, "AccessDenied")) };
    if !right {
        return Some(refused(403, "SignatureDoesNotMatch"));
    }
    let (path, query) = target(&request.path);
    let (bucket, name) = path.strip_prefix('/')?.split_once('/')?;
    if bucket != "cache" {
        return Some(refused(404, "NoSuchBucket"));
    }
    let upload = of(&query, "uploadId");
    Some(match request.method.as_str() {
        "GET" | "HEAD" => state.get(name, request).unwrap_or_else(|| refused(404, "NoSuchKey")),
        "PUT" => {
            let bytes = match request.headers.get("x-amz-copy-source") {
                Some(source) => {
                    let source = super::decode(source);
                    state.objects.get(source.strip_prefix("cache/")?)?.bytes.clone()
                }
                None => request.body.clone(),
            };
            match (upload, of(&query, "partNumber")) {
                (Some(upload), Some(number)) => {
                    _ = state.pieces.insert((upload.to_owned(), number.to_owned()), bytes);
                }
                _ => state.put(name, bytes),
            }
            Reply::new(200, "").header("ETag", "\"tag\"")
        }
        "POST" if of(&query, "uploads").is_some() => {
            state.made.push(name.to_owned());
            Reply::new(200, format!("<R><UploadId>up/{}</UploadId></R>", state.made.len()))
        }
        "POST" => {
            let numbers = elements(&request.body, "PartNumber");
            match state.join(upload?, &numbers) {
                Some(bytes) => state.put(name, bytes),
                // As Amazon does, once it has begun to answer.
                None => return Some(Reply::new(200, "<Error><Code>InternalError</Code></Error>")),
            }
            Reply::new(200, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
        }
        "DELETE" => Reply::new(204, ""),
        _ => return None,
    })
}

/// Whether the signature is right; none for another key.
fn is_signed(request: &Request, id: &str, key: &str) -> Option<bool> {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    let fields = header("authorization").strip_prefix("AWS4-HMAC-SHA256 ")?;
    let field = |name: &str| fields.split(", ").find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
    let scope = field("Credential")?.strip_prefix(id)?.strip_prefix('/')?;
    let [date, region, service, last] = scope.split('/').collect::<Vec<_>>().try_into().ok()?;
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let names = field("SignedHeaders")?;
    let lines: String = names.split(';').map(|name| format!("{name}:{}\n", header(name))).collect();
    let payload = header("x-amz-content-sha256");
    let text = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{payload}", request.method);
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", header("x-amz-date"), Digest::of(text).hex());
    let secret =
        [date, region, service, last].iter().fold(format!("AWS4{key}").into_bytes(), |k, t| mac(k, t));
    let right = digest::hex(&mac(secret, &text)) == field("Signature")?;
    Some(right && payload == Digest::of(&request.body).hex() && names.contains("host;"))
}
