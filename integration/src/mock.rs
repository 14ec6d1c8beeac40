//! A server that answers as it is told: for registries that lie.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http::{line, read_headers};

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// What was sent with it.
    pub body: Vec<u8>,
}

/// An answer.
pub struct Reply {
    /// Such as 200.
    pub status: u16,
    /// Besides the length.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Vec<u8>,
    /// The length that is claimed; that of the body when there is none.
    pub claimed: Option<usize>,
}

impl Reply {
    /// An honest one.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), claimed: None }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// That ends after half of what it promises.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.claimed = Some(self.body.len());
        self.body.truncate(self.body.len() / 2);
        self
    }
}

/// A server, mostly on loopback.
pub struct Mock {
    host: String,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Mock {
    /// Starts one.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Self> {
        Self::start_on("127.0.0.1:0", answer)
    }

    /// Starts one that listens on `address`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start_on(
        address: &str,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        let host = listener.local_addr()?.to_string();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped, answer) = (seen.clone(), stop.clone(), Arc::new(answer));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (log, answer) = (log.clone(), answer.clone());
                thread::spawn(move || stream.map(|s| serve(&s, &log, &*answer)));
            }
        });
        Ok(Self { host, seen, stop, thread: Some(thread) })
    }

    /// Its host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> &str {
        self.host.rsplit_once(':').map_or("", |(_, port)| port)
    }

    /// What was asked, without bodies.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().map(|s| s.clone()).unwrap_or_default()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let first = line(&mut reader)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = words.next().zip(words.next()).context("request line")?;
    let headers = read_headers(&mut reader)?;
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let request = Request { method, path, headers, body };
    if let Ok(mut log) = log.lock() {
        log.push(Request { body: Vec::new(), ..request.clone() });
    }
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} Told\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.claimed.unwrap_or(reply.body.len())));
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body)?;
    }
    Ok(())
}
