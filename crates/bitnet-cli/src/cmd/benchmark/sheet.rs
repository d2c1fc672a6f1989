//! A table of results before it has a format: the same rows become text for people, Markdown and CSV.

use bitnet::bench::Figure;

use crate::report::{Align, Table};

/// A column.
pub struct Column {
    /// Its name in a CSV file.
    key: &'static str,
    /// What stands above it for people; none: they do not see it.
    heading: Option<&'static str>,
    align: Align,
}

/// A column of numbers.
pub fn number(key: &'static str, heading: &'static str) -> Column {
    Column { key, heading: Some(heading), align: Align::Right }
}

/// A column of words.
pub fn word(key: &'static str, heading: &'static str) -> Column {
    Column { key, heading: Some(heading), align: Align::Left }
}

/// A column that only files have.
pub fn hidden(key: &'static str) -> Column {
    Column { key, heading: None, align: Align::Left }
}

/// A value as people read it and as programs do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    text: String,
    value: String,
}

impl Cell {
    pub fn new(text: impl Into<String>, value: impl ToString) -> Self {
        Self { text: text.into(), value: value.to_string() }
    }

    /// As people read it.
    pub fn text(self) -> String {
        self.text
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text.clone(), text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::new(count.to_string(), count)
    }
}

/// Something that was not measured.
pub fn none() -> Cell {
    Cell::new("-", "")
}

/// Three digits or so.
pub fn plain(value: f64) -> Cell {
    let text = match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    Cell::new(text, value)
}

/// In units of 10⁹ for people.
pub fn giga(value: f64) -> Cell {
    let billions = value / 1e9;
    let digits = if billions >= 100.0 { 0 } else { 1 };
    Cell::new(format!("{billions:.digits$}"), value)
}

/// In units of 10⁶ for people.
pub fn mega(value: f64) -> Cell {
    let millions = value / 1e6;
    let digits = if millions >= 100.0 { 0 } else { 1 };
    Cell::new(format!("{millions:.digits$}"), value)
}

/// A share.
pub fn percent(share: f64) -> Cell {
    Cell::new(format!("{:.0} %", 100.0 * share), share)
}

/// The median of shares, and their range where there are several.
pub fn share(shares: &Figure) -> Cell {
    let [median, min, max] =
        [shares.median, shares.min, shares.max].map(|share| format!("{:.0}", 100.0 * share));
    let range = if min == max { String::new() } else { format!(" ({min}–{max})") };
    Cell::new(format!("{median} %{range}"), shares.median)
}

/// How many times as fast.
pub fn times(factor: f64) -> Cell {
    let digits = if factor >= 100.0 { 0 } else { 2 };
    Cell::new(format!("{factor:.digits$}×"), factor)
}

/// A value that may be missing.
pub fn or_none<T>(value: Option<T>, cell: impl FnOnce(T) -> Cell) -> Cell {
    value.map_or_else(none, cell)
}

/// Rows under columns.
pub struct Sheet {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Sheet {
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// How many columns there are.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Adds a row, a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<_> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// Headings and texts of the columns that people see.
    fn seen<'s>(&'s self) -> (Vec<&'s str>, Vec<Align>, Vec<Vec<&'s str>>) {
        let headings = self.columns.iter().filter_map(|column| column.heading).collect();
        let seen = self.columns.iter().filter(|column| column.heading.is_some());
        let aligns = seen.map(|column| column.align).collect();
        let texts = |row: &'s [Cell]| {
            let cells =
                row.iter().zip(&self.columns).filter(|(_, column)| column.heading.is_some());
            cells.map(|(cell, _)| &*cell.text).collect()
        };
        (headings, aligns, self.rows.iter().map(|row| texts(row)).collect())
    }

    pub fn text(&self) -> String {
        let (headings, aligns, rows) = self.seen();
        let mut table = Table::new(&aligns);
        table.row(headings);
        rows.into_iter().for_each(|row| table.row(row));
        table.render("")
    }

    pub fn markdown(&self) -> String {
        let (headings, aligns, rows) = self.seen();
        let line = |cells: &[&str]| {
            let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let marks: Vec<_> =
            aligns.iter().map(|align| if *align == Align::Left { "---" } else { "---:" }).collect();
        let rows: String = rows.iter().map(|row| line(row)).collect();
        line(&headings) + &line(&marks) + &rows
    }

    pub fn csv(&self) -> String {
        let keys: Vec<_> = self.columns.iter().map(|column| column.key).collect();
        let mut out = keys.join(",") + "\n";
        for row in &self.rows {
            let values: Vec<_> = row.iter().map(|cell| quoted(&cell.value)).collect();
            out += &values.join(",");
            out.push('\n');
        }
        out
    }
}

