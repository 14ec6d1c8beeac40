//! What a step asked for and got, as logs and provenance tell it.

use std::collections::HashMap;

use base::Digest;
use parking_lot::Mutex;

/// Bytes that are kept of all requests of a step together.
const LIMIT: usize = 4 << 20;
/// What a note costs besides its text.
const NOTE: usize = 128;

/// A request that was answered, if only by the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// Without credentials, and without the port where it is the usual one.
    pub url: String,
    /// Where the answer sends the client; empty when nowhere.
    pub redirect: String,
    /// The status of the answer.
    pub status: u16,
}

/// Something that was fetched as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// Where it was.
    pub url: String,
    /// What it was.
    pub digest: Digest,
}

/// A request of which cannot be told what the step got by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// Such as `POST`; empty when it stands for many.
    pub method: String,
    /// Where to; empty when it stands for many.
    pub url: String,
    /// Why, in a word that policies know: `unsuccessful_response`.
    pub reason: &'static str,
}

/// The notes about one step. Bounded: what is too much is told as such.
#[derive(Debug, Default)]
pub struct Capture(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    requests: Vec<Request>,
    materials: Vec<Material>,
    incomplete: Vec<Incomplete>,
    size: usize,
    full: bool,
}

impl Notes {
    /// Whether there is room for a note about `text`. The first that is left out
    /// makes the whole incomplete.
    fn has_room(&mut self, text: usize) -> bool {
        if self.full {
            return false;
        }
        self.size = self.size.saturating_add(text).saturating_add(NOTE);
        if self.size > LIMIT {
            self.full = true;
            let (method, url) = Default::default();
            self.incomplete.push(Incomplete { method, url, reason: "too_many_requests" });
        }
        !self.full
    }
}

impl Capture {
    pub(crate) fn request(&self, request: Request) {
        let mut notes = self.0.lock();
        if notes.has_room(request.method.len() + request.url.len() + request.redirect.len()) {
            notes.requests.push(request);
        }
    }

    pub(crate) fn material(&self, material: Material) {
        let mut notes = self.0.lock();
        if notes.has_room(material.url.len()) {
            notes.materials.push(material);
        }
    }

    pub(crate) fn incomplete_request(&self, incomplete: Incomplete) {
        let mut notes = self.0.lock();
        if notes.has_room(incomplete.method.len() + incomplete.url.len()) {
            notes.incomplete.push(incomplete);
        }
    }

    /// All requests, in the order in which they were answered.
    pub fn requests(&self) -> Vec<Request> {
        self.0.lock().requests.clone()
    }

    /// What cannot be told.
    pub fn incomplete(&self) -> Vec<Incomplete> {
        self.0.lock().incomplete.clone()
    }

    /// What was fetched; also under the addresses that led there.
    pub fn materials(&self) -> Vec<Material> {
        let notes = self.0.lock();
        let mut materials = notes.materials.clone();
        let mut known: HashMap<&str, &Digest> =
            notes.materials.iter().map(|m| (m.url.as_str(), &m.digest)).collect();
        let mut leading: HashMap<&str, Vec<&str>> = HashMap::new();
        for request in notes.requests.iter().filter(|r| !r.redirect.is_empty() && r.redirect != r.url) {
            leading.entry(&request.redirect).or_default().push(&request.url);
        }
        let mut open: Vec<&str> = known.keys().copied().collect();
        while let Some(target) = open.pop() {
            let Some(digest) = known.get(target).copied() else { continue };
            for from in leading.remove(target).unwrap_or_default() {
                if known.insert(from, digest).is_none() {
                    materials.push(Material { url: from.to_owned(), digest: digest.clone() });
                    open.push(from);
                }
            }
        }
        materials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, redirect: &str) -> Request {
        Request { method: "GET".into(), url: url.into(), redirect: redirect.into(), status: 302 }
    }

    #[test]
    fn what_leads_somewhere_is_what_is_there() {
        let capture = Capture::default();
        for (from, to) in [
            ("http://c", "http://d"),
            ("http://a", "http://b"),
            ("http://b", "http://c"),
            ("http://d", "http://d"),
        ] {
            capture.request(request(from, to));
        }
        capture.request(request("http://x", "http://y"));
        capture.material(Material { url: "http://d".into(), digest: Digest::of("d") });
        let mut found: Vec<_> = capture.materials().into_iter().map(|m| m.url).collect();
        found.sort();
        assert_eq!(found, ["http://a", "http://b", "http://c", "http://d"]);
    }

    #[test]
    fn too_much_is_told_as_such() {
        let capture = Capture::default();
        let url = "x".repeat(64 << 10);
        for _ in 0..1000 {
            capture.request(request(&url, ""));
        }
        assert!(capture.requests().len() < 100);
        assert_eq!(capture.incomplete().len(), 1);
        assert_eq!(capture.incomplete()[0].reason, "too_many_requests");
    }
}
