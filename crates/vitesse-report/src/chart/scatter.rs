//! Labelled points: two quantities of each of some things, such as accuracy against latency.

use super::canvas::{Anchor, Svg, TEXT, size};
use super::frame::{Around, Frame, Key, no_data};
use super::labels::place_labels;
use super::scale::{Axis, Want};
use super::{Chart, FULL, HALF, style};
use crate::format::number;

#[derive(Debug, Clone)]
struct Dot {
    label: String,
    x: f64,
    y: f64,
}

/// A scatter chart. Labels are put where they touch neither each other nor a point; one that finds no room is left to the
/// point's tooltip, and a line under the chart says how many there are.
#[derive(Debug, Clone)]
pub struct ScatterChart {
    title: String,
    x_label: String,
    y_label: String,
    log_x: bool,
    size: (u32, u32),
    series: Vec<(String, Vec<Dot>)>,
}

impl ScatterChart {
    /// A chart without points.
    pub fn new(title: impl Into<String>) -> Self {
        ScatterChart {
            title: title.into(),
            x_label: String::new(),
            y_label: String::new(),
            log_x: false,
            size: FULL,
            series: Vec::new(),
        }
    }

    /// Names the horizontal axis, with the unit: `latency (ms)`.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.x_label = label.into();
        self
    }

    /// Names the vertical axis, with the unit: `top-1 (%)`.
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.y_label = label.into();
        self
    }

    /// Makes the horizontal axis logarithmic; points whose x is not positive are left out.
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// Sets the size in pixels: [`FULL`] unless told.
    pub fn size(mut self, (width, height): (u32, u32)) -> Self {
        self.size = (width, height);
        self
    }

    /// Adds points `(label, x, y)` that belong together, such as one family of models.
    pub fn series<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        points: impl IntoIterator<Item = (S, f64, f64)>,
    ) -> Self {
        let dots = points
            .into_iter()
            .map(|(label, x, y)| Dot {
                label: label.into(),
                x,
                y,
            })
            .collect();
        self.series.push((name.into(), dots));
        self
    }

    /// In words: every point.
    fn description(&self) -> String {
        let mut words = String::from("Scatter chart.");
        for dot in self.series.iter().flat_map(|(_, dots)| dots) {
            words.push_str(&format!(
                " {}: {} {}, {} {}.",
                dot.label,
                self.x_label,
                number(dot.x),
                self.y_label,
                number(dot.y)
            ));
        }
        words
    }
}

/// The height of the line that says how many labels found no room.
const NOTE: f64 = 20.0;

impl ScatterChart {
    /// The chart, with `note` at the foot of it below the name of the axis, and how many labels found no room.
    fn framed(&self, note: Option<&str>) -> (Svg, usize) {
        let (width, whole) = size(self.size.0, self.size.1);
        let size = (width, whole - note.map_or(0.0, |_| NOTE));
        let shown = |dot: &&Dot| dot.x.is_finite() && dot.y.is_finite() && (!self.log_x || dot.x > 0.0);
        let dots = || self.series.iter().flat_map(|(_, dots)| dots).filter(shown);
        let x = Axis::new(
            dots().map(|dot| dot.x),
            Want {
                log: self.log_x,
                tight: false,
                ticks: (size.0 / 90.0) as usize,
            },
        );
        let y = Axis::new(
            dots().map(|dot| dot.y),
            Want {
                log: false,
                tight: false,
                ticks: (size.1 / 60.0) as usize,
            },
        );
        let (Some(x), Some(y)) = (x, y) else {
            return (no_data(size, &self.title), 0);
        };
        let names: Vec<&str> = self.series.iter().map(|(name, _)| name.as_str()).collect();
        let around = Around {
            size,
            title: &self.title,
            x_label: &self.x_label,
            y_label: &self.y_label,
            names: &names,
            key: Key::Marker,
        };
        let mut frame = Frame::new(&around, x, y);

        let placed: Vec<(usize, &Dot, (f64, f64))> = self
            .series
            .iter()
            .enumerate()
            .flat_map(|(i, (_, dots))| dots.iter().map(move |dot| (i, dot)))
            .filter_map(|(i, dot)| Some((i, dot, frame.at((dot.x, dot.y))?)))
            .collect();
        let labels: Vec<(&str, (f64, f64))> = placed
            .iter()
            .map(|(_, dot, at)| (dot.label.as_str(), *at))
            .collect();
        let places = place_labels(&labels, frame.area);
        for [from, to] in places.iter().flatten().filter_map(|place| place.leader) {
            frame.canvas.line("leader", from, to);
        }
        for (i, dot, at) in &placed {
            let tooltip = format!(
                "{}: {} {}, {} {}",
                dot.label,
                self.x_label,
                number(dot.x),
                self.y_label,
                number(dot.y)
            );
            style::marker(&mut frame.canvas, *i, *at, &tooltip);
        }
        for (&(label, _), place) in labels.iter().zip(&places) {
            if let Some(place) = place {
                frame
                    .canvas
                    .text(place.left, place.top + TEXT, Anchor::Start, "label", label);
            }
        }
        let left_out = places.iter().filter(|place| place.is_none()).count();
        if let Some(note) = note {
            frame.canvas.text(width, whole - 5.0, Anchor::End, "", note);
        }
        (frame.finish_in((width, whole), self.description()), left_out)
    }
}

impl Chart for ScatterChart {
    fn narrow(&self) -> Svg {
        self.clone().size(HALF).draw()
    }

    fn draw(&self) -> Svg {
        match self.framed(None) {
            (svg, 0) => svg,
            // Less room leaves no fewer of them out; counted again, for it may be more.
            (_, left_out) => {
                let note = |n: usize| format!("{n} without a label, for want of room");
                let (_, left_out) = self.framed(Some(&note(left_out)));
                self.framed(Some(&note(left_out))).0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted() {
        let points = (0..60).map(|i| (format!("model number {i}"), 1.0 + f64::from(i) * 1e-4, 1.0));
        let svg = ScatterChart::new("crowd")
            .series("s", points.chain([("far".to_string(), 9.0, 9.0)]))
            .draw();
        assert!(svg.inline().contains("without a label, for want of room"));
    }

    #[test]
    fn nothing_to_draw() {
        assert!(ScatterChart::new("x").draw().inline().contains("no data"));
        let svg = ScatterChart::new("x")
            .log_x()
            .series("s", [("a", -1.0, 1.0), ("b", f64::NAN, 2.0)])
            .draw();
        assert!(svg.inline().contains("no data"));
    }
}