/// A value of a CSV file (RFC 4180).
fn quoted(value: &str) -> String {
    match value.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value.to_owned(),
    }
}

/// A report in parts: what it is about, its tables, and what follows from them.
pub struct Document {
    /// Names and what they are.
    pub facts: Vec<(&'static str, String)>,
    /// The first one is what a CSV file has.
    pub sheets: Vec<Sheet>,
    /// Lines under the tables.
    pub notes: Vec<String>,
}

impl Document {
    pub fn text(&self) -> String {
        let mut facts = Table::facts();
        for (name, fact) in &self.facts {
            facts.row([name, &**fact]);
        }
        let mut out = facts.render("");
        for sheet in &self.sheets {
            out += &format!("\n{}", sheet.text());
        }
        if !self.notes.is_empty() {
            out.push('\n');
        }
        for note in &self.notes {
            out += &format!("{note}\n");
        }
        out
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for (name, fact) in &self.facts {
            out += &format!("- {name}: {fact}\n");
        }
        for sheet in &self.sheets {
            out += &format!("\n{}", sheet.markdown());
        }
        for note in &self.notes {
            out += &format!("\n{note}\n");
        }
        out
    }

    pub fn csv(&self) -> String {
        self.sheets.first().map(Sheet::csv).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let mut sheet =
            Sheet::new([word("level", "level"), number("rate", "tokens/s"), hidden("hash")]);
        sheet.row(["avx2".into(), plain(12.375), "ab".into()]);
        sheet.row(["a,\"b\"|".into(), none(), "cd".into()]);
        sheet
    }

    #[test]
    fn people_see_rounded_values_in_the_columns_meant_for_them() {
        assert_eq!(sheet().text(), "level   tokens/s\navx2       12.38\na,\"b\"|         -\n");
    }

    #[test]
    fn files_have_all_columns_and_digits() {
        assert_eq!(sheet().csv(), "level,rate,hash\navx2,12.375,ab\n\"a,\"\"b\"\"|\",,cd\n");
    }

    #[test]
    fn bars_in_a_cell_do_not_end_it() {
        let expected =
            "| level | tokens/s |\n| --- | ---: |\n| avx2 | 12.38 |\n| a,\"b\"\\| | - |\n";
        assert_eq!(sheet().markdown(), expected);
    }

    #[test]
    fn numbers_keep_the_digits_that_matter() {
        let texts = [plain(0.0), plain(0.01234), plain(5.678), plain(123.4), plain(4321.0)];
        assert_eq!(texts.map(|cell| cell.text), ["0.00", "0.0123", "5.68", "123.4", "4321"]);
        assert_eq!([giga(28.44e9), giga(236e9)].map(|cell| cell.text), ["28.4", "236"]);
        let shares =
            |min, max| Figure { samples: vec![], median: 0.9, min, max, spread: max - min };
        let texts = [share(&shares(0.871, 0.914)), share(&shares(0.9, 0.9))];
        assert_eq!(texts.map(|cell| cell.text), ["90 % (87–91)", "90 %"]);
        assert_eq!((percent(0.874).text, times(7.0).text), ("87 %".into(), "7.00×".into()));
    }
}
