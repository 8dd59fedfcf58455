//! Columns of text, numbers to the right.

use crate::output::line;
use anyhow::Result;

/// Rows under a header.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these columns.
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self::with_header(header.map(str::to_string).to_vec())
    }

    /// With these columns.
    pub(crate) fn with_header(header: Vec<String>) -> Self {
        Table { rows: vec![header] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it as a Markdown table to standard output.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub(crate) fn print(&self) -> Result<()> {
        self.lines().iter().try_for_each(|text| line(text))
    }

    /// Its lines, as Markdown.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let columns = self.rows[0].len();
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (i, row) in self.rows.iter().enumerate() {
            let cell = |c: usize| {
                let (text, width) = (row.get(c).map_or("", String::as_str), widths[c]);
                match c {
                    0 => format!("{text:<width$}"),
                    _ => format!("{text:>width$}"),
                }
            };
            lines.push(format!("| {} |", (0..columns).map(cell).collect::<Vec<_>>().join(" | ")));
            if i == 0 {
                let rule = |c: usize| format!("{}{}", "-".repeat(widths[c].max(2) - 1), if c == 0 { "-" } else { ":" });
                lines.push(format!("| {} |", (0..columns).map(rule).collect::<Vec<_>>().join(" | ")));
            }
        }
        lines
    }
}
