//! A list that is redrawn in place, with the output of what runs below it.

use std::fmt::Write as _;
use std::time::{Instant, SystemTime};

use console::{Term, measure_text_width, truncate_str};

use super::colors::{Colors, Role};
use super::trace::{Node, Trace};
use crate::format::size;
use crate::format::time::nanos;

/// A line.
struct Job {
    name: String,
    status: String,
    seconds: f64,
    done: bool,
    role: Role,
    /// The vertex whose output may be shown below.
    node: Option<usize>,
    window: bool,
}

/// The state of the screen.
pub(super) struct Tty {
    term: Term,
    colors: Colors,
    /// Lines drawn last time, without the first.
    lines: Option<usize>,
    /// When the first vertex was seen to start.
    begun: Instant,
    /// The daemon's clock is behind ours by this many nanoseconds.
    skew: Option<i64>,
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

impl Tty {
    pub(super) fn new(term: Term) -> Self {
        Self { term, colors: Colors::from_env(), lines: None, begun: Instant::now(), skew: None }
    }

    /// Draws the list; at the end all of it.
    pub(super) fn draw(&mut self, trace: &mut Trace, all: bool, out: &mut String) {
        let (height, width) = self.term.size();
        let (width, height) = (usize::from(width).max(20), usize::from(height).max(4));
        if let (Some(begin), None) = (trace.begin, self.skew) {
            self.skew = Some(now() - begin);
            self.begun = Instant::now();
        }
        let now = now() - self.skew.unwrap_or(0);

        let (mut total, mut done) = (0, 0);
        for (_, node) in trace.visible() {
            total += 1;
            done += usize::from(node.completed().is_some());
        }
        let mut jobs = Vec::new();
        for &at in &trace.started {
            if let Some(node) = trace.node(at) {
                list(at, node, now, &mut jobs);
            }
        }
        let jobs = self.arrange(trace, jobs, height, all);

        if let Some(lines) = self.lines {
            _ = write!(out, "\x1b[{}A", lines + 1);
        }
        out.push_str("\r\x1b[?25l");
        let finished = if all && done > 0 && done == total { "FINISHED" } else { "" };
        let head =
            format!("[+] Building {:.1}s ({done}/{total}) {finished}", self.begun.elapsed().as_secs_f64());
        _ = writeln!(out, "{}\x1b[K", truncate_str(&head, width, ""));
        let mut lines = 0;
        for job in jobs {
            let Some(line) = layout(&job, width) else { continue };
            let line = if job.done { self.colors.paint(job.role, &line) } else { line };
            _ = writeln!(out, "{line}\x1b[K");
            lines += 1;
            if let (true, Some(node)) = (job.window, job.node.and_then(|at| trace.node(at))) {
                for text in node.window.last(trace.window_lines()) {
                    let line = format!(" => => # {text}");
                    _ = writeln!(out, "\x1b[2m{}\x1b[0m\x1b[K", truncate_str(&line, width, ""));
                    lines += 1;
                }
            }
        }
        // What is left of the last drawing.
        out.push_str("\x1b[J\x1b[?25h");
        self.lines = Some(lines);
    }

