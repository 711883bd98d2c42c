//! A report as one HTML file: no script, no font, no picture from elsewhere. What it shows, it holds.
//!
//! Everything handed over is text and stays text: names out of checkpoints and file names cannot become tags. As a second
//! wall, the page forbids itself scripts and every address but `data:` pictures (its content security policy). The file is
//! also well-formed XML, so a test can read it.

use std::fmt::Write;

use crate::chart::{Chart, STYLE};
use crate::escape::Escaped;
use crate::{Table, Thumbnail};

const PAGE_STYLE: &str = include_str!("page.css");

/// What stands under a heading, from top to bottom.
#[derive(Debug, Clone, Default)]
pub struct Content {
    html: String,
}

impl Content {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A paragraph. Text between backticks is set as code, as in the program's messages.
    pub fn text(mut self, text: &str) -> Self {
        let _ = writeln!(self.html, "<p>{}</p>", prose(text));
        self
    }

    /// A paragraph that must not be overlooked: a check that was not met, a saving that time does not show.
    pub fn warning(mut self, text: &str) -> Self {
        let _ = writeln!(
            self.html,
            "<p class=\"warning\" role=\"note\">{}</p>",
            prose(text)
        );
        self
    }

    /// A table; on a narrow screen it scrolls by itself.
    pub fn table(mut self, table: &Table) -> Self {
        let _ = writeln!(
            self.html,
            "<div class=\"scroll\" tabindex=\"0\">{}</div>",
            table.to_html()
        );
        self
    }

    /// A chart as wide as the column, or as the screen where that is narrow.
    pub fn chart(self, chart: &dyn Chart) -> Self {
        self.charts(&[chart])
    }

    /// Charts beside each other where the screen is wide enough for them: two of [`HALF`](crate::chart::HALF) size.
    pub fn charts(mut self, charts: &[&dyn Chart]) -> Self {
        self.html.push_str("<div class=\"charts\">\n");
        for chart in charts {
            let drawn = chart.draw();
            let class = if drawn.is_wide() { "scroll roomy" } else { "scroll" };
            let _ = writeln!(self.html, "<div class=\"{class}\">{}</div>", drawn.inline());
            if drawn.is_wide() {
                let narrow = chart.narrow().inline();
                let _ = writeln!(self.html, "<div class=\"scroll narrow\">{narrow}</div>");
            }
        }
        self.html.push_str("</div>\n");
        self
    }

    /// A command line to repeat what is shown; one click selects it whole, without the prompt.
    pub fn command(mut self, command: &str) -> Self {
        let _ = writeln!(
            self.html,
            "<pre class=\"command\"><code>{}</code></pre>",
            Escaped(command)
        );
        self
    }

    /// Text as it stands, such as a configuration file.
    pub fn preformatted(mut self, text: &str) -> Self {
        let _ = writeln!(self.html, "<pre><code>{}</code></pre>", Escaped(text));
        self
    }

    /// A grid of pictures with their captions.
    pub fn images(mut self, thumbnails: &[Thumbnail]) -> Self {
        self.html.push_str("<div class=\"images\">\n");
        for thumbnail in thumbnails {
            self.html.push_str(&thumbnail.to_html());
        }
        self.html.push_str("</div>\n");
        self
    }

    /// Content that is folded away behind one line until it is asked for.
    pub fn details(mut self, summary: &str, content: Content) -> Self {
        let (summary, html) = (Escaped(summary), content.html);
        let _ = writeln!(
            self.html,
            "<details><summary>{summary}</summary>\n<div>\n{html}</div>\n</details>"
        );
        self
    }
}

/// A page under construction.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    summary: String,
    cards: Vec<[String; 3]>,
    sections: Vec<(String, Content)>,
    provenance: Vec<(String, String)>,
}

impl Page {
    /// A page with nothing but a title.
    pub fn new(title: impl Into<String>) -> Self {
        Page {
            title: title.into(),
            summary: String::new(),
            cards: Vec::new(),
            sections: Vec::new(),
            provenance: Vec::new(),
        }
    }

