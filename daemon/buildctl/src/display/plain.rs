//! Lines as they come, for logs and pipes. One vertex speaks at a time; its
//! number stands in front of each line. Others have to wait, but not for long.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::trace::{Node, Trace};
use crate::format::size;
use crate::format::time::nanos;

/// How long a vertex that has much to say keeps its turn against one that has as much.
const TURN: Duration = Duration::from_secs(5);
/// How long a vertex may have to wait.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// A counter is printed again after so many nanoseconds, or after a twentieth more.
const COUNTER_NANOS: i64 = 5_000_000_000;
const COUNTER_STEP: f64 = 0.05;
/// Names are cut here by those who want it.
const SHORT_NAME: usize = 72;

/// The state of the printer.
pub(super) struct Plain {
    current: Option<usize>,
    counters: HashMap<String, (i64, i64)>,
    begun: bool,
    next_index: usize,
    short_names: bool,
}

struct Share {
    waited: Duration,
    speed: f64,
    too_long: bool,
}

impl Plain {
    pub(super) fn new(short_names: bool) -> Self {
        Self { current: None, counters: HashMap::new(), begun: false, next_index: 0, short_names }
    }

    /// Prints what is new.
    pub(super) fn print(&mut self, trace: &mut Trace, out: &mut String) {
        let (mut done, mut rest) = (Vec::new(), BTreeSet::new());
        for &at in &trace.updates {
            match trace.node(at) {
                Some(node) if node.is_hidden() => {}
                Some(node) => match node.completed() {
                    Some(stop) => done.push((stop, at)),
                    None => drop(rest.insert(at)),
                },
                None => {}
            }
        }
        done.sort_unstable();
        let current = self.current;
        let current_done = current.is_some_and(|c| done.iter().any(|(_, at)| *at == c));
        // Those that are done come first, the one that spoke last before all.
        if let (Some(at), true) = (current, current_done) {
            self.vertex(trace, at, out);
        }
        for (_, at) in done {
            if Some(at) != current {
                self.vertex(trace, at, out);
            }
        }
        if rest.is_empty() {
            let running = |n: &Node| n.is_started() && n.completed().is_none();
            if current.and_then(|at| trace.node(at)).is_some_and(running) {
                return;
            }
            let open = trace.visible().find(|(_, n)| running(n)).map(|(at, _)| at);
            if let Some(at) = open {
                self.vertex(trace, at, out);
            }
            return;
        }
        if let Some(at) = current.filter(|at| rest.contains(at)) {
            self.vertex(trace, at, out);
        }
        if let Some(at) = self.choose(trace, rest, current, current_done) {
            self.vertex(trace, at, out);
        }
    }

    /// Whose turn it is, if it changes.
    fn choose(
        &self,
        trace: &Trace,
        mut rest: BTreeSet<usize>,
        current: Option<usize>,
        current_done: bool,
    ) -> Option<usize> {
        rest.extend(current);
        let mut shares: Vec<(usize, Share)> = Vec::new();
        let now = Instant::now();
        for at in rest {
            let Some((node, since)) = trace.node(at).and_then(|n| Some((n, n.waiting?))) else { continue };
            let waited = now.duration_since(since);
            let speed = node.count as f64 / waited.as_secs_f64().max(1e-9);
            shares.push((at, Share { waited, speed, too_long: waited > MAX_WAIT && Some(at) != current }));
        }
        let busiest = shares
            .iter()
            .max_by(|(_, a), (_, b)| a.too_long.cmp(&b.too_long).then_with(|| a.speed.total_cmp(&b.speed)));
        let busiest = busiest.map(|(at, _)| *at)?;
        if current_done || current.is_none() {
            return Some(busiest);
        }
        if let Some((at, _)) = shares.iter().find(|(_, s)| s.too_long) {
            return Some(*at);
        }
        let total: f64 = shares.iter().map(|(_, s)| s.speed).sum();
        let (_, mine) = shares.iter().find(|(at, _)| Some(*at) == current)?;
        let turn = TURN.as_secs_f64() / (1.0 - mine.speed / total);
        (turn < mine.waited.as_secs_f64()).then_some(busiest)
    }

