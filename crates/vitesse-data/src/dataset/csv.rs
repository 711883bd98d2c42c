//! Comma-separated values as spreadsheets and scripts write them: RFC 4180, any end of line, an optional byte order mark.
//!
//! What stands in quotes is kept as it stands, spaces and ends of lines too; elsewhere spaces around a field do not count. That
//! difference is why no general reader does: they trim both or neither.

use std::iter::Peekable;
use std::str::Chars;

/// A line of fields.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The line that it begins on, from 1.
    pub(super) line: usize,
    pub(super) fields: Vec<String>,
}

/// The rows of a text, without blank lines.
pub(super) fn rows(text: &str) -> Rows<'_> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Rows {
        rest: text.chars().peekable(),
        line: 1,
    }
}

#[derive(Debug)]
pub(super) struct Rows<'a> {
    rest: Peekable<Chars<'a>>,
    /// The line that the next character is on.
    line: usize,
}

impl Iterator for Rows<'_> {
    type Item = Result<Row, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.rest.peek()?;
            let line = self.line;
            let mut fields = Vec::new();
            let mut blank = true;
            loop {
                let quoted = self.opens();
                match if quoted {
                    self.quoted(line)
                } else {
                    Ok(self.plain())
                } {
                    Ok(field) => fields.push(field),
                    Err(error) => return Some(Err(error)),
                }
                blank &= !quoted && fields.iter().all(String::is_empty);
                if self.rest.next_if_eq(&',').is_none() {
                    break;
                }
                blank = false;
            }
            self.end_of_line();
            if !blank {
                return Some(Ok(Row { line, fields }));
            }
        }
    }
}

impl Rows<'_> {
    /// Passes spaces, and the quote that opens a field, if there is one.
    fn opens(&mut self) -> bool {
        while self.rest.next_if(|&c| c == ' ' || c == '\t').is_some() {}
        self.rest.next_if_eq(&'"').is_some()
    }

    /// A field whose quote is open.
    fn quoted(&mut self, line: usize) -> Result<String, String> {
        let mut field = String::new();
        loop {
            match self.rest.next() {
                Some('"') if self.rest.next_if_eq(&'"').is_some() => field.push('"'),
                Some('"') => break,
                Some(c) => {
                    self.line += usize::from(c == '\n');
                    field.push(c);
                }
                None => return Err(format!("line {line}: a quote is opened and not closed")),
            }
        }
        let after = self.plain();
        if !after.is_empty() {
            return Err(format!(
                "line {line}: expected a comma after \"{field}\", found `{after}`"
            ));
        }
        Ok(field)
    }

    /// A field without quotes, or what is left of one behind them.
    fn plain(&mut self) -> String {
        let mut field = String::new();
        while let Some(c) = self.rest.next_if(|c| !matches!(c, ',' | '\r' | '\n')) {
            field.push(c);
        }
        field.truncate(field.trim_end().len());
        field
    }

    fn end_of_line(&mut self) {
        let ended = self.rest.next_if_eq(&'\r').is_some();
        if self.rest.next_if_eq(&'\n').is_some() || ended {
            self.line += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<String>> {
        rows(text).map(|row| row.unwrap().fields).collect()
    }

    #[test]
    fn quotes_keep_what_they_hold() {
        for (text, expected) in [
            ("a,b", &["a", "b"][..]),
            (" a , b\t", &["a", "b"]),
            ("\" a \",\"\tb\"", &[" a ", "\tb"]),
            ("\"a, b\" , \"c\"\"d\"", &["a, b", "c\"d"]),
            ("a\"b\"c,5\" disk", &["a\"b\"c", "5\" disk"]),
            ("\"\",", &["", ""]),
            ("\"two\r\nlines\",x", &["two\r\nlines", "x"]),
            (",", &["", ""]),
        ] {
            assert_eq!(fields(text), [expected], "{text}");
        }
    }

    #[test]
    fn every_end_of_line_and_a_mark_before_it_are_read() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["\u{feff}a,b", "", "  ", "\"c\nd\",e", "f,g"].join(end);
            let rows: Vec<Row> = rows(&text).map(Result::unwrap).collect();
            let lines: Vec<usize> = rows.iter().map(|row| row.line).collect();
            assert_eq!((rows[1].fields[0].as_str(), rows.len()), ("c\nd", 3));
            assert_eq!(lines, [1, 4, 6], "{end:?}");
        }
    }

    #[test]
    fn broken_quotes_are_sentences() {
        let error = |text| rows(text).find_map(Result::err).unwrap();
        assert_eq!(
            error("a,b\nc,\"d\ne,f"),
            "line 2: a quote is opened and not closed"
        );
        assert_eq!(
            error("\"a\"b,c"),
            "line 1: expected a comma after \"a\", found `b`"
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_in_quotes_comes_back(table in proptest::collection::vec(proptest::collection::vec("[a \\t,\"\r\n]{0,4}", 2), 1..4)) {
            let quoted = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let line = |fields: &Vec<String>| fields.iter().map(quoted).collect::<Vec<_>>().join(",");
            let text: Vec<String> = table.iter().map(line).collect();
            assert_eq!(fields(&text.join("\n")), table);
        }

        #[test]
        fn anything_is_read_or_refused(text in "[a \",\r\n]{0,20}") {
            rows(&text).for_each(drop);
        }
    }
}
