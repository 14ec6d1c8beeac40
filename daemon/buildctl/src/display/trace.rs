//! What is known of a build.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::time::Instant;

use proto::control as wire;

use super::window::Window;
use crate::format::time::nanos;

/// The end of the error of a vertex that was given up.
const CANCELED: &str = "context canceled";
/// How many lines of a failed vertex are shown again at the end.
const LAST_LINES: usize = 10;

/// A stretch of work: when it began and, if it has, when it ended.
pub(super) type Interval = (i64, Option<i64>);

/// All vertices.
pub(super) struct Trace {
    nodes: Vec<Node>,
    /// By the digest of a vertex or the id of a group.
    by_name: HashMap<String, usize>,
    /// Those that have started, in this order.
    pub(super) started: Vec<usize>,
    /// Those with news.
    pub(super) updates: BTreeSet<usize>,
    /// When the first one started, by the daemon's clock.
    pub(super) begin: Option<i64>,
    windows: Option<usize>,
}

/// A vertex, or a group of them shown as one.
#[derive(Default)]
pub(super) struct Node {
    pub(super) vertex: wire::Vertex,
    /// Before the last event.
    previous: Option<wire::Vertex>,
    /// The members of a group.
    group: Option<BTreeMap<String, wire::Vertex>>,
    /// A group of which nothing that matters has started.
    hidden: bool,
    pub(super) statuses: Vec<wire::VertexStatus>,
    pub(super) status_updates: BTreeSet<String>,
    pub(super) warnings: Vec<String>,
    pub(super) warnings_shown: usize,
    intervals: BTreeMap<i64, Option<i64>>,
    /// Lines that were not shown yet, with the time in front.
    pub(super) logs: Vec<Vec<u8>>,
    /// The last line goes on.
    pub(super) logs_open: bool,
    /// What of the first line was shown.
    pub(super) logs_shown: usize,
    pub(super) last_logs: VecDeque<Vec<u8>>,
    pub(super) index: usize,
    /// Events since it was shown, and since when.
    pub(super) count: usize,
    pub(super) waiting: Option<Instant>,
    pub(super) window: Window,
    pub(super) window_bytes: usize,
    pub(super) window_shown: usize,
}

impl Node {
    pub(super) fn merged(&self) -> Vec<Interval> {
        merge(&self.intervals)
    }

    fn recent(&self) -> Option<Interval> {
        self.merged().last().copied()
    }

    pub(super) fn is_started(&self) -> bool {
        !self.intervals.is_empty()
    }

    pub(super) fn completed(&self) -> Option<i64> {
        self.recent().and_then(|(_, stop)| stop)
    }

    /// Not shown: a group is shown in place of its members.
    pub(super) fn is_hidden(&self) -> bool {
        self.hidden
    }

    pub(super) fn is_canceled(&self) -> bool {
        self.vertex.error.ends_with(CANCELED)
    }

    fn touch(&mut self) {
        if self.count == 0 {
            self.waiting = Some(Instant::now());
        }
        self.count += 1;
    }

    fn log(&mut self, log: &wire::VertexLog) {
        let begin = self.recent().map_or(0, |(start, _)| start);
        let elapsed = log.timestamp.as_ref().map_or(0, |t| nanos(t) - begin);
        let seconds = if begin == 0 { 0.0 } else { elapsed as f64 / 1e9 };
        let decimals = if seconds < 10.0 {
            3
        } else if seconds < 100.0 {
            2
        } else {
            1
        };
        if log.msg.is_empty() {
            return;
        }
        let complete = log.msg.ends_with(b"\n");
        let text = log.msg.strip_suffix(b"\n").unwrap_or(&log.msg);
        for (i, line) in text.split(|b| *b == b'\n').enumerate() {
            match self.logs.last_mut() {
                Some(last) if i == 0 && self.logs_open => last.extend_from_slice(line),
                _ => {
                    let mut text = format!("{seconds:.decimals$} ").into_bytes();
                    text.extend_from_slice(line);
                    self.logs.push(text);
                }
            }
        }
        self.logs_open = !complete;
    }

