//! Where a chart is drawn: a growing string of SVG elements, and what is known about text without a font.

use std::fmt::{self, Arguments, Display, Formatter, Write};

use unicode_width::UnicodeWidthChar;

use super::HALF;
use crate::escape::Escaped;

/// The style sheet of every chart; a page holds it once.
pub(crate) const STYLE: &str = include_str!("chart.css");

/// The size of ordinary text, in pixels.
pub(super) const TEXT: f64 = 12.0;

/// A drawn chart.
#[derive(Debug, Clone)]
pub struct Svg {
    width: f64,
    height: f64,
    title: String,
    description: String,
    body: String,
}

impl Svg {
    /// An `svg` element to stand inside a [`Page`](crate::Page), which brings the style sheet.
    pub fn inline(&self) -> String {
        self.element("", 0.0, "")
    }

    /// Whether it is wider than a narrow screen.
    pub(crate) fn is_wide(&self) -> bool {
        self.width > f64::from(HALF.0)
    }

    /// An SVG file with its own style sheet, background and margin.
    pub fn standalone(&self) -> String {
        let margin = 16.0;
        let (width, height) = (Num(self.width + 2.0 * margin), Num(self.height + 2.0 * margin));
        let backdrop = format!(
            "<style>{STYLE}</style>\n<rect class=\"paper\" x=\"-16\" y=\"-16\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n"
        );
        self.element(" xmlns=\"http://www.w3.org/2000/svg\"", margin, &backdrop)
    }

    fn element(&self, namespace: &str, margin: f64, backdrop: &str) -> String {
        let (width, height) = (Num(self.width + 2.0 * margin), Num(self.height + 2.0 * margin));
        format!(
            "<svg{namespace} class=\"chart\" role=\"img\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"{corner} {corner} {width} {height}\">\n<title>{title}</title>\n<desc>{description}</desc>\n\
             {backdrop}{body}</svg>\n",
            corner = Num(-margin),
            title = Escaped(&self.title),
            description = Escaped(&self.description),
            body = self.body,
        )
    }
}

/// A coordinate: two decimals at most, and a number whatever happens.
pub(super) struct Num(pub(super) f64);

impl Display for Num {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rounded = (self.0 * 100.0).round() / 100.0;
        // Adding zero turns -0 into 0.
        write!(f, "{}", if rounded.is_finite() { rounded + 0.0 } else { 0.0 })
    }
}

/// Where a text's given x lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn attribute(self) -> &'static str {
        match self {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        }
    }
}

/// The elements drawn so far. Later ones lie on earlier ones.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    body: String,
}

impl Canvas {
    /// Writes elements as they stand.
    pub(super) fn put(&mut self, elements: Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(elements);
        self.body.push('\n');
    }

    /// A line of text whose baseline is at `y`.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = anchor.attribute();
        let class = if class.is_empty() {
            String::new()
        } else {
            format!(" class=\"{class}\"")
        };
        self.put(format_args!(
            "<text{class} x=\"{}\" y=\"{}\"{anchor}>{}</text>",
            Num(x),
            Num(y),
            Escaped(text)
        ));
    }

    /// A name cut in the middle to `room` pixels: names of models differ at their ends. The whole is in the tooltip.
    pub(super) fn text_within(&mut self, room: f64, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let short = shorten_middle(text, room);
        if short == text {
            self.text(x, y, anchor, class, text);
        } else {
            self.put(format_args!(
                "<text class=\"{class}\" x=\"{}\" y=\"{}\"{}><title>{}</title>{}</text>",
                Num(x),
                Num(y),
                anchor.attribute(),
                Escaped(text),
                Escaped(&short)
            ));
        }
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(format_args!(
            "<path class=\"{class}\" d=\"M{} {}L{} {}\"/>",
            Num(x1),
            Num(y1),
            Num(x2),
            Num(y2)
        ));
    }

    pub(super) fn finish(self, (width, height): (f64, f64), title: &str, description: String) -> Svg {
        Svg {
            width,
            height,
            title: title.to_string(),
            description,
            body: self.body,
        }
    }
}

/// A chart's size as numbers to draw with, no smaller than what a frame needs.
pub(super) fn size(width: u32, height: u32) -> (f64, f64) {
    (
        f64::from(width.clamp(240, 4096)),
        f64::from(height.clamp(180, 4096)),
    )
}

/// The width of a text at ordinary size, in pixels, estimated from classes of letters. A little more than common system
/// fonts need.
pub(super) fn text_width(text: &str) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | '\'' | '.' | ',' | ':' | ';' | '|' | '!' | ' ' => 0.32,
        'f' | 't' | 'r' | 'I' | '(' | ')' | '[' | ']' | '/' | '\\' | '-' => 0.40,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '—' | '…' => 0.98,
        'A'..='Z' | '±' | '×' | '+' | '=' | '<' | '>' | '−' => 0.75,
        c if c.is_ascii() => 0.64,
        // A full-width character takes two cells.
        c => c.width().unwrap_or(0) as f64 * 0.64,
    };
    text.chars().map(em).sum::<f64>() * TEXT
}

/// The text, or as much of its beginning as fits into `room` pixels with an ellipsis.
pub(super) fn shorten(text: &str, room: f64) -> String {
    if text_width(text) <= room {
        return text.to_string();
    }
    let mut short = String::new();
    for c in text.chars() {
        short.push(c);
        if text_width(&short) + text_width("…") > room {
            short.pop();
            break;
        }
    }
    format!("{}…", short.trim_end())
}

/// The text, or as much of both its ends as fits into `room` pixels with an ellipsis between them.
fn shorten_middle(text: &str, room: f64) -> String {
    if text_width(text) <= room {
        return text.to_string();
    }
    let half = (room - text_width("…")) / 2.0;
    let fitting = |chars: &mut dyn Iterator<Item = char>| {
        let mut width = 0.0;
        let fits = |c: &char| {
            width += text_width(c.encode_utf8(&mut [0; 4]));
            width <= half
        };
        chars.take_while(fits).collect::<String>()
    };
    let end: String = fitting(&mut text.chars().rev()).chars().rev().collect();
    format!("{}…{end}", fitting(&mut text.chars()))
}

/// The text broken at spaces into lines of `room` pixels, at most `most` of them; the last is cut where it must be.
pub(super) fn wrap(text: &str, room: f64, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let full = lines.len() == most;
        match lines.last_mut() {
            Some(line) if full || text_width(line) + text_width(" ") + text_width(word) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines.iter().map(|line| shorten(line, room)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn coordinates_are_short_and_always_numbers() {
        for (value, text) in [
            (1.005, "1"),
            (-0.001, "0"),
            (12.345678, "12.35"),
            (f64::NAN, "0"),
            (1e7, "10000000"),
        ] {
            assert_eq!(Num(value).to_string(), text);
        }
    }

    #[test]
    fn long_titles_are_wrapped_then_cut() {
        let lines = wrap(
            "Validation accuracy of every method on every task of the suite",
            160.0,
            2,
        );
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with('…'), "{lines:?}");
        assert!(wrap("", 160.0, 2).is_empty());
        assert_eq!(wrap("short", 160.0, 2), ["short"]);
    }

    proptest! {
        #[test]
        fn shortened_text_fits(text in "\\PC{0,40}", room in 20.0f64..200.0) {
            let short = shorten(&text, room);
            prop_assert!(text_width(&short) <= room, "{short}");
            prop_assert!(short == text || short.ends_with('…'));
            let short = shorten_middle(&text, room);
            prop_assert!(text_width(&short) <= room + 1e-9, "{short}");
            prop_assert!(short == text || short.contains('…'));
        }
    }
}