    /// The one sentence a reader should take away.
    pub fn summary(mut self, sentence: impl Into<String>) -> Self {
        self.summary = sentence.into();
        self
    }

    /// A key figure: what it is, its value, and what to compare it with (may be empty).
    pub fn card(
        mut self,
        name: impl Into<String>,
        value: impl Into<String>,
        note: impl Into<String>,
    ) -> Self {
        self.cards.push([name.into(), value.into(), note.into()]);
        self
    }

    /// A heading and what stands under it.
    pub fn section(mut self, heading: impl Into<String>, content: Content) -> Self {
        self.sections.push((heading.into(), content));
        self
    }

    /// Where the numbers come from: version, machine, data, seed. Stands at the foot of the page.
    pub fn provenance<K: Into<String>, V: Into<String>>(
        mut self,
        facts: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.provenance
            .extend(facts.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// The file's content.
    pub fn render(&self) -> String {
        let title = Escaped(&self.title);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
             style-src 'unsafe-inline'\"/>\n\
             <title>{title}</title>\n<style>\n{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
        );
        if !self.summary.is_empty() {
            let _ = writeln!(out, "<p class=\"summary\">{}</p>", prose(&self.summary));
        }
        out.push_str("</header>\n<main>\n");
        if !self.cards.is_empty() {
            out.push_str("<dl class=\"cards\">\n");
            for [name, value, note] in &self.cards {
                let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd>", Escaped(name), Escaped(value));
                if !note.is_empty() {
                    let _ = write!(out, "<dd class=\"note\">{}</dd>", Escaped(note));
                }
                out.push_str("</div>\n");
            }
            out.push_str("</dl>\n");
        }
        for (heading, content) in &self.sections {
            let _ = writeln!(
                out,
                "<section>\n<h2>{}</h2>\n{}</section>",
                Escaped(heading),
                content.html
            );
        }
        out.push_str("</main>\n");
        if !self.provenance.is_empty() {
            out.push_str("<footer>\n<dl>\n");
            for (key, value) in &self.provenance {
                let _ = writeln!(
                    out,
                    "<div><dt>{}</dt><dd>{}</dd></div>",
                    Escaped(key),
                    Escaped(value)
                );
            }
            out.push_str("</dl>\n</footer>\n");
        }
        out.push_str("</body>\n</html>\n");
        out
    }
}

/// Escaped text in which pairs of backticks have become `code` elements; one without a partner stays.
fn prose(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        let lone = i % 2 == 1 && i + 1 == parts.len();
        let _ = match i % 2 {
            1 if lone => write!(out, "`{}", Escaped(part)),
            1 => write!(out, "<code>{}</code>", Escaped(part)),
            _ => write!(out, "{}", Escaped(part)),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_make_code() {
        assert_eq!(
            prose("use `--force <dir>`, or not"),
            "use <code>--force &lt;dir&gt;</code>, or not"
        );
        assert_eq!(prose("a ` alone & more"), "a ` alone &amp; more");
        assert_eq!(prose("`a` and `b"), "<code>a</code> and `b");
        assert_eq!(prose(""), "");
    }

    #[test]
    fn a_small_page() {
        let page = Page::new("T")
            .summary("S")
            .card("a", "1", "")
            .section("H", Content::new().text("x"));
        let html = page.provenance([("seed", "42")]).render();
        let body = html.split_once("<body>").unwrap().1;
        assert_eq!(
            body,
            "\n<header>\n<h1>T</h1>\n<p class=\"summary\">S</p>\n</header>\n<main>\n\
             <dl class=\"cards\">\n<div><dt>a</dt><dd>1</dd></div>\n</dl>\n\
             <section>\n<h2>H</h2>\n<p>x</p>\n</section>\n</main>\n\
             <footer>\n<dl>\n<div><dt>seed</dt><dd>42</dd></div>\n</dl>\n</footer>\n</body>\n</html>\n"
        );
    }

    #[test]
    fn the_page_holds_all_it_needs() {
        let html = Page::new("T").render();
        for outside in ["<script", "<link", "http://", "https://", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
