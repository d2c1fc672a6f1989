//! Tables with aligned columns, and numbers as people read them.

use std::fmt::Write as _;
use std::time::Duration;

/// How the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows of cells under optional headings.
#[derive(Clone, Debug)]
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(align: &[Align]) -> Self {
        Self { align: align.to_vec(), rows: Vec::new() }
    }

    /// Two columns: names, and what they are.
    pub fn facts() -> Self {
        Self::new(&[Align::Left, Align::Left])
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Lines with two blanks between columns, each after `indent`; no line ends in a blank.
    pub fn render(&self, indent: &str) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| columns(cell)).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.align.len()).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for ((cell, align), width) in row.iter().zip(&self.align).zip(&widths) {
                let pad = " ".repeat(width - columns(cell));
                let _ = match align {
                    Align::Left => write!(line, "{cell}{pad}  "),
                    Align::Right => write!(line, "{pad}{cell}  "),
                };
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

/// Characters of a cell; good enough for the Latin text and signs that tables hold.
fn columns(cell: &str) -> usize {
    cell.chars().count()
}

/// `1.5 MiB`, in powers of 1024.
pub fn bytes(count: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value.fract() == 0.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// `0.12 s`, or `850 ms` below a tenth.
pub fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 0.1 => format!("{s:.2} s"),
        s => format!("{:.1} ms", s * 1e3),
    }
}

/// `1 token`, `2 tokens`.
pub fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Tokens per second, `-` where nothing was measured.
pub fn rate(rate: Option<f64>) -> String {
    match rate.filter(|rate| rate.is_finite()) {
        Some(rate) if rate >= 100.0 => format!("{rate:.0} tokens/s"),
        Some(rate) => format!("{rate:.1} tokens/s"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_cleanly() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        table.row(["level", "ns", "verdict"]);
        table.row(["avx2", "1200", "chosen"]);
        table.row(["ä", "-", ""]);
        assert_eq!(
            table.render("  "),
            "  level    ns  verdict\n  avx2   1200  chosen\n  ä         -\n"
        );
    }

    #[test]
    fn sizes_read_well() {
        let sizes = [0, 1023, 1024, 1536, 33_554_432, 5_500_000_000].map(bytes);
        assert_eq!(sizes, ["0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "32 MiB", "5.1 GiB"]);
    }

    #[test]
    fn times_and_rates_read_well() {
        let times = [0.0123, 0.5, 12.345, 200.0].map(|s| seconds(Duration::from_secs_f64(s)));
        assert_eq!(times, ["12.3 ms", "0.50 s", "12.35 s", "200 s"]);
        assert_eq!(
            [rate(Some(12.34)), rate(None), rate(Some(f64::INFINITY))],
            ["12.3 tokens/s", "-", "-"]
        );
    }
}
