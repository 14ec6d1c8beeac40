//! The last lines a process printed, as a terminal would show them.

use std::collections::VecDeque;

/// More than any window shows.
const KEPT: usize = 100;
const MAX_LINE: usize = 4 << 10;

/// Lines, the last of which may still grow.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    lines: VecDeque<String>,
    current: String,
    /// A carriage return came: what follows replaces the line.
    returned: bool,
}

impl Window {
    pub(super) fn write(&mut self, data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        for c in console::strip_ansi_codes(&text).chars() {
            match c {
                '\n' => {
                    self.lines.push_back(std::mem::take(&mut self.current));
                    if self.lines.len() > KEPT {
                        self.lines.pop_front();
                    }
                    self.returned = false;
                }
                '\r' => self.returned = true,
                '\t' => self.push(' '),
                c if c.is_control() => {}
                c => self.push(c),
            }
        }
    }

    fn push(&mut self, c: char) {
        if std::mem::take(&mut self.returned) {
            self.current.clear();
        }
        if self.current.len() < MAX_LINE {
            self.current.push(c);
        }
    }

    /// The last lines that are not empty, at most `height`.
    pub(super) fn last(&self, height: usize) -> Vec<&str> {
        let all = self.lines.iter().chain([&self.current]).map(|l| l.trim_end());
        let mut lines: Vec<_> = all.filter(|l| !l.is_empty()).collect();
        lines.drain(..lines.len().saturating_sub(height));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_a_terminal_shows() {
        let mut window = Window::default();
        window.write(b"one\ntwo\r\n\x1b[31mthree\x1b[0m\n\n10%\r20%");
        assert_eq!(window.last(10), ["one", "two", "three", "20%"]);
        assert_eq!(window.last(2), ["three", "20%"]);
        window.write(b"\r100%\n");
        assert_eq!(window.last(1), ["100%"]);
    }
}
