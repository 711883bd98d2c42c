//! Text that is safe in HTML and in SVG, between tags and inside quoted attributes alike.

use std::fmt::{self, Display, Formatter, Write};

/// Displays a string with the five characters that mean something to XML replaced by entities. Control characters,
/// which XML 1.0 forbids even as entities, become U+FFFD; so do U+FFFE and U+FFFF.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                '\u{fffe}' | '\u{ffff}' => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c if c.is_control() => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_keeps_its_meaning() {
        assert_eq!(
            Escaped("<a href=\"x\" title='y'>&\u{1b}[31m").to_string(),
            "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;\u{fffd}[31m"
        );
        assert_eq!(Escaped("a\n\tb é 猫").to_string(), "a\n\tb é 猫");
    }
}