    /// Prints all news of one vertex.
    fn vertex(&mut self, trace: &mut Trace, at: usize, out: &mut String) {
        if self.current != Some(at) {
            if let Some(old) = self.current.and_then(|old| trace.node_mut(old)) {
                if old.logs_open {
                    out.push('\n');
                }
                old.logs_shown = 0;
                old.count = 0;
                _ = writeln!(out, "#{} ...", old.index);
            }
            if std::mem::replace(&mut self.begun, true) {
                out.push('\n');
            }
        }
        let Some(node) = trace.node_mut(at) else { return };
        if node.index == 0 {
            self.next_index += 1;
            node.index = self.next_index;
        }
        if self.current != Some(at) {
            let name = if self.short_names { shorten(&node.vertex.name) } else { node.vertex.name.clone() };
            _ = writeln!(out, "#{} {name}", node.index);
        }
        let open = self.counters(node, out);
        for warning in node.warnings.iter().skip(node.warnings_shown) {
            _ = writeln!(out, "#{} WARN: {warning}", node.index);
        }
        node.warnings_shown = node.warnings.len();
        logs(node, out);
        self.current = Some(at);
        if node.completed().is_some() && !open {
            self.current = None;
            node.count = 0;
            if node.logs_open {
                out.push('\n');
            }
            end(node, out);
        }
        trace.updates.remove(&at);
    }

    /// Prints counters; true when one of them is not done.
    fn counters(&mut self, node: &mut Node, out: &mut String) -> bool {
        let mut open = false;
        for status in &node.statuses {
            if !node.status_updates.contains(&status.id) {
                continue;
            }
            let now = status.timestamp.as_ref().map_or(0, nanos);
            if let (Some((current, time)), None) = (self.counters.get(&status.id), &status.completed) {
                let step = (status.current - current) as f64;
                let step = if status.total > 0 { step / status.total as f64 } else { 0.0 };
                if step < COUNTER_STEP && now - time < COUNTER_NANOS {
                    continue;
                }
            }
            self.counters.insert(status.id.clone(), (status.current, now));
            _ = write!(out, "#{} {}", node.index, status.id);
            if status.total != 0 {
                _ = write!(out, " {} / {}", size::fixed(status.current), size::fixed(status.total));
            } else if status.current != 0 {
                _ = write!(out, " {}", size::fixed(status.current));
            }
            if let Some(started) = &status.started {
                let end = status.completed.as_ref().map_or(now, nanos);
                let seconds = (end - nanos(started)) as f64 / 1e9;
                if seconds > 0.01 {
                    _ = write!(out, " {seconds:.1}s");
                }
            }
            match status.completed {
                Some(_) => out.push_str(" done\n"),
                None => {
                    open = true;
                    out.push('\n');
                }
            }
        }
        node.status_updates.clear();
        open
    }
}

fn logs(node: &mut Node, out: &mut String) {
    let lines = std::mem::take(&mut node.logs);
    let count = lines.len();
    for (i, line) in lines.iter().enumerate() {
        let shown = if i == 0 { node.logs_shown.min(line.len()) } else { 0 };
        let text = &line[shown..];
        if shown == 0 {
            _ = write!(out, "#{} ", node.index);
        }
        out.push_str(&String::from_utf8_lossy(text));
        if i + 1 < count || !node.logs_open {
            out.push('\n');
        }
        node.remember(text, shown > 0);
    }
    if count > 0 {
        node.logs_shown = 0;
        if node.logs_open
            && let Some(last) = lines.into_iter().last()
        {
            node.logs_shown = last.len();
            node.logs.push(last);
        }
    }
}

fn end(node: &Node, out: &mut String) {
    let index = node.index;
    _ = if !node.vertex.error.is_empty() {
        match node.is_canceled() {
            true => writeln!(out, "#{index} CANCELED"),
            false => writeln!(out, "#{index} ERROR: {}", node.vertex.error),
        }
    } else if node.vertex.cached {
        writeln!(out, "#{index} CACHED")
    } else {
        let worked: i64 = node.merged().iter().filter_map(|(start, stop)| Some((*stop)? - start)).sum();
        writeln!(out, "#{index} DONE {:.1}s", worked as f64 / 1e9)
    };
}

