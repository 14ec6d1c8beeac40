//! How errors are shown to people.

use std::fmt::Write as _;

use base::failure::{Range, SourceExcerpt};
use base::{Detail, Failure, Kind};

/// What the daemon answered, with the kind of the error in front unless it has none.
pub(crate) fn answer(status: &tonic::Status) -> Failure {
    let failure = session::status::from_status(status);
    match failure.kind() {
        Kind::Unknown => failure,
        kind => failure.context(format!("{kind:?}")),
    }
}

/// Prints an error: the source it is about, then what it is, then advice.
pub(crate) fn print(failure: &Failure, debug: bool) {
    let mut text = String::new();
    for detail in failure.details() {
        if let Detail::Source(source) = detail {
            excerpt(source, &mut text);
        }
    }
    _ = writeln!(text, "error: {failure}");
    if debug {
        _ = writeln!(text, "kind: {:?}", failure.kind());
    }
    if let Some(hint) = failure.hint() {
        _ = writeln!(text, "hint: {hint}");
    }
    eprint!("{text}");
}

/// The lines an error is about, marked, with some around them.
pub(crate) fn excerpt(source: &SourceExcerpt, out: &mut String) {
    let data = String::from_utf8_lossy(&source.data);
    let lines: Vec<&str> = data.split('\n').collect();
    let line = |n: i32| usize::try_from(n).unwrap_or(0);
    let last = |r: &Range| line(r.end.line.max(r.start.line));
    let (Some(start), Some(end)) =
        (source.ranges.iter().map(|r| line(r.start.line)).min(), source.ranges.iter().map(last).max())
    else {
        return;
    };
    if start < 1 || start > lines.len() {
        return;
    }
    let (mut from, mut to) = (start, end.clamp(start, lines.len()));
    // More lines around a single one. Where there are none the count goes on.
    let around = if from == to { 4 } else { 2 };
    let mut shown = 0;
    while shown < around {
        if from > 1 {
            from -= 1;
            shown += 1;
        }
        if to < lines.len() {
            to += 1;
            shown += 1;
        }
        shown += 1;
    }
    let rule = "-".repeat(20);
    _ = writeln!(out, "{}:{start}\n{rule}", source.filename);
    for n in from..=to {
        let hit = source.ranges.iter().any(|r| line(r.start.line) <= n && n <= last(r));
        let mark = if hit { ">>>" } else { "   " };
        _ = writeln!(out, " {n:3} | {mark} {}", lines.get(n - 1).copied().unwrap_or_default());
    }
    _ = writeln!(out, "{rule}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::failure::Position;

    #[test]
    fn excerpts_show_what_is_around() {
        let data = (1..=9).map(|n| format!("line {n}\n")).collect::<String>().into_bytes();
        let at = |line| Position { line, character: 0 };
        let mut source = SourceExcerpt {
            filename: "Dockerfile".into(),
            data,
            ranges: vec![Range { start: at(4), end: at(4) }],
            ..SourceExcerpt::default()
        };
        let mut text = String::new();
        excerpt(&source, &mut text);
        let expected = "Dockerfile:4\n--------------------\n   2 |     line 2\n   3 |     line 3\n   4 | >>> line 4\n   \
                        5 |     line 5\n   6 |     line 6\n--------------------\n";
        assert_eq!(text, expected);

        source.ranges = vec![Range { start: at(1), end: at(2) }];
        text.clear();
        excerpt(&source, &mut text);
        assert!(text.contains("   1 | >>> line 1\n   2 | >>> line 2\n   3 |     line 3\n----"), "{text}");

        source.ranges = vec![Range { start: at(400), end: at(2) }];
        text.clear();
        excerpt(&source, &mut text);
        assert_eq!(text, "");
    }
}
