//! URLs as Go's `net/url` reads and writes them.
//!
//! Addresses are part of source identifiers and cache keys, and git is given
//! what Go makes of them. The rules of browsers, which other parsers follow,
//! lower-case hosts, drop default ports and resolve dots; these do not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;

use crate::gotext::quote;

/// A URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Url {
    /// In lower case, perhaps empty.
    pub scheme: String,
    /// What follows the scheme when it does not begin with a slash.
    pub opaque: String,
    /// What stands before `@`, decoded.
    pub user: Option<User>,
    /// With port; what is percent-encoded decoded.
    pub host: String,
    /// Decoded.
    pub path: String,
    /// After `?`, as it is.
    pub query: String,
    /// After `#`, decoded.
    pub fragment: String,
    /// The path as it is to be written.
    encoded_path: String,
    encoded_fragment: String,
    /// There is a `?`, although no query.
    force_query: bool,
    /// There is no `//`.
    omit_host: bool,
}

/// Name and password within a URL, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password, if there is a colon.
    pub password: Option<String>,
}

/// The text is no URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse {}: {reason}", quote(.url))]
pub struct ParseError {
    url: String,
    reason: Reason,
}

/// Why a text is no URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("net/url: invalid control character in URL")]
    Control,
    #[error("missing protocol scheme")]
    NoScheme,
    #[error("first path segment in URL cannot contain colon")]
    Colon,
    #[error("invalid URL escape {}", quote(.0))]
    Escape(String),
    #[error("invalid character {} in host name", quote(.0))]
    HostCharacter(String),
    #[error("net/url: invalid userinfo")]
    User,
    #[error("invalid IP-literal")]
    Literal,
    #[error("missing ']' in host")]
    Bracket,
    #[error("invalid port {} after host", quote(.0))]
    Port(String),
    #[error("invalid host: ParseAddr({}): unable to parse IP", quote(.0))]
    Address(String),
}

/// The parts of a URL, which differ in what need not be encoded.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Path,
    Host,
    Zone,
    User,
    Query,
    Fragment,
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// In the words of `net/url`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let mut parsed =
            Self::without_fragment(url).map_err(|reason| ParseError { url: url.to_owned(), reason })?;
        let decoded =
            decode(fragment, Part::Fragment).map_err(|reason| ParseError { url: text.to_owned(), reason })?;
        parsed.encoded_fragment = encoded_as(fragment, &decoded, Part::Fragment);
        parsed.fragment = lossy(decoded);
        Ok(parsed)
    }

    fn without_fragment(text: &str) -> Result<Self, Reason> {
        let mut url = Self::default();
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err(Reason::Control);
        }
        if text == "*" {
            "*".clone_into(&mut url.path);
            "*".clone_into(&mut url.encoded_path);
            return Ok(url);
        }
        let (scheme, mut rest) = scheme(text)?;
        url.scheme = scheme.to_ascii_lowercase();
        match rest.split_once('?') {
            Some((before, "")) => (rest, url.force_query) = (before, true),
            Some((before, query)) => {
                rest = before;
                query.clone_into(&mut url.query);
            }
            None => {}
        }
        if !rest.starts_with('/') {
            if !scheme.is_empty() {
                rest.clone_into(&mut url.opaque);
                return Ok(url);
            }
            if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return Err(Reason::Colon);
            }
        }
        let after_slashes = rest.strip_prefix("//").filter(|r| !scheme.is_empty() || !r.starts_with('/'));
        if let Some(after) = after_slashes {
            let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
            rest = path;
            url.authority(authority)?;
        } else if !scheme.is_empty() {
            url.omit_host = true;
        }
        let decoded = decode(rest, Part::Path)?;
        url.encoded_path = encoded_as(rest, &decoded, Part::Path);
        url.path = lossy(decoded);
        Ok(url)
    }

    fn authority(&mut self, text: &str) -> Result<(), Reason> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        self.host = host_and_port(&self.scheme, host)?;
        let Some(user) = user else { return Ok(()) };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
        if !user.chars().all(allowed) {
            return Err(Reason::User);
        }
        let part = |text: &str| decode(text, Part::User).map(lossy);
        self.user = Some(match user.split_once(':') {
            Some((name, password)) => User { name: part(name)?, password: Some(part(password)?) },
            None => User { name: part(user)?, password: None },
        });
        Ok(())
    }

    /// The same without query and fragment.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            query: String::new(),
            fragment: String::new(),
            encoded_fragment: String::new(),
            ..self.clone()
        }
    }

    /// The query as names and their values. Pairs that cannot be decoded are
    /// left out.
    pub fn query_values(&self) -> BTreeMap<String, Vec<String>> {
        parse_query(&self.query).0
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.scheme.is_empty() {
            write!(f, "{}:", self.scheme)?;
        }
        if !self.opaque.is_empty() {
            f.write_str(&self.opaque)?;
        } else {
            let has_host = !self.host.is_empty() || self.user.is_some();
            if has_host || (!self.scheme.is_empty() && !self.omit_host) {
                if has_host || !self.path.is_empty() {
                    f.write_str("//")?;
                }
                if let Some(user) = &self.user {
                    f.write_str(&encode(user.name.as_bytes(), Part::User))?;
                    if let Some(password) = &user.password {
                        write!(f, ":{}", encode(password.as_bytes(), Part::User))?;
                    }
                    f.write_str("@")?;
                }
                f.write_str(&encode(self.host.as_bytes(), Part::Host))?;
            }
            let path = &self.encoded_path;
            if !path.is_empty() && !path.starts_with('/') && !self.host.is_empty() {
                f.write_str("/")?;
            }
            let first = path.split('/').next().unwrap_or_default();
            if self.scheme.is_empty() && !has_host && first.contains(':') {
                f.write_str("./")?;
            }
            f.write_str(path)?;
        }
        if self.force_query || !self.query.is_empty() {
            write!(f, "?{}", self.query)?;
        }
        if !self.fragment.is_empty() {
            write!(f, "#{}", self.encoded_fragment)?;
        }
        Ok(())
    }
}

