//! Aligned columns without lines, for people and for `awk`.

use std::fmt::Write as _;

use crate::plain::plain;

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a heading.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet.
    pub(super) fn new(columns: impl IntoIterator<Item = (&'static str, Align)>) -> Table {
        Table { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// A row, a text for each column; an empty one is shown as `-`, so that columns can be counted.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        let plain = cells.into_iter().map(|cell| plain(&cell).into_owned());
        let filled = plain.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        self.rows.push(filled.collect());
    }

    /// The heading and the rows, a line each.
    pub(super) fn render(&self) -> String {
        let width = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            cells.chain([self.columns[index].0.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, &width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                // Writing to a String cannot fail.
                let _ = match align {
                    Align::Left => write!(line, "{cell:<width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `name: value` lines, the values aligned.
pub(super) fn details(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let value = if value.is_empty() { "-".into() } else { plain(value) };
        let _ = writeln!(text, "{:<width$}  {value}", format!("{name}:"));
    }
    text
}

/// A number with a decimal prefix and three or four digits: `950`, `1.23k`, `45.6M`.
pub(super) fn short(number: f64) -> String {
    let mut number = number.max(0.0);
    for prefix in ["", "k", "M", "G", "T"] {
        if number < 999.5 {
            return match number {
                _ if prefix.is_empty() => format!("{number:.0}"),
                n if n < 9.995 => format!("{n:.2}{prefix}"),
                n if n < 99.95 => format!("{n:.1}{prefix}"),
                n => format!("{n:.0}{prefix}"),
            };
        }
        number /= 1000.0;
    }
    format!("{number:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([("NAME", Align::Left), ("N", Align::Right), ("X", Align::Left)]);
        table.row(["p1".into(), "7".into(), String::new()]);
        table.row(["longer".into(), "1234".into(), "x".into()]);
        assert_eq!(table.render(), "NAME       N  X\np1         7  -\nlonger  1234  x\n");
        assert_eq!(details(&[("a", "1".into()), ("bcd", String::new())]), "a:    1\nbcd:  -\n");
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (12_345.0, "12.3k"),
            (9.9996e8, "1.00G"),
            (2e16, "20P"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
