//! Bars: a quantity for each of some things, such as images a second for each model at each precision.

use super::canvas::{Anchor, Canvas, Svg, size, text_width};
use super::frame::{Area, Key, header, no_data, x_axis, x_axis_height};
use super::scale::{Axis, Want, minus, usable};
use super::{Chart, FULL, HALF, style};
use crate::format::{MISSING, number};

/// A bar chart, grouped where there are several series. The bars lie: names as long as `deit_small_patch16_224` stay
/// readable, and the chart is as high as it has bars. Every bar bears its value.
#[derive(Debug, Clone)]
pub struct BarChart {
    title: String,
    x_label: String,
    width: u32,
    categories: Vec<String>,
    series: Vec<(String, Vec<f64>)>,
    /// Of each series that has them: how far the values of each category reach, down and up.
    reaches: Vec<Vec<(f64, f64)>>,
    decimals: Option<usize>,
}

impl BarChart {
    /// A chart of the given categories, from top to bottom.
    pub fn new<S: Into<String>>(title: impl Into<String>, categories: impl IntoIterator<Item = S>) -> Self {
        BarChart {
            title: title.into(),
            x_label: String::new(),
            width: FULL.0,
            categories: categories.into_iter().map(Into::into).collect(),
            series: Vec::new(),
            reaches: Vec::new(),
            decimals: None,
        }
    }

    /// Names the quantity, with its unit: `images/s`.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.x_label = label.into();
        self
    }

    /// Sets the width in pixels; the height follows from the number of bars.
    pub fn width(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    /// Adds a bar to each category, in order. Missing and unusable values are shown as such.
    pub fn series(mut self, name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        self.series.push((name.into(), values.into_iter().collect()));
        self.reaches.push(Vec::new());
        self
    }

    /// Draws a whisker over each bar of the series that was added last: from the least to the greatest of what its value stands for. One
    /// that is not known is not drawn.
    pub fn reach(mut self, ends: impl IntoIterator<Item = (f64, f64)>) -> Self {
        if let Some(last) = self.reaches.last_mut() {
            *last = ends.into_iter().collect();
        }
        self
    }

    /// Writes values with so many decimals, as far as they are known; otherwise with four digits.
    pub fn decimals(mut self, decimals: usize) -> Self {
        self.decimals = Some(decimals);
        self
    }

    /// A value as it stands in the chart.
    fn spell(&self, value: f64) -> String {
        match self.decimals {
            Some(decimals) if value.is_finite() => format!("{value:.decimals$}"),
            _ => number(value),
        }
    }

    /// How far the value of a category in a series reaches, where that is known.
    fn ends(&self, series: usize, row: usize) -> Option<(f64, f64)> {
        let (low, high) = *self.reaches.get(series)?.get(row)?;
        Some((usable(low)?, usable(high)?))
    }

    /// In words: every value.
    fn description(&self) -> String {
        let mut words = format!(
            "Bar chart of {}.",
            if self.x_label.is_empty() {
                "values"
            } else {
                &self.x_label
            }
        );
        for (row, category) in self.categories.iter().enumerate() {
            let said: Vec<String> = self
                .series
                .iter()
                .map(|(name, values)| {
                    format!(
                        "{name} {}",
                        values.get(row).map_or(MISSING.to_string(), |v| self.spell(*v))
                    )
                })
                .collect();
            words.push_str(&format!(" {category}: {}.", said.join(", ")));
        }
        words
    }
}

impl Chart for BarChart {
    fn narrow(&self) -> Svg {
        self.clone().width(HALF.0).draw()
    }

