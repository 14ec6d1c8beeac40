//! Just enough HTTP to look at a registry without the code under test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body as a whole.
    pub body: Vec<u8>,
}

impl Answer {
    /// The answer, if its status says success.
    ///
    /// # Errors
    /// When it does not.
    pub fn success(self) -> Result<Self> {
        if !(200..300).contains(&self.status) {
            bail!("status {}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        Ok(self)
    }
}

/// Sends one request to `host` over plain HTTP.
///
/// # Errors
/// When no whole answer comes back.
pub fn send(host: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(body)?;
    let mut reader = BufReader::new(&stream);
    let status = line(&mut reader)?;
    let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).context("status line")?;
    let headers = read_headers(&mut reader)?;
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|e| e == "chunked") {
        loop {
            let size = usize::from_str_radix(line(&mut reader)?.trim(), 16).context("chunk size")?;
            (&mut reader).take(size as u64).read_to_end(&mut body)?;
            line(&mut reader)?;
            if size == 0 {
                break;
            }
        }
    } else if method != "HEAD" {
        reader.read_to_end(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

/// Header lines up to the empty one.
///
/// # Errors
/// When the stream ends before.
pub fn read_headers(reader: &mut impl BufRead) -> Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let text = line(reader)?;
        let Some((name, value)) = text.split_once(':') else { return Ok(headers) };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// One line without its end.
///
/// # Errors
/// When the stream ends before.
pub fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    if reader.read_line(&mut text)? == 0 {
        bail!("connection closed");
    }
    Ok(text.trim_end().to_owned())
}
