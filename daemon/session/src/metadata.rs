//! The words of request metadata, and how text gets into it.
//!
//! Header values are ASCII. A list with a value that is not is sent with all
//! its values query-escaped and a second key `<key>-encoded: 1`.

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use crate::Error;

/// The session's id.
pub const SESSION_ID: &str = "x-docker-expose-session-uuid";
/// The session's name; sent by some clients, used by none.
pub const SESSION_NAME: &str = "x-docker-expose-session-name";
/// Scopes the reuse of local sources to one client directory.
pub const SESSION_SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
/// A method the client serves, `/service/method`; repeated.
pub const SESSION_METHOD: &str = "x-docker-expose-session-grpc-method";
/// Milliseconds: other rules for the health check.
pub const SESSION_HEALTH_TIMEOUT: &str = "x-buildkit-session-health-custom-timeout";
/// The build a gateway call on the control socket belongs to.
pub const BUILD_ID: &str = "buildkit-controlapi-buildid";

pub(crate) const DIR_NAME: &str = "dir-name";
pub(crate) const INCLUDE: &str = "include-patterns";
pub(crate) const EXCLUDE: &str = "exclude-patterns";
pub(crate) const FOLLOW: &str = "followpaths";
pub(crate) const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
pub(crate) const EXPORTER_PREFIX: &str = "exporter-md-";
pub(crate) const EXPORTER_MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
pub(crate) const STORE_ID: &str = "buildkit-attachable-store-id";
pub(crate) const SSH_ID: &str = "buildkit.ssh.id";
pub(crate) const URL_PATH: &str = "urlpath";
pub(crate) const URL_HOST: &str = "urlhost";

/// Appends `values` under `key`, escaped when they have to be.
///
/// # Errors
/// When `key` or an unescapable value (a line feed, say) is no metadata.
pub fn put_list(map: &mut MetadataMap, key: &str, values: &[impl AsRef<str>]) -> Result<(), Error> {
    let encoded = values.iter().any(|v| !v.as_ref().is_ascii());
    for value in values {
        let value = if encoded { escape(value.as_ref()) } else { value.as_ref().to_owned() };
        append(map, key, &value)?;
    }
    if encoded {
        append(map, &format!("{key}-encoded"), "1")?;
    }
    Ok(())
}

/// Appends one value as it is.
///
/// # Errors
/// When it is not metadata.
pub fn append(map: &mut MetadataMap, key: &str, value: &str) -> Result<(), Error> {
    let key: AsciiMetadataKey = key.parse().map_err(|_| Error::BadRequest("metadata key is not ASCII"))?;
    let value: AsciiMetadataValue =
        value.parse().map_err(|_| Error::BadRequest("metadata value has control or non-ASCII characters"))?;
    map.append(key, value);
    Ok(())
}

/// All values under `key`, unescaped when they are escaped.
pub fn list(map: &MetadataMap, key: &str) -> Vec<String> {
    let flag = map.get(format!("{key}-encoded").as_str()).and_then(|v| v.to_str().ok());
    let encoded = flag.is_some_and(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"));
    let values = map.get_all(key).iter().filter_map(|v| v.to_str().ok());
    // An escape that is none gives an empty value, as it does in Go.
    values.map(|v| if encoded { unescape(v).unwrap_or_default() } else { v.to_owned() }).collect()
}

/// The first value under `key`.
pub fn first<'a>(map: &'a MetadataMap, key: &str) -> Option<&'a str> {
    map.get(key).and_then(|v| v.to_str().ok())
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|d| (d as char).to_digit(16));
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_lists_only_when_needed() {
        let mut map = MetadataMap::new();
        put_list(&mut map, "a", &["x y", "%"]).unwrap();
        put_list(&mut map, "b", &["x y", "ü%+"]).unwrap();
        assert_eq!(first(&map, "a"), Some("x y"));
        assert_eq!(first(&map, "b"), Some("x+y"));
        assert_eq!(first(&map, "b-encoded"), Some("1"));
        assert_eq!(list(&map, "a"), ["x y", "%"]);
        assert_eq!(list(&map, "b"), ["x y", "ü%+"]);
    }

    #[test]
    fn bad_escapes_are_empty() {
        let mut map = MetadataMap::new();
        append(&mut map, "k", "%zz").unwrap();
        append(&mut map, "k-encoded", "1").unwrap();
        assert_eq!(list(&map, "k"), [""]);
        assert!(append(&mut map, "k", "a\nb").is_err());
    }
}