    fn draw(&self) -> Svg {
        let (width, least_height) = size(self.width, 0);
        let values = self
            .series
            .iter()
            .flat_map(|(_, values)| values.iter().take(self.categories.len()));
        let drawn: Vec<f64> = values.copied().filter_map(usable).collect();
        if drawn.is_empty() {
            return no_data((width, least_height), &self.title);
        }
        let names: Vec<&str> = self.series.iter().map(|(name, _)| name.as_str()).collect();
        let mut canvas = Canvas::default();
        let top = header(&mut canvas, width, &self.title, &names, Key::Bar) + 10.0;

        let label_width = self
            .categories
            .iter()
            .map(|name| text_width(name))
            .fold(0.0, f64::max)
            .min(width * 0.4);
        // Values stand beyond their bars' ends: the axis ends with the longest bar, before the picture does.
        let value_width = drawn
            .iter()
            .map(|value| text_width(&self.spell(*value)))
            .fold(0.0, f64::max)
            + 8.0;
        let below_zero = drawn.iter().any(|value| *value < 0.0);
        let left = label_width + 12.0 + if below_zero { value_width } else { 0.0 };
        let right = (width - value_width).max(left + 40.0);

        let thickness = if self.series.len() == 1 { 20.0 } else { 16.0 };
        let group = thickness * self.series.len() as f64 + 2.0 * (self.series.len() as f64 - 1.0);
        let pitch = group + if self.series.len() == 1 { 10.0 } else { 16.0 };
        let bottom = top + pitch * self.categories.len() as f64;
        let area = Area {
            left,
            top,
            right,
            bottom,
        };

        let ticks = ((right - left) / 80.0).max(2.0) as usize;
        let want = Want {
            log: false,
            tight: true,
            ticks,
        };
        let whiskers = (0..self.series.len()).flat_map(|i| {
            let rows = 0..self.categories.len();
            rows.filter_map(move |row| self.ends(i, row))
        });
        let whiskers = whiskers.flat_map(|(low, high)| [low, high]);
        let Some(axis) = Axis::new(drawn.into_iter().chain(whiskers).chain([0.0]), want) else {
            return no_data((width, least_height), &self.title);
        };
        x_axis(&mut canvas, area, &axis, &self.x_label, true);
        let at = |value: f64| axis.place(value).map(|place| left + place * area.width());
        let zero = at(0.0).unwrap_or(left);
        for (row, category) in self.categories.iter().enumerate() {
            let from = top + pitch * row as f64 + (pitch - group) / 2.0;
            canvas.text_within(
                label_width + 1.0,
                label_width,
                from + group / 2.0 + 4.0,
                Anchor::End,
                "label",
                category,
            );
            for (i, (name, values)) in self.series.iter().enumerate() {
                let y = from + (thickness + 2.0) * i as f64;
                let value = values.get(row).copied().unwrap_or(f64::NAN);
                let text = minus(&self.spell(value));
                let reach = self.ends(i, row);
                let baseline = y + thickness / 2.0 + 4.0;
                match at(value) {
                    Some(end) => {
                        let mut tooltip = format!("{category}, {name}: {text}");
                        if let Some((low, high)) = reach {
                            let [low, high] = [low, high].map(|end| minus(&self.spell(end)));
                            tooltip.push_str(&format!(" ({low}–{high})"));
                        }
                        style::bar(
                            &mut canvas,
                            i,
                            zero.min(end),
                            y,
                            (end - zero).abs(),
                            thickness,
                            &tooltip,
                        );
                        // The value stands beyond the bar and its whisker.
                        let (mut least, mut most) = (end, end);
                        if let Some((low, high)) = reach.and_then(|(low, high)| Some((at(low)?, at(high)?))) {
                            (least, most) = (least.min(low), most.max(high));
                            let middle = y + thickness / 2.0;
                            canvas.line("whisker", (low, middle), (high, middle));
                            for x in [low, high] {
                                canvas.line("whisker", (x, middle - 3.0), (x, middle + 3.0));
                            }
                        }
                        match value < 0.0 {
                            true => canvas.text(least - 6.0, baseline, Anchor::End, "value", &text),
                            false => canvas.text(most + 6.0, baseline, Anchor::Start, "value", &text),
                        }
                    }
                    None => canvas.text(zero + 6.0, baseline, Anchor::Start, "", MISSING),
                }
            }
        }
        canvas.line("axis", (zero, top), (zero, bottom));
        canvas.finish(
            (width, bottom + x_axis_height(&self.x_label)),
            &self.title,
            self.description(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_is_said_not_drawn() {
        let chart = BarChart::new("speed", ["a", "b"])
            .series("f32", [1.0, f64::NAN])
            .series("int8", [2.0]);
        let svg = chart.draw().inline();
        assert_eq!(
            svg.matches("<title>a, ").count() + svg.matches("<title>b, ").count(),
            2
        );
        assert_eq!(svg.matches(">–</text>").count(), 2);
        assert!(svg.contains("a: f32 1, int8 2. b: f32 –, int8 –."));
    }

    #[test]
    fn a_whisker_says_how_far_a_value_reaches() {
        let chart = BarChart::new("ratio", ["a", "b"])
            .series("x", [1.0, 2.0])
            .reach([(0.5, 4.0), (f64::NAN, 3.0)])
            .decimals(2);
        let svg = chart.draw().inline();
        assert!(svg.contains("<title>a, x: 1.00 (0.50–4.00)</title>"), "{svg}");
        assert!(svg.contains("<title>b, x: 2.00</title>"));
        assert_eq!(svg.matches("class=\"whisker\"").count(), 3);
    }

    #[test]
    fn nothing_to_draw() {
        assert!(BarChart::new("x", ["a"]).draw().inline().contains("no data"));
        assert!(
            BarChart::new("x", [""; 0])
                .series("s", [1.0])
                .draw()
                .inline()
                .contains("no data")
        );
        assert!(
            BarChart::new("x", ["a"])
                .series("s", [f64::INFINITY])
                .draw()
                .inline()
                .contains("no data")
        );
    }

    #[test]
    fn bars_below_zero_hang_from_zero() {
        let svg = BarChart::new("change", ["a", "b"])
            .series("s", [-5.0, 5.0])
            .draw()
            .inline();
        let bars: Vec<&str> = svg.lines().filter(|line| line.contains("class=\"fill")).collect();
        let number = |bar: &str, name: &str| -> f64 {
            bar.split_once(&format!(" {name}=\""))
                .unwrap()
                .1
                .split('"')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!((number(bars[0], "x") + number(bars[0], "width") - number(bars[1], "x")).abs() < 0.02);
    }
}
