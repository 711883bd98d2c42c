//! Charts as SVG, drawn by hand: the same numbers make the same bytes.
//!
//! Every chart is a value built by naming its parts, then [drawn](Chart::draw) into an [`Svg`], which stands inside a page
//! ([`Svg::inline`]) or alone in a file ([`Svg::standalone`]). What they have in common:
//!
//! * **Layout.** Title, legend and axis name stand above the drawing, never on it (`frame`); ticks lie on 1, 2 or 5 times a
//!   power of ten (`scale`). There is no font to measure, so widths of text are estimated on the generous side (`canvas`).
//! * **Colours** are variables of `chart.css`, which follows the reader's light or dark setting. The seven series colours keep
//!   their distance under the common kinds of colour blindness, and no two series differ by colour alone: lines have dashes
//!   and markers, bars hatches, cells numbers (`style`).
//! * **Reading aloud.** An image has a title and a description in words; every mark has its exact value as a tooltip.
//! * **Bad numbers.** NaN, infinities and magnitudes beyond 1e100 are gaps, as are values that a logarithmic axis cannot
//!   show; a chart with nothing to draw says so.

mod bar;
mod canvas;
mod frame;
mod heatmap;
mod histogram;
mod labels;
mod line;
mod scale;
mod scatter;
mod style;

pub use bar::BarChart;
pub use canvas::Svg;
pub use heatmap::HeatMap;
pub use histogram::Histogram;
pub use line::{LineChart, Series};
pub use scatter::ScatterChart;

pub(crate) use canvas::STYLE;

/// Width and height, in pixels, of a chart that fills a page's column.
pub const FULL: (u32, u32) = (880, 360);
/// Width and height, in pixels, of a chart that stands beside another.
pub const HALF: (u32, u32) = (428, 300);

/// What can be drawn.
pub trait Chart {
    /// Draws the chart. Never fails: what cannot be drawn is left out or said in words.
    fn draw(&self) -> Svg;

    /// Draws it for a narrow screen, as wide as [`HALF`]: shrunk to that, the text of a wide one could not be read.
    fn narrow(&self) -> Svg;
}