/// The host of an authority as resolvers and certificates know it: addresses of IPv6 without
/// brackets.
pub fn bare_host(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The URL `text` with its user's name and password made unreadable; what is no
/// URL stays as it is.
pub fn redacted(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    if let Some(user) = &mut url.user {
        const MASK: &str = "xxxxx";
        if !user.name.is_empty() {
            MASK.clone_into(&mut user.name);
        }
        if let Some(password) = &mut user.password {
            MASK.clone_into(password);
        }
    }
    url.to_string()
}

/// `url.ParseQuery`: names and values, and whether all of it could be read.
pub fn parse_query(query: &str) -> (BTreeMap<String, Vec<String>>, bool) {
    /// Go's own limit.
    const MAX_PAIRS: usize = 10_000;
    let mut values = BTreeMap::<String, Vec<String>>::new();
    if query.matches('&').count() >= MAX_PAIRS {
        return (values, false);
    }
    let mut complete = true;
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (decode(name, Part::Query), decode(value, Part::Query)) {
            (Ok(name), Ok(value)) if !pair.contains(';') => {
                values.entry(lossy(name)).or_default().push(lossy(value));
            }
            _ => complete = false,
        }
    }
    (values, complete)
}

/// `url.PathUnescape`; `None` where an escape is none.
pub fn unescape(text: &str) -> Option<String> {
    decode(text, Part::Path).ok().map(lossy)
}

/// What stands before the first colon, if it can be a scheme, and the rest.
fn scheme(text: &str) -> Result<(&str, &str), Reason> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err(Reason::NoScheme),
            ':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn host_and_port(scheme: &str, host: &str) -> Result<String, Reason> {
    let port_ok = |port: &str| match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    match host.rfind('[') {
        Some(0) => {}
        Some(_) => return Err(Reason::Literal),
        None => {
            // Some databases take several hosts with ports; web servers do not.
            let strict = matches!(scheme, "http" | "https");
            let colon = if strict { host.find(':') } else { host.rfind(':') };
            let port = colon.map_or("", |at| &host[at..]);
            if !port_ok(port) {
                return Err(Reason::Port(port.to_owned()));
            }
            return decode(host, Part::Host).map(lossy);
        }
    }
    let Some(end) = host.rfind(']') else { return Err(Reason::Bracket) };
    let (name, port) = (&host[1..end], &host[end + 1..]);
    if !port_ok(port) {
        return Err(Reason::Port(port.to_owned()));
    }
    let (address, zone) = name.split_at(name.find("%25").unwrap_or(name.len()));
    let address = lossy(decode(address, Part::Host)?);
    let zone = lossy(decode(zone, Part::Zone)?);
    if address.parse::<Ipv6Addr>().is_err() || zone == "%" {
        return Err(Reason::Address(address + &zone));
    }
    Ok(format!("[{address}{zone}]{port}"))
}

/// Whether a byte may stand as it is.
fn plain(byte: u8, part: Part) -> bool {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => true,
        b'$' | b'&' | b'+' | b'=' => part != Part::Query,
        b',' | b';' => part != Part::Query,
        b':' => matches!(part, Part::Path | Part::Host | Part::Zone | Part::Fragment),
        b'/' | b'@' => matches!(part, Part::Path | Part::Fragment),
        b'?' => part == Part::Fragment,
        b'!' | b'(' | b')' | b'*' => matches!(part, Part::Host | Part::Zone | Part::Fragment),
        b'"' | b'\'' | b'<' | b'>' | b'[' | b']' => matches!(part, Part::Host | Part::Zone),
        _ => false,
    }
}