    /// Decides who gets a window, and which lines there is room for.
    fn arrange(&self, trace: &mut Trace, mut jobs: Vec<Job>, height: usize, all: bool) -> Vec<Job> {
        let busy = jobs.iter().filter(|j| !j.done).count();
        let room = height.saturating_sub(2);
        let window = trace.window_lines();
        let mut candidates: Vec<(usize, usize)> = jobs
            .iter()
            .enumerate()
            .filter(|(_, j)| !j.done)
            .filter_map(|(at, j)| {
                let node = trace.node(j.node?)?;
                // Those that print much, and those that had a window already.
                (node.window_bytes > 0).then_some((node.window_bytes + 50 * node.window_shown, at))
            })
            .collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        let (mut free, mut used) = (room.saturating_sub(busy), 0);
        for (_, at) in candidates {
            if free <= window + 3 {
                break;
            }
            free -= window + 3;
            let Some(job) = jobs.get_mut(at) else { continue };
            job.window = true;
            if let Some(node) = job.node.and_then(|n| trace.node_mut(n)) {
                node.window_shown += 1;
                used += node.window.last(window).len();
            }
        }
        if all { jobs } else { fit(jobs, room.saturating_sub(used)) }
    }
}

/// The last `limit` lines, but rather what still runs than what is done.
fn fit(mut jobs: Vec<Job>, limit: usize) -> Vec<Job> {
    let mut excess = jobs.len().saturating_sub(limit);
    jobs.retain(|job| {
        let keep = excess == 0 || !job.done;
        excess -= usize::from(!keep);
        keep
    });
    let excess = jobs.len().saturating_sub(limit);
    jobs.drain(..excess);
    jobs
}

/// The lines of one vertex.
fn list(at: usize, node: &Node, now: i64, jobs: &mut Vec<Job>) {
    let seconds = |start: i64, stop: Option<i64>| (stop.unwrap_or(now) - start).max(0) as f64 / 1e9;
    let mut name = node.vertex.name.replace('\t', " ");
    let mut role = Role::Run;
    if !node.vertex.error.is_empty() {
        let (word, how) =
            if node.is_canceled() { ("CANCELED", Role::Cancel) } else { ("ERROR", Role::Error) };
        (name, role) = (format!("{word} {name}"), how);
    }
    if node.vertex.cached {
        name = format!("CACHED {name}");
    }
    let merged = node.merged();
    jobs.push(Job {
        name,
        status: String::new(),
        seconds: merged.iter().map(|(start, stop)| seconds(*start, *stop)).sum(),
        done: node.completed().is_some(),
        role,
        node: Some(at),
        window: false,
    });
    for status in &node.statuses {
        let started = status.started.as_ref().map_or(now, nanos);
        let progress = match (status.current, status.total) {
            (0, 0) => String::new(),
            (current, 0) => size::fixed(current),
            (current, total) => format!("{} / {}", size::fixed(current), size::fixed(total)),
        };
        jobs.push(Job {
            name: format!("=> {}", status.id),
            status: progress,
            seconds: seconds(started, status.completed.as_ref().map(nanos)),
            done: status.completed.is_some(),
            role: Role::Run,
            node: None,
            window: false,
        });
    }
    for warning in &node.warnings {
        let last = merged.last().map_or(0.0, |(start, stop)| seconds(*start, *stop));
        jobs.push(Job {
            name: format!("WARN: {warning}"),
            status: String::new(),
            seconds: last,
            done: true,
            role: Role::Cancel,
            node: None,
            window: false,
        });
    }
}

/// ` => name status    1.0s`; `None` when there is no room.
fn layout(job: &Job, width: usize) -> Option<String> {
    let seconds = if job.seconds < 0.05 { 0.0 } else { job.seconds };
    let timer = format!(" {seconds:.1}s");
    let mut left = width.checked_sub(4 + timer.len() + 2)?;
    let mut status = "";
    if !job.status.is_empty() && left > job.status.len() + 12 {
        status = &job.status;
        left -= status.len() + 1;
    }
    if left < 12 {
        return None;
    }
    let mut line = format!(" => {}", truncate_str(&job.name, left, ""));
    if !status.is_empty() {
        _ = write!(line, " {status}");
    }
    let fill = width.saturating_sub(measure_text_width(&line) + timer.len());
    line.extend(std::iter::repeat_n(' ', fill));
    Some(line + &timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, done: bool) -> Job {
        Job {
            name: name.into(),
            status: String::new(),
            seconds: 1.0,
            done,
            role: Role::Run,
            node: None,
            window: false,
        }
    }

    #[test]
    fn lines_fit_the_screen() {
        let line = layout(&job("[1/2] FROM x", true), 40).unwrap();
        assert_eq!(line.len(), 40);
        assert!(line.starts_with(" => [1/2] FROM x ") && line.ends_with(" 1.0s"));
        let line =
            layout(&Job { status: "1.00MB / 2.00MB".into(), ..job(&"long".repeat(30), true) }, 60).unwrap();
        assert_eq!(line.len(), 60);
        assert!(line.contains("1.00MB / 2.00MB"));
        assert!(layout(&job("x", true), 10).is_none());
    }

    #[test]
    fn what_runs_is_kept_on_the_screen() {
        let jobs = vec![job("a", false), job("b", true), job("c", true), job("d", true)];
        let names: Vec<_> = fit(jobs, 2).into_iter().map(|j| j.name).collect();
        assert_eq!(names, ["a", "d"]);
        assert_eq!(fit(vec![job("a", false), job("b", false)], 1).len(), 1);
    }

    #[test]
    fn drawing_goes_over_the_last_one() {
        let mut trace = Trace::new(Some(6));
        let mut tty = Tty::new(Term::stderr());
        let mut out = String::new();
        tty.draw(&mut trace, false, &mut out);
        assert!(out.contains("[+] Building 0.0s (0/0)"), "{out:?}");
        out.clear();
        tty.draw(&mut trace, true, &mut out);
        assert!(out.starts_with("\x1b[1A\r"), "{out:?}");
    }
}