    /// Keeps a line for the end.
    pub(super) fn remember(&mut self, line: &[u8], goes_on: bool) {
        match self.last_logs.back_mut() {
            Some(last) if goes_on => last.extend_from_slice(line),
            _ => {
                self.last_logs.push_back(line.to_vec());
                if self.last_logs.len() > LAST_LINES {
                    self.last_logs.pop_front();
                }
            }
        }
    }
}

/// Stretches that overlap are one; one without an end swallows what follows.
fn merge(intervals: &BTreeMap<i64, Option<i64>>) -> Vec<Interval> {
    let mut out: Vec<Interval> = Vec::new();
    for (&start, &stop) in intervals {
        match out.last_mut() {
            Some((_, None)) => break,
            Some((_, Some(end))) if start <= *end => match stop {
                None => {
                    if let Some(last) = out.last_mut() {
                        last.1 = None;
                    }
                }
                Some(stop) => *end = (*end).max(stop),
            },
            _ => out.push((start, stop)),
        }
    }
    out
}

impl Trace {
    /// Nothing known yet. `windows`: output is kept in windows of so many lines.
    pub(super) fn new(windows: Option<usize>) -> Self {
        Self {
            nodes: Vec::new(),
            by_name: HashMap::new(),
            started: Vec::new(),
            updates: BTreeSet::new(),
            begin: None,
            windows,
        }
    }

    /// How many lines a window has.
    pub(super) fn window_lines(&self) -> usize {
        self.windows.unwrap_or_default()
    }

    pub(super) fn node(&self, at: usize) -> Option<&Node> {
        self.nodes.get(at)
    }

    pub(super) fn node_mut(&mut self, at: usize) -> Option<&mut Node> {
        self.nodes.get_mut(at)
    }

