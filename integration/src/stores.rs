//! Stores of objects, as clouds offer them: each speaks as much of its protocol as
//! caches need, and checks signatures on its own.

mod actions;
mod azure;
mod s3;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use base::Timestamp;

use crate::mock::{Mock, Reply, Request};

pub use actions::token;

/// An object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// When it was written.
    pub modified: Timestamp,
}

/// What a store knows.
#[derive(Debug, Default)]
struct State {
    /// Those that are whole.
    objects: BTreeMap<String, Object>,
    /// Pieces of those that are not, by upload and number.
    pieces: BTreeMap<(String, String), Vec<u8>>,
    /// Containers that were made, names that were reserved, uploads that were begun.
    made: Vec<String>,
}

type Trouble = Box<dyn Fn(&Request) -> Option<Reply> + Send>;

/// A store on loopback.
pub struct Store {
    mock: Mock,
    state: Arc<Mutex<State>>,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    fn start(answer: impl Fn(&Request, &mut State) -> Option<Reply> + Send + Sync + 'static) -> Result<Self> {
        let (state, trouble) = (Arc::<Mutex<State>>::default(), Arc::<Mutex<Option<Trouble>>>::default());
        let (own, troubled) = (state.clone(), trouble.clone());
        let mock = Mock::start(move |request| {
            let odd = lock(&troubled).as_ref().and_then(|trouble| trouble(request));
            odd.or_else(|| answer(request, &mut lock(&own))).unwrap_or_else(|| Reply::new(400, "what?"))
        })?;
        Ok(Self { mock, state, trouble })
    }

    /// A bucket `cache` at Amazon's S3, for one key.
    ///
    /// # Errors
    /// When there is no port.
    pub fn s3(id: &str, key: &str) -> Result<Self> {
        let login = (id.to_owned(), key.to_owned());
        Self::start(move |request, state| s3::answer(request, state, &login))
    }

    /// An account of Azure's blob storage; `key` as it is, not in base 64.
    ///
    /// # Errors
    /// When there is no port.
    pub fn azure(account: &str, key: &str) -> Result<Self> {
        let login = (account.to_owned(), key.to_owned());
        Self::start(move |request, state| azure::answer(request, state, &login))
    }

    /// The cache service of GitHub's actions, in its first and second version.
    ///
    /// # Errors
    /// When there is no port.
    pub fn actions(token: &str) -> Result<Self> {
        let token = token.to_owned();
        Self::start(move |request, state| actions::answer(request, state, &token))
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.mock.host())
    }

    /// What was asked, by method and path.
    pub fn seen(&self) -> Vec<Request> {
        self.mock.seen()
    }

    /// Names of objects, sorted.
    pub fn names(&self) -> Vec<String> {
        lock(&self.state).objects.keys().cloned().collect()
    }

    /// Changes objects behind everybody's back.
    pub fn edit(&self, mut change: impl FnMut(&str, &mut Object)) {
        lock(&self.state).objects.iter_mut().for_each(|(name, object)| change(name, object));
    }

    /// From now on some requests get another answer.
    pub fn trouble(&self, trouble: impl Fn(&Request) -> Option<Reply> + Send + 'static) {
        *lock(&self.trouble) = Some(Box::new(trouble));
    }

    /// No more of that.
    pub fn peace(&self) {
        *lock(&self.trouble) = None;
    }
}

impl State {
    fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.objects.insert(name.to_owned(), Object { bytes, modified: Timestamp::now() });
    }

    /// The object, or what is asked of it.
    fn get(&self, name: &str, request: &Request) -> Option<Reply> {
        let object = self.objects.get(name)?;
        let modified = object.modified.format_http();
        let from =
            request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let reply = match from.and_then(|from| from.parse::<usize>().ok()) {
            Some(from) if from >= object.bytes.len() => return Some(refused(416, "InvalidRange")),
            Some(from) => {
                let rest = object.bytes.get(from..).unwrap_or_default();
                let range = format!("bytes {from}-{}/{}", object.bytes.len() - 1, object.bytes.len());
                Reply::new(206, rest).header("content-range", &range)
            }
            None => Reply::new(200, object.bytes.clone()),
        };
        Some(reply.header("last-modified", &modified))
    }

    /// Pieces of an upload, in the order of `numbers`.
    fn join(&mut self, upload: &str, numbers: &[String]) -> Option<Vec<u8>> {
        let piece = |number: &String| self.pieces.remove(&(upload.to_owned(), number.clone()));
        Some(numbers.iter().map(piece).collect::<Option<Vec<_>>>()?.concat())
    }
}

/// A path without its query, and the query's pairs in order, all decoded.
fn target(path: &str) -> (String, Vec<(String, String)>) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    });
    (decode(path), pairs.collect())
}

fn of<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

fn decode(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.filter(|_| *first == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An error as both Amazon and Azure write it.
fn refused(status: u16, code: &str) -> Reply {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>so it is</Message></Error>");
    Reply::new(status, body).header("x-ms-error-code", code)
}

/// Texts between `<name>` and `</name>`.
fn elements(xml: &[u8], name: &str) -> Vec<String> {
    let (xml, name) = (String::from_utf8_lossy(xml), format!("<{name}>"));
    let parts = xml.split(&name).skip(1);
    parts.filter_map(|part| Some(part.split_once('<')?.0.to_owned())).collect()
}

fn mac(key: impl AsRef<[u8]>, text: &str) -> Vec<u8> {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_ref());
    ring::hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}
