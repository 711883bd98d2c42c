//! What stands around a drawing: the title, the legend, the two axes.

use super::canvas::{Anchor, Canvas, Num, Svg, TEXT, text_width, wrap};
use super::scale::Axis;
use super::style;

/// The distance between the baselines of two lines of text.
const LINE: f64 = 20.0;

/// What a legend shows beside a series' name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Line,
    Marker,
    Bar,
}

/// Draws the title and, for two or more series, the legend; gives the y below them.
pub(super) fn header(canvas: &mut Canvas, width: f64, title: &str, names: &[&str], key: Key) -> f64 {
    let mut y = 0.0;
    // Titles are set larger and bolder than the estimate of `text_width` is for.
    for line in wrap(title, width * TEXT / 15.0 * 0.95, 2) {
        y += LINE;
        canvas.text(0.0, y - 5.0, Anchor::Start, "title", &line);
    }
    if names.len() < 2 {
        return y + 4.0;
    }
    y += LINE + 4.0;
    let swatch = if key == Key::Line { 28.0 } else { 14.0 };
    let mut x = 0.0;
    for (i, name) in names.iter().enumerate() {
        let label = text_width(name).min(width - swatch - 6.0);
        if x > 0.0 && x + swatch + 6.0 + label > width {
            (x, y) = (0.0, y + LINE);
        }
        let (middle, class) = (y - 9.0, style::class(i));
        match key {
            Key::Line => {
                canvas.put(format_args!(
                    "<path class=\"line {class}\" d=\"M{} {middle}h{swatch}\"{}/>",
                    Num(x),
                    style::dashes(i)
                ));
                style::marker(canvas, i, (x + swatch / 2.0, middle), "");
            }
            Key::Marker => style::marker(canvas, i, (x + swatch / 2.0, middle), ""),
            Key::Bar => style::bar(canvas, i, x, middle - 6.0, swatch, 12.0, name),
        }
        canvas.text_within(
            label + 1.0,
            x + swatch + 6.0,
            y - 5.0,
            Anchor::Start,
            "label",
            name,
        );
        x += swatch + 6.0 + label + 18.0;
    }
    y + 4.0
}

/// A chart with nothing in it.
pub(super) fn no_data((width, height): (f64, f64), title: &str) -> Svg {
    let mut canvas = Canvas::default();
    let top = header(&mut canvas, width, title, &[], Key::Line);
    canvas.put(format_args!(
        "<rect class=\"grid\" x=\"0.5\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"4\"/>",
        Num(top + 8.5),
        Num(width - 1.0),
        Num(height - top - 9.0)
    ));
    canvas.text(
        width / 2.0,
        (top + 8.0 + height) / 2.0 + 4.0,
        Anchor::Middle,
        "",
        "no data",
    );
    canvas.finish((width, height), title, "This chart has no data.".to_string())
}

/// The rectangle in which data is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Area {
    pub(super) fn width(self) -> f64 {
        self.right - self.left
    }
}

/// Draws a horizontal axis under an area: ticks, their labels, the axis' name; with lines through the area if `grid`.
pub(super) fn x_axis(canvas: &mut Canvas, area: Area, axis: &Axis, name: &str, grid: bool) {
    let Area {
        left,
        top,
        right,
        bottom,
    } = area;
    let mut free_from = f64::NEG_INFINITY;
    for tick in &axis.ticks {
        let Some(place) = axis.place(tick.value) else {
            continue;
        };
        let x = left + place * (right - left);
        if grid {
            canvas.line("grid", (x, top), (x, bottom));
        }
        canvas.line("axis", (x, bottom), (x, bottom + 4.0));
        // Labels of a logarithmic axis stand unevenly: one that would touch the last is left out.
        let half = text_width(&tick.label) / 2.0;
        if x - half > free_from {
            canvas.text(x, bottom + 18.0, Anchor::Middle, "", &tick.label);
            free_from = x + half + 6.0;
        }
    }
    if !name.is_empty() {
        canvas.text_within(
            right,
            (left + right) / 2.0,
            bottom + 37.0,
            Anchor::Middle,
            "",
            name,
        );
    }
}

/// The height that [`x_axis`] needs below the area.
pub(super) fn x_axis_height(name: &str) -> f64 {
    if name.is_empty() { 24.0 } else { 42.0 }
}

/// A drawing with two numeric axes.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) canvas: Canvas,
    pub(super) area: Area,
    size: (f64, f64),
    title: String,
    x: Axis,
    y: Axis,
}

/// What a [`Frame`] is made of beside its axes.
#[derive(Debug)]
pub(super) struct Around<'a> {
    pub(super) size: (f64, f64),
    pub(super) title: &'a str,
    pub(super) x_label: &'a str,
    pub(super) y_label: &'a str,
    pub(super) names: &'a [&'a str],
    pub(super) key: Key,
}

impl Frame {
    /// Draws everything but the data.
    pub(super) fn new(around: &Around<'_>, x: Axis, y: Axis) -> Self {
        let &Around {
            size: (width, height),
            title,
            x_label,
            y_label,
            names,
            key,
        } = around;
        let mut canvas = Canvas::default();
        let mut top = header(&mut canvas, width, title, names, key);
        // The y axis' name lies, which is easier to read than one that stands.
        if !y_label.is_empty() {
            top += LINE;
            canvas.text_within(width, 0.0, top - 5.0, Anchor::Start, "", y_label);
        }
        let label_width = y
            .ticks
            .iter()
            .map(|tick| text_width(&tick.label))
            .fold(0.0, f64::max);
        let bottom = height - x_axis_height(x_label);
        let area = Area {
            left: label_width.min(width / 3.0) + 10.0,
            top: (top + 10.0).min(bottom - 40.0),
            right: width - 14.0,
            bottom,
        };
        for tick in &y.ticks {
            let Some(place) = y.place(tick.value) else {
                continue;
            };
            let at = bottom - place * (bottom - area.top);
            let class = if tick.value == 0.0 { "axis" } else { "grid" };
            canvas.line(class, (area.left, at), (area.right, at));
            canvas.text(area.left - 8.0, at + 4.0, Anchor::End, "", &tick.label);
        }
        canvas.line("axis", (area.left, bottom), (area.right, bottom));
        x_axis(&mut canvas, area, &x, x_label, key == Key::Marker);
        Frame {
            canvas,
            area,
            size: (width, height),
            title: title.to_string(),
            x,
            y,
        }
    }

    /// Where a point is drawn; `None` where it cannot be.
    pub(super) fn at(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        let Area {
            left,
            top,
            right,
            bottom,
        } = self.area;
        Some((
            left + self.x.place(x)? * (right - left),
            bottom - self.y.place(y)? * (bottom - top),
        ))
    }

    pub(super) fn finish(self, description: String) -> Svg {
        let size = self.size;
        self.finish_in(size, description)
    }

    /// The same in a picture of another size, which has room for more below.
    pub(super) fn finish_in(self, size: (f64, f64), description: String) -> Svg {
        self.canvas.finish(size, &self.title, description)
    }
}
