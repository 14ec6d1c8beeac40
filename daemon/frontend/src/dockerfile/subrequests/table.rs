//! Columns, as Go's `text/tabwriter` aligns them with spaces.

/// Aligns cells, each of which ends at a tab, with at least `padding` spaces
/// between. What follows the last tab of a line is in no column. A column ends
/// at a line that does not have it.
pub(super) fn align(text: &str, padding: usize) -> String {
    let lines: Vec<Vec<&str>> =
        text.split(['\n', '\x0c']).map(|line| line.split(['\t', '\x0b']).collect()).collect();
    // For each line the widths of the columns it has.
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or_default();
    for column in 0..columns {
        let mut from = 0;
        while from < lines.len() {
            let length = widths[from..].iter().take_while(|w| w.len() > column).count();
            let cells = lines[from..from + length].iter().filter_map(|cells| cells.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or_default();
            for cell in widths[from..from + length].iter_mut().filter_map(|w| w.get_mut(column)) {
                *cell = widest + padding;
            }
            from += length.max(1);
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for (at, (cells, widths)) in lines.iter().zip(&widths).enumerate() {
        if at > 0 {
            out.push('\n');
        }
        for (i, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            let width = widths.get(i).copied().unwrap_or_default();
            out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns() {
        assert_eq!(align("a\tbb\tc\nää\t\td\n", 1), "a  bb c\nää    d\n");
        assert_eq!(align("long\tx\nnone\ns\ty\n", 1), "long x\nnone\ns y\n");
        assert_eq!(align("", 1), "");
    }
}