fn shorten(name: &str) -> String {
    if name.len() <= SHORT_NAME {
        return name.to_owned();
    }
    let mut at = SHORT_NAME;
    while !name.is_char_boundary(at) {
        at -= 1;
    }
    format!("{}...", &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control as wire;

    fn at(millis: i64) -> Option<prost_types::Timestamp> {
        let nanos = i32::try_from(millis % 1000).unwrap() * 1_000_000;
        Some(prost_types::Timestamp { seconds: 1000 + millis / 1000, nanos })
    }

    fn vertex(digest: &str, started: i64, completed: Option<i64>) -> wire::Vertex {
        wire::Vertex {
            digest: digest.into(),
            name: format!("[{digest}] step"),
            started: at(started),
            completed: completed.and_then(at),
            ..Default::default()
        }
    }

    fn log(digest: &str, millis: i64, text: &str) -> wire::VertexLog {
        wire::VertexLog { vertex: digest.into(), timestamp: at(millis), stream: 1, msg: text.into() }
    }

    struct Screen(Plain, Trace, String);

    impl Screen {
        fn new() -> Self {
            Self(Plain::new(false), Trace::new(None), String::new())
        }

        fn vertices(&mut self, vertexes: Vec<wire::Vertex>) {
            self.1.update(wire::StatusResponse { vertexes, ..Default::default() });
            self.0.print(&mut self.1, &mut self.2);
        }

        fn logs(&mut self, logs: Vec<wire::VertexLog>) {
            self.1.update(wire::StatusResponse { logs, ..Default::default() });
            self.0.print(&mut self.1, &mut self.2);
        }
    }

    #[test]
    fn vertices_speak_one_after_the_other() {
        let mut screen = Screen::new();
        screen.vertices(vec![vertex("a", 0, None)]);
        screen.logs(vec![log("a", 123, "one\ntwo\nthr")]);
        screen.logs(vec![log("a", 456, "ee\n")]);
        screen.vertices(vec![vertex("b", 10, Some(20))]);
        screen.vertices(vec![vertex("a", 0, Some(1500))]);
        let mut cached = vertex("c", 5, Some(5));
        cached.cached = true;
        let mut failed = vertex("d", 5, Some(6));
        failed.error = "process failed".into();
        let mut canceled = vertex("e", 5, Some(7));
        canceled.error = "x: context canceled".into();
        screen.vertices(vec![cached, failed, canceled]);
        screen.1.failures(&mut screen.2);
        assert_eq!(
            screen.2,
            "#1 [a] step\n#1 0.123 one\n#1 0.123 two\n#1 0.123 three\n#1 ...\n\n#2 [b] step\n#2 DONE 0.0s\n\n\
             #1 [a] step\n#1 DONE 1.5s\n\n#3 [c] step\n#3 CACHED\n\n#4 [d] step\n#4 ERROR: process failed\n\n\
             #5 [e] step\n#5 CANCELED\n------\n > [d] step:\n------\n"
        );
    }

    #[test]
    fn counters_are_not_printed_too_often() {
        let mut screen = Screen::new();
        screen.vertices(vec![vertex("a", 0, None)]);
        let mut count = |current, millis, completed: Option<i64>| {
            let status = wire::VertexStatus {
                id: "sha256:x".into(),
                vertex: "a".into(),
                current,
                total: 2_000_000,
                timestamp: at(millis),
                started: at(0),
                completed: completed.and_then(at),
                ..Default::default()
            };
            screen.1.update(wire::StatusResponse { statuses: vec![status], ..Default::default() });
            screen.0.print(&mut screen.1, &mut screen.2);
        };
        count(0, 0, None);
        count(10_000, 100, None);
        count(1_000_000, 200, None);
        count(2_000_000, 300, Some(300));
        screen.vertices(vec![vertex("a", 0, Some(400))]);
        assert_eq!(
            screen.2,
            "#1 [a] step\n#1 sha256:x 0B / 2.00MB\n#1 sha256:x 1.00MB / 2.00MB 0.2s\n\
             #1 sha256:x 2.00MB / 2.00MB 0.3s done\n#1 DONE 0.4s\n"
        );
    }

    #[test]
    fn groups_are_one_vertex() {
        let mut screen = Screen::new();
        let member = |digest: &str, started, completed, weak| wire::Vertex {
            progress_group: Some(proto::pb::ProgressGroup { id: "g".into(), name: "group".into(), weak }),
            ..vertex(digest, started, completed)
        };
        screen.vertices(vec![member("a", 0, None, true)]);
        assert_eq!(screen.2, "", "a weak member alone shows nothing");
        screen.vertices(vec![member("a", 0, Some(100), true), member("b", 50, Some(300), false)]);
        assert_eq!(screen.2, "#1 group\n#1 DONE 0.3s\n");
    }

    #[test]
    fn what_failed_shows_its_last_words() {
        let mut screen = Screen::new();
        screen.vertices(vec![vertex("a", 0, None)]);
        let text = (1..=12).map(|n| format!("{n}\n")).collect::<String>();
        screen.logs(vec![log("a", 12_345, &text)]);
        let mut failed = vertex("a", 0, Some(13_000));
        failed.error = "exit code: 1".into();
        screen.vertices(vec![failed]);
        screen.2.clear();
        screen.1.failures(&mut screen.2);
        assert!(
            screen.2.starts_with("------\n > [a] step:\n12.35 3\n") || screen.2.contains("12.34 3\n"),
            "{}",
            screen.2
        );
        assert!(screen.2.ends_with("12\n------\n"));
    }
}
