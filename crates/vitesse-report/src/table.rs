//! One table, four spellings: aligned text for a terminal, Markdown for the documentation, CSV for other programs, HTML
//! for a [`Page`](crate::Page).
//!
//! Cells are text; numbers are spelled by [`format`](mod@crate::format) before they come here. Names in a cell may come out of a
//! downloaded file, so each spelling takes away whatever would have a meaning in it: terminal control sequences, Markdown
//! marks, tags.

use std::fmt::{self, Display, Formatter, Write};

use unicode_width::UnicodeWidthStr;

use crate::escape::Escaped;

/// To which side a column's cells lean. Text to the left, numbers to the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// A column: its heading and its alignment. Made by [`left`] and [`right`].
#[derive(Debug, Clone)]
pub struct Column {
    heading: String,
    align: Align,
}

/// A column of text.
pub fn left(heading: impl Into<String>) -> Column {
    Column {
        heading: heading.into(),
        align: Align::Left,
    }
}

/// A column of numbers.
pub fn right(heading: impl Into<String>) -> Column {
    Column {
        heading: heading.into(),
        align: Align::Right,
    }
}

/// A table under construction and ready to be written. `Display` is the text form.
///
/// ```
/// use vitesse_report::{Table, format, left, right};
///
/// let table = Table::new([left("model"), right("parameters"), right("MACs")])
///     .row(["deit_tiny_patch16_224", &format::count(5_717_416), &format::si(1.254e9, "")])
///     .row(["deit_small_patch16_224", &format::count(22_050_664), &format::si(4.601e9, "")]);
/// assert_eq!(
///     table.to_string(),
///     "model                   parameters     MACs\n\
///      ──────────────────────  ──────────  ───────\n\
///      deit_tiny_patch16_224    5,717,416  1.254 G\n\
///      deit_small_patch16_224  22,050,664  4.601 G\n"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Table {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Cells that are not given are empty; cells beyond the last column get columns without a heading.
    pub fn row<S: Into<String>>(mut self, cells: impl IntoIterator<Item = S>) -> Self {
        self.push(cells);
        self
    }

    /// [`row`](Self::row), for loops.
    pub fn push<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        while self.columns.len() < cells.len() {
            self.columns.push(left(""));
        }
        self.rows.push(cells);
    }

    /// True while there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A GitHub-flavoured Markdown table, padded so that the source is readable too.
    pub fn to_markdown(&self) -> String {
        let (headings, rows) = self.map(markdown_cell);
        let widths = self.widths(&headings, &rows, 3);
        let rules: Vec<String> = self
            .columns
            .iter()
            .zip(&widths)
            .map(|(column, &width)| match column.align {
                Align::Left => "-".repeat(width),
                Align::Right => format!("{}:", "-".repeat(width - 1)),
            })
            .collect();
        let mut out = String::new();
        for row in [&headings, &rules].into_iter().chain(&rows) {
            let _ = writeln!(
                out,
                "| {} |",
                self.aligned(row, &widths).collect::<Vec<_>>().join(" | ")
            );
        }
        out
    }

    /// Comma-separated values (RFC 4180, with plain newlines): the headings, then the rows.
    pub fn to_csv(&self) -> String {
        let (headings, rows) = self.map(csv_cell);
        let mut out = String::new();
        for row in [&headings].into_iter().chain(&rows) {
            out.push_str(&row.join(","));
            out.push('\n');
        }
        out
    }

    /// An HTML `table` element. The alignment of numbers is the class `n`.
    pub fn to_html(&self) -> String {
        let (headings, rows) = self.map(|cell| Escaped(cell).to_string());
        let class = |column: &Column| match column.align {
            Align::Left => "",
            Align::Right => " class=\"n\"",
        };
        let mut out = String::from("<table>\n<thead><tr>");
        for (column, heading) in self.columns.iter().zip(&headings) {
            let _ = write!(out, "<th scope=\"col\"{}>{heading}</th>", class(column));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &rows {
            out.push_str("<tr>");
            for (column, cell) in self.columns.iter().zip(row) {
                let _ = write!(out, "<td{}>{cell}</td>", class(column));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table>\n");
        out
    }

    /// The headings and the rows, every row as long as there are columns, with `spell` applied to each cell.
    fn map(&self, spell: impl Fn(&str) -> String) -> (Vec<String>, Vec<Vec<String>>) {
        let headings = self.columns.iter().map(|column| spell(&column.heading)).collect();
        let rows = self
            .rows
            .iter()
            .map(|row| {
                let cells = row.iter().map(String::as_str).chain(std::iter::repeat(""));
                cells.take(self.columns.len()).map(&spell).collect()
            })
            .collect();
        (headings, rows)
    }

    /// The width of each column in terminal cells, at least `least`.
    fn widths(&self, headings: &[String], rows: &[Vec<String>], least: usize) -> Vec<usize> {
        headings
            .iter()
            .enumerate()
            .map(|(i, heading)| {
                let cells = rows.iter().filter_map(|row| row.get(i));
                cells
                    .chain([heading])
                    .map(|cell| cell.width())
                    .fold(least, usize::max)
            })
            .collect()
    }

    /// A row's cells padded to the columns' widths. `format!` would count characters, not terminal cells.
    fn aligned<'a>(&'a self, row: &'a [String], widths: &'a [usize]) -> impl Iterator<Item = String> + 'a {
        self.columns
            .iter()
            .zip(row)
            .zip(widths)
            .map(|((column, cell), &width)| {
                let space = " ".repeat(width.saturating_sub(cell.width()));
                match column.align {
                    Align::Left => format!("{cell}{space}"),
                    Align::Right => format!("{space}{cell}"),
                }
            })
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (headings, rows) = self.map(text_cell);
        let widths = self.widths(&headings, &rows, 1);
        let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
        for row in [&headings, &rules].into_iter().chain(&rows) {
            let line = self.aligned(row, &widths).collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// One line without control characters: a line break becomes a space, the others their escape (`\u{1b}`).
fn text_cell(cell: &str) -> String {
    let mut out = String::with_capacity(cell.len());
    for c in cell.chars() {
        match c {
            '\n' | '\t' => out.push(' '),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// A text cell whose Markdown marks are escaped. An underscore inside a word, as in every model's name, is no mark.
fn markdown_cell(cell: &str) -> String {
    let text = text_cell(cell);
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let inside_word = before.is_alphanumeric() && rest.peek().is_some_and(|next| next.is_alphanumeric());
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '_' if inside_word => out.push('_'),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '~' => out.extend(['\\', c]),
            c => out.push(c),
        }
        before = c;
    }
    out
}

/// A cell in quotes where it has to be.
fn csv_cell(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) || cell.trim() != cell {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Table {
        Table::new([left("model"), right("top-1")])
            .row(["vit_tiny", "75.46"])
            .row(["猫 a|b *x* _y_ <i>", "–"])
            .row(["say \"hi\", twice\u{1b}[31m"])
    }

    #[test]
    fn text_is_aligned_by_terminal_cells() {
        assert_eq!(
            sample().to_string(),
            "model                      top-1\n\
             ─────────────────────────  ─────\n\
             vit_tiny                   75.46\n\
             猫 a|b *x* _y_ <i>             –\n\
             say \"hi\", twice\\u{1b}[31m\n"
        );
    }

    #[test]
    fn markdown_escapes_marks_but_not_names() {
        let lines: Vec<String> = sample().to_markdown().lines().map(str::to_string).collect();
        assert_eq!(lines[1], "| --------------------------- | ----: |");
        assert_eq!(lines[2], "| vit_tiny                    | 75.46 |");
        assert_eq!(lines[3], r"| 猫 a\|b \*x\* \_y\_ &lt;i>  |     – |");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let csv = sample().to_csv();
        assert!(csv.starts_with("model,top-1\nvit_tiny,75.46\n"));
        assert!(csv.ends_with("\"say \"\"hi\"\", twice\u{1b}[31m\",\n"));
    }

    #[test]
    fn html_is_escaped_and_complete() {
        let html = sample().to_html();
        assert!(html.contains("<th scope=\"col\" class=\"n\">top-1</th>"));
        assert!(html.contains("_y_ &lt;i&gt;</td>"));
        assert!(html.contains("twice\u{fffd}[31m</td><td class=\"n\"></td>"));
    }

    #[test]
    fn a_long_row_widens_the_table() {
        let table = Table::new([left("a")]).row(["1", "2"]).row(["3"]);
        assert_eq!(table.to_csv(), "a,\n1,2\n3,\n");
        assert!(!table.is_empty());
        assert!(Table::new([]).is_empty());
        assert_eq!(Table::new([]).to_string(), "\n\n");
    }

    /// Reads what `to_csv` writes.
    fn parse(csv: &str) -> Vec<Vec<String>> {
        let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
        let mut chars = csv.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
                '"' => quoted = !quoted,
                ',' if !quoted => row.push(std::mem::take(&mut cell)),
                '\n' if !quoted => {
                    row.push(std::mem::take(&mut cell));
                    rows.push(std::mem::take(&mut row));
                }
                c => cell.push(c),
            }
        }
        rows
    }

    proptest! {
        #[test]
        fn csv_gives_back_every_cell(cells in prop::collection::vec("[ ab,\"\n\r|é]{0,6}", 3)) {
            let table = Table::new([left("a"), left("b"), left("c")]).row(cells.clone());
            prop_assert_eq!(&parse(&table.to_csv())[1], &cells);
        }

        #[test]
        fn every_line_of_text_is_equally_wide(cells in prop::collection::vec("[a-zé猫 😀-]{0,12}", 6)) {
            let mut table = Table::new([left("one"), right("two")]);
            for row in cells.chunks(2) {
                table.push([row[0].as_str(), &format!("{}.", row[1])]);
            }
            let text = table.to_string();
            let widths: Vec<usize> = text.lines().map(|line| line.width()).collect();
            prop_assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        }
    }
}
