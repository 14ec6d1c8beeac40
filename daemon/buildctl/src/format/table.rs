//! Columns that are as wide as they have to be.
//!
//! Cells end with a tab; what follows the last tab of a line belongs to no
//! column. A column goes on as long as lines have a cell in it, and is as wide
//! as the widest of these. Scripts cut these tables up, so the padding is that
//! of Go's `text/tabwriter`, tabs included.

/// Text to be laid out.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    lines: Vec<Vec<String>>,
    tabs: bool,
}

const TAB: usize = 8;

impl Table {
    /// Columns are padded with tabs, to multiples of eight.
    pub(crate) fn tabbed() -> Self {
        Self { lines: Vec::new(), tabs: true }
    }

    /// Columns are padded with spaces.
    pub(crate) fn spaced() -> Self {
        Self { lines: Vec::new(), tabs: false }
    }

    /// Adds a line; its cells are separated by tabs.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        self.lines.push(line.as_ref().split('\t').map(str::to_owned).collect());
    }

    /// The layout of all lines since the last time.
    pub(crate) fn take(&mut self) -> String {
        let lines = std::mem::take(&mut self.lines);
        let mut out = String::new();
        self.block(&lines, &mut Vec::new(), &mut out);
        out
    }

    /// Lays out lines whose first columns have `widths`.
    fn block(&self, lines: &[Vec<String>], widths: &mut Vec<usize>, out: &mut String) {
        let column = widths.len();
        let mut at = 0;
        while at < lines.len() {
            let has = |line: &[String]| column + 1 < line.len();
            if !has(&lines[at]) {
                self.write(&lines[at], widths, out);
                at += 1;
                continue;
            }
            let end = at + lines[at..].iter().take_while(|l| has(l)).count();
            let block = &lines[at..end];
            let width = block.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count() + 1).max();
            widths.push(width.unwrap_or(0).max(1));
            self.block(block, widths, out);
            widths.pop();
            at = end;
        }
    }

    fn write(&self, line: &[String], widths: &[usize], out: &mut String) {
        for (cell, text) in line.iter().enumerate() {
            out.push_str(text);
            let (Some(width), true) = (widths.get(cell), cell + 1 < line.len()) else { continue };
            let used = text.chars().count();
            if self.tabs {
                let missing = width.next_multiple_of(TAB).saturating_sub(used);
                out.extend(std::iter::repeat_n('\t', missing.div_ceil(TAB)));
            } else {
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
            }
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::tabbed();
        table.line("ID\tRECLAIMABLE\tSIZE");
        table.line("averylongname\ttrue\t1B");
        table.line("");
        table.line("Total:\t1B");
        assert_eq!(table.take(), "ID\t\tRECLAIMABLE\tSIZE\naverylongname\ttrue\t\t1B\n\nTotal:\t1B\n");
        assert_eq!(table.take(), "");
    }

    #[test]
    fn spaces_line_up_too() {
        let mut table = Table::spaced();
        table.line("BuildKit:\ta b c");
        table.line("Dockerfile:\t1.2");
        assert_eq!(table.take(), "BuildKit:   a b c\nDockerfile: 1.2\n");
    }
}