    /// Every node that is shown on its own or will be.
    pub(super) fn visible(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, n)| !n.hidden)
    }

    fn find(&mut self, name: &str) -> (usize, bool) {
        if let Some(&at) = self.by_name.get(name) {
            return (at, false);
        }
        self.nodes.push(Node::default());
        self.by_name.insert(name.to_owned(), self.nodes.len() - 1);
        (self.nodes.len() - 1, true)
    }

    /// Takes in what the daemon says.
    pub(super) fn update(&mut self, status: wire::StatusResponse) {
        let mut groups = Vec::new();
        for vertex in status.vertexes {
            if self.begin.is_none() {
                self.begin = vertex.started.as_ref().map(nanos);
            }
            match vertex.progress_group.clone() {
                Some(group) => {
                    let at = self.member(&group, vertex);
                    if !groups.contains(&at) {
                        groups.push(at);
                    }
                }
                None => self.vertex(vertex),
            }
        }
        for at in groups {
            self.refresh_group(at);
        }
        for status in status.statuses {
            self.status(status);
        }
        for warning in status.warnings {
            if let Some(node) = self.by_name.get(&warning.vertex).and_then(|at| self.nodes.get_mut(*at)) {
                node.warnings.push(String::from_utf8_lossy(&warning.short).into_owned());
                node.touch();
            }
        }
        for log in status.logs {
            let Some(&at) = self.by_name.get(&log.vertex) else { continue };
            let Some(node) = self.nodes.get_mut(at) else { continue };
            if self.windows.is_some() {
                node.window_bytes += log.msg.len();
                node.window.write(&log.msg);
            }
            node.log(&log);
            node.touch();
            self.updates.insert(at);
        }
    }

    fn vertex(&mut self, vertex: wire::Vertex) {
        let (at, _) = self.find(&vertex.digest);
        let Some(node) = self.nodes.get_mut(at) else { return };
        let was_started = node.is_started();
        if let Some(started) = &vertex.started {
            let changed = match &node.previous {
                None => true,
                Some(old) => {
                    (&old.name, &old.started, old.cached, &old.error)
                        != (&vertex.name, &vertex.started, vertex.cached, &vertex.error)
                        || vertex.completed.is_some() && old.completed != vertex.completed
                }
            };
            if changed {
                node.touch();
                self.updates.insert(at);
            }
            node.previous = Some(vertex.clone());
            node.intervals.insert(nanos(started), vertex.completed.as_ref().map(nanos));
            if !was_started {
                self.started.push(at);
            }
        }
        // A late plan does not undo a start.
        if !was_started || vertex.started.is_some() {
            node.vertex = vertex;
        }
    }

    fn member(&mut self, group: &proto::pb::ProgressGroup, vertex: wire::Vertex) -> usize {
        let (at, new) = self.find(&group.id);
        self.by_name.insert(vertex.digest.clone(), at);
        if let Some(node) = self.nodes.get_mut(at) {
            if new {
                node.hidden = true;
                node.vertex.name.clone_from(&group.name);
                node.vertex.digest.clone_from(&group.id);
            }
            node.group.get_or_insert_default().insert(vertex.digest.clone(), vertex);
        }
        at
    }

    /// Works out the state of a group from those of its members: it is cached
    /// when all of them are, and fails with the first of them.
    fn refresh_group(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        let Some(members) = &node.group else { return };
        let (mut cached, mut error, mut hidden, mut changed) = (true, String::new(), node.hidden, false);
        for member in members.values() {
            if let Some(started) = &member.started {
                let stop = member.completed.as_ref().map(nanos);
                changed |= node.intervals.insert(nanos(started), stop) != Some(stop);
                let weak = member.progress_group.as_ref().is_some_and(|g| g.weak);
                hidden &= weak;
            }
            cached &= member.cached;
            if error.is_empty() {
                error.clone_from(&member.error);
            } else {
                hidden = false;
            }
        }
        changed |= node.vertex.cached != cached || node.vertex.error != error;
        (node.vertex.cached, node.vertex.error) = (cached, error);
        let revealed = node.hidden && !hidden;
        node.hidden = hidden;
        if hidden {
            return;
        }
        if changed || revealed {
            node.touch();
            self.updates.insert(at);
        }
        if revealed {
            self.started.push(at);
        }
    }

    fn status(&mut self, status: wire::VertexStatus) {
        let Some(&at) = self.by_name.get(&status.vertex) else { return };
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.status_updates.insert(status.id.clone());
        match node.statuses.iter_mut().find(|s| s.id == status.id) {
            Some(old) => *old = status,
            None if status.started.is_some() => node.statuses.push(status),
            None => {}
        }
        node.touch();
        self.updates.insert(at);
    }

    /// The output of what failed, once more.
    pub(super) fn failures(&self, out: &mut String) {
        let failed = self.started.iter().filter_map(|at| self.nodes.get(*at));
        for node in failed.filter(|n| !n.vertex.error.is_empty() && !n.is_canceled()) {
            _ = writeln!(out, "------\n > {}:", node.vertex.name);
            let fresh: &[Vec<u8>] = if self.windows.is_some() { &node.logs } else { &[] };
            for line in fresh.iter().chain(&node.last_logs) {
                _ = writeln!(out, "{}", String::from_utf8_lossy(line));
            }
            _ = writeln!(out, "------");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_work_counts_once() {
        let merged = |list: &[(i64, Option<i64>)]| merge(&list.iter().copied().collect());
        assert_eq!(merged(&[(1, Some(3)), (2, Some(5)), (7, Some(8))]), [(1, Some(5)), (7, Some(8))]);
        assert_eq!(merged(&[(1, Some(9)), (2, Some(3))]), [(1, Some(9))]);
        assert_eq!(merged(&[(1, Some(3)), (2, None), (9, Some(10))]), [(1, None)]);
        assert_eq!(merged(&[]), []);
    }
}
