//! The result: medians per figure and daemon.

use std::fmt;

/// What a figure counts. Less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds.
    Millis,
    /// Mebibytes.
    Mebibytes,
    /// Whatever can be counted.
    Things,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Millis => "ms",
            Self::Mebibytes => "MiB",
            Self::Things => "number",
        })
    }
}

struct Row {
    figure: String,
    unit: Unit,
    /// Samples per column.
    columns: Vec<Vec<f64>>,
}

/// Everything that was measured.
pub(crate) struct Table {
    names: Vec<String>,
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Table {
    /// A column per name.
    pub(crate) fn new(names: Vec<String>) -> Self {
        Self { names, rows: Vec::new(), failures: Vec::new() }
    }

    /// One sample.
    pub(crate) fn add(&mut self, figure: &str, unit: Unit, column: usize, value: f64) {
        let row = match self.rows.iter().position(|row| row.figure == figure) {
            Some(row) => row,
            None => {
                let columns = vec![Vec::new(); self.names.len()];
                self.rows.push(Row { figure: figure.to_owned(), unit, columns });
                self.rows.len() - 1
            }
        };
        if let Some(samples) = self.rows.get_mut(row).and_then(|row| row.columns.get_mut(column)) {
            samples.push(value);
        }
    }

    /// A case that could not be measured.
    pub(crate) fn fail(&mut self, case: &str, column: usize, reason: &str) {
        let name = self.names.get(column).map_or("", String::as_str);
        let lines: Vec<&str> = reason.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join(" / ");
        eprintln!("{name}: {case}: {reason}");
        self.failures.push(format!("{name}: {case}: {last}"));
    }
}

/// The middle of the samples.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => sorted.get(middle).copied(),
        _ => Some((sorted.get(middle - 1)? + sorted.get(middle)?) / 2.0),
    }
}

fn number(unit: Unit, value: f64) -> String {
    match value {
        v if unit == Unit::Things => format!("{v:.0}"),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| figure | unit |")?;
        for (column, name) in self.names.iter().enumerate() {
            write!(f, " {name} |{}", if column > 0 { " ratio |" } else { "" })?;
        }
        write!(f, "\n| --- | --- |")?;
        for column in 0..self.names.len() {
            write!(f, " ---: |{}", if column > 0 { " ---: |" } else { "" })?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "| {} | {} |", row.figure, row.unit)?;
            let first = row.columns.first().and_then(|samples| median(samples));
            for (column, samples) in row.columns.iter().enumerate() {
                let value = median(samples);
                write!(f, " {} |", value.map_or_else(|| "–".into(), |v| number(row.unit, v)))?;
                if column > 0 {
                    let ratio =
                        value.zip(first).filter(|(_, first)| *first > 0.0).map(|(v, first)| v / first);
                    write!(f, " {} |", ratio.map_or_else(|| "–".into(), |r| format!("{r:.2}×")))?;
                }
            }
            writeln!(f)?;
        }
        if !self.failures.is_empty() {
            writeln!(f, "\nNot measured:\n")?;
            for failure in &self.failures {
                writeln!(f, "* {failure}")?;
            }
        }
        Ok(())
    }
}