fn decode(text: &str, part: Part) -> Result<Vec<u8>, Reason> {
    let host = matches!(part, Part::Host | Part::Zone);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        match byte {
            b'%' => {
                let escape = || Reason::Escape(String::from_utf8_lossy(rest.get(..3).unwrap_or(rest)).into());
                let digit = |at: usize| {
                    let digit = tail.get(at).and_then(|b| char::from(*b).to_digit(16));
                    digit.and_then(|d| u8::try_from(d).ok()).ok_or_else(escape)
                };
                let decoded = digit(0)? << 4 | digit(1)?;
                let percent = decoded == b'%';
                let forbidden = match part {
                    Part::Host => decoded < 0x80 && !percent,
                    Part::Zone => !percent && decoded != b' ' && !plain(decoded, Part::Host),
                    _ => false,
                };
                if forbidden {
                    return Err(escape());
                }
                out.push(decoded);
                rest = tail.get(2..).unwrap_or_default();
                continue;
            }
            b'+' if part == Part::Query => out.push(b' '),
            _ if host && byte.is_ascii() && !plain(*byte, part) => {
                return Err(Reason::HostCharacter(char::from(*byte).to_string()));
            }
            _ => out.push(*byte),
        }
        rest = tail;
    }
    Ok(out)
}

fn encode(bytes: &[u8], part: Part) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if plain(byte, part) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// How to write what was read: as it was, if that is a valid way.
fn encoded_as(written: &str, decoded: &[u8], part: Part) -> String {
    let valid = |byte: u8| b"!$&'()*+,;=:@[]%".contains(&byte) || plain(byte, part);
    if written.bytes().all(valid) { written.to_owned() } else { encode(decoded, part) }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_made_unreadable() {
        for (text, want) in [
            ("https://u:p@h/x.git#r", "https://xxxxx:xxxxx@h/x.git#r"),
            ("https://u@h/x", "https://xxxxx@h/x"),
            ("https://h/x", "https://h/x"),
            ("git@h:x", "git@h:x"),
        ] {
            assert_eq!(redacted(text), want);
        }
    }

    #[test]
    fn reads_and_writes() {
        for (text, want) in [
            ("https://Example.COM:443/a/../b%2fc?x=1&y#z", "https://Example.COM:443/a/../b%2fc?x=1&y#z"),
            ("HTTP://u%40:p%3A@h/é", "http://u%40:p%3A@h/%C3%A9"),
            ("mailto:a@b", "mailto:a@b"),
            ("file:/x", "file:/x"),
            ("file:///x", "file:///x"),
            ("//h/p", "//h/p"),
            ("a/b:c?", "a/b:c?"),
            ("http://[fe80::1%25en0]:80/", "http://[fe80::1%25en0]:80/"),
            ("http://h#a b", "http://h#a%20b"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), want, "{text}");
        }
        let url = Url::parse("git://u:p@h:9/a%20b?x=1+2&x=3&bad=%zz&y#r:d").unwrap();
        assert_eq!((url.host.as_str(), url.path.as_str(), url.fragment.as_str()), ("h:9", "/a b", "r:d"));
        assert_eq!(url.user, Some(User { name: "u".into(), password: Some("p".into()) }));
        assert_eq!(
            url.query_values().into_iter().collect::<Vec<_>>(),
            [("x".to_owned(), vec!["1 2".to_owned(), "3".to_owned()]), ("y".to_owned(), vec![String::new()]),]
        );
        assert_eq!(url.bare().to_string(), "git://u:p@h:9/a%20b");
    }

    #[test]
    fn refuses() {
        for (text, want) in [
            ("http://a b/", "parse \"http://a b/\": invalid character \" \" in host name"),
            ("http://h:x/", "parse \"http://h:x/\": invalid port \":x\" after host"),
            ("http://h/%zz", "parse \"http://h/%zz\": invalid URL escape \"%zz\""),
            ("http://h%20/", "parse \"http://h%20/\": invalid URL escape \"%20\""),
            ("a:b:c\n", "parse \"a:b:c\\n\": net/url: invalid control character in URL"),
            (":x", "parse \":x\": missing protocol scheme"),
            ("1:x", "parse \"1:x\": first path segment in URL cannot contain colon"),
            ("http://[::1", "parse \"http://[::1\": missing ']' in host"),
            ("http://x[::1]", "parse \"http://x[::1]\": invalid IP-literal"),
            ("http://a\"b@h", "parse \"http://a\\\"b@h\": net/url: invalid userinfo"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err().to_string(), want);
        }
    }
}
