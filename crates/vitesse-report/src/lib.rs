//! What was found, shown: tables, charts and one-file reports.
//!
//! * [`Table`]: one table as terminal text, Markdown, CSV or HTML.
//! * [`chart`]: line, bar, scatter, heat map and histogram, drawn as SVG.
//! * [`Page`]: a report in one HTML file that needs no network and no script.
//! * [`mod@format`]: counts, sizes, durations and percentages spelled the same way everywhere.
//!
//! Everything here is a pure function of what it is given: the same numbers make the same bytes, so reports can be compared
//! and tests can hold snapshots. Nothing reads the clock, the locale or a font.
//!
//! ```
//! use vitesse_report::{Content, Page, Table, chart::{LineChart, Series}, left, right};
//!
//! let accuracy = LineChart::new("Validation accuracy")
//!     .x_label("epoch")
//!     .y_label("top-1 (%)")
//!     .series(Series::new("RepAdapter", [(1.0, 61.2), (2.0, 70.4), (3.0, 72.1)]));
//! let table = Table::new([left("method"), right("top-1 (%)")]).row(["RepAdapter", "72.1"]);
//!
//! let page = Page::new("Adapting deit_tiny to shapes")
//!     .summary("RepAdapter reaches 72.1 % with 0.5 % of the parameters trained.")
//!     .card("Top-1", "72.1 %", "linear probe: 55.3 %")
//!     .section("Training", Content::new().chart(&accuracy).table(&table))
//!     .provenance([("seed", "42")]);
//! assert!(page.render().starts_with("<!DOCTYPE html>"));
//! ```

mod error;
mod escape;
mod html;
mod table;
mod thumbnail;

pub mod chart;
pub mod format;

pub use error::ReportError;
pub use html::{Content, Page};
pub use table::{Column, Table, left, right};
pub use thumbnail::Thumbnail;
