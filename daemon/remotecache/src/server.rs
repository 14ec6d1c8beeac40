//! For tests: a server on loopback that answers as it is told, and the way to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use registry::{Config, Downloads, Registries};

/// A server; it lives as long as the tests.
pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<AtomicU32>,
}

impl Server {
    /// One that is given whole requests, and gives statuses and bodies.
    pub(crate) fn start(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<AtomicU32>::default();
        let count = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (mut reader, mut request, mut length) = (BufReader::new(&stream), String::new(), 0);
                loop {
                    let from = request.len();
                    reader.read_line(&mut request).unwrap();
                    let line = request[from..].to_ascii_lowercase();
                    if let Some(text) = line.strip_prefix("content-length:") {
                        length = text.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                reader.take(length).read_to_string(&mut request).unwrap();
                let (status, body) = answer(&request);
                let head =
                    format!("HTTP/1.1 {status} Told\r\nConnection: close\r\nContent-Length: {}", body.len());
                _ = (&stream).write_all(format!("{head}\r\n\r\n{body}").as_bytes());
            }
        });
        Self { url, asked }
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The way out.
pub(crate) async fn downloads() -> Downloads {
    Registries::new(Config::default()).downloads().await.unwrap()
}
