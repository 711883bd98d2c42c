//! Histogram: how values are spread, such as a layer's weights or a benchmark's latencies.

use super::canvas::{Anchor, Svg, size};
use super::frame::{Around, Frame, Key, no_data};
use super::scale::{Axis, Step, Want, usable};
use super::{Chart, FULL, HALF, style};
use crate::format::{count, number};

/// A histogram. The bins have round edges and about the width that Freedman and Diaconis (1981) advise, between five and
/// sixty of them.
#[derive(Debug, Clone)]
pub struct Histogram {
    title: String,
    x_label: String,
    size: (u32, u32),
    values: Vec<f64>,
    unusable: usize,
}

impl Histogram {
    /// A histogram of the given values. What is not finite is counted and said, not drawn.
    pub fn new(title: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let mut all = 0;
        let mut values: Vec<f64> = values
            .into_iter()
            .inspect(|_| all += 1)
            .filter_map(usable)
            .collect();
        let unusable = all - values.len();
        values.sort_by(f64::total_cmp);
        Histogram {
            title: title.into(),
            x_label: String::new(),
            size: FULL,
            values,
            unusable,
        }
    }

    /// Names the values, with their unit: `latency (ms)`.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.x_label = label.into();
        self
    }

    /// Sets the size in pixels: [`FULL`] unless told.
    pub fn size(mut self, (width, height): (u32, u32)) -> Self {
        self.size = (width, height);
        self
    }

    /// The value below which a fraction of all lie.
    fn quantile(&self, fraction: f64) -> f64 {
        let index = (fraction * self.values.len().saturating_sub(1) as f64).round() as usize;
        self.values.get(index).copied().unwrap_or(f64::NAN)
    }

    /// The bins' edges, one more than bins, and what each bin holds. The last bin includes its upper edge.
    fn bins(&self) -> (Vec<f64>, Vec<u64>) {
        let (Some(&low), Some(&high)) = (self.values.first(), self.values.last()) else {
            return (vec![], vec![]);
        };
        let (low, high) = if high - low > low.abs().max(high.abs()) * 1e-9 {
            (low, high)
        } else {
            (low - low.abs().max(1e-3) * 0.1, high + high.abs().max(1e-3) * 0.1)
        };
        let advised = 2.0 * (self.quantile(0.75) - self.quantile(0.25)) / (self.values.len() as f64).cbrt();
        let bins = if advised > 0.0 {
            ((high - low) / advised).clamp(5.0, 60.0)
        } else {
            30.0
        };
        let step = Step::new(high - low, bins as usize, 0.0);
        let (first, last) = (step.floor(low), step.ceil(high));
        let edges: Vec<f64> = (0..=(last - first) as usize)
            .map(|i| step.at(first + i as f64))
            .collect();
        let mut counts = vec![0; edges.len() - 1];
        for value in &self.values {
            let bin = edges
                .partition_point(|edge| edge <= value)
                .clamp(1, edges.len() - 1)
                - 1;
            if let Some(count) = counts.get_mut(bin) {
                *count += 1;
            }
        }
        (edges, counts)
    }
}

impl Chart for Histogram {
    fn narrow(&self) -> Svg {
        self.clone().size(HALF).draw()
    }

    fn draw(&self) -> Svg {
        let size = size(self.size.0, self.size.1);
        let (edges, counts) = self.bins();
        let want = |tight: bool, ticks: f64| Want {
            log: false,
            tight,
            ticks: ticks as usize,
        };
        let x = Axis::new(edges.iter().copied(), want(true, size.0 / 80.0));
        let y = Axis::new(
            counts.iter().map(|&n| n as f64).chain([0.0]),
            want(false, size.1 / 60.0),
        );
        let (Some(x), Some(y)) = (x, y) else {
            return no_data(size, &self.title);
        };
        let around = Around {
            size,
            title: &self.title,
            x_label: &self.x_label,
            y_label: "count",
            names: &[],
            key: Key::Bar,
        };
        let mut frame = Frame::new(&around, x, y);
        for (edge, &n) in edges.windows(2).zip(&counts) {
            let &[low, high] = edge else { continue };
            let (Some(from), Some(to)) = (frame.at((low, 0.0)), frame.at((high, n as f64))) else {
                continue;
            };
            if n > 0 {
                let tooltip = format!("{} to {}: {}", number(low), number(high), count(n));
                let gap = if to.0 - from.0 > 4.0 { 1.0 } else { 0.0 };
                style::bar(
                    &mut frame.canvas,
                    0,
                    from.0,
                    to.1,
                    to.0 - from.0 - gap,
                    from.1 - to.1,
                    &tooltip,
                );
            }
        }
        let mut words = format!(
            "Histogram of {} values: median {}, middle half from {} to {}, all from {} to {}.",
            count(self.values.len() as u64),
            number(self.quantile(0.5)),
            number(self.quantile(0.25)),
            number(self.quantile(0.75)),
            number(self.quantile(0.0)),
            number(self.quantile(1.0))
        );
        if self.unusable > 0 {
            let note = format!("{} not finite, not shown", count(self.unusable as u64));
            frame
                .canvas
                .text(size.0 - 14.0, frame.area.top - 15.0, Anchor::End, "", &note);
            words.push_str(&format!(" {note}."));
        }
        frame.finish(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_is_in_the_bin_it_belongs_to(values in prop::collection::vec(-1e3f64..1e3, 1..200)) {
            let (edges, counts) = Histogram::new("x", values.clone()).bins();
            prop_assert_eq!(counts.iter().sum::<u64>(), values.len() as u64);
            prop_assert!(counts.len() <= 62, "{} bins", counts.len());
            for (n, pair) in edges.windows(2).enumerate() {
                let last = n + 1 == counts.len();
                let inside = values.iter().filter(|&&v| v >= pair[0] && (v < pair[1] || last)).count();
                // The outermost edges may be a rounding error inside the outermost values.
                prop_assert!(n == 0 || inside as u64 == counts[n]);
            }
        }
    }

    #[test]
    fn one_value_none_and_broken_ones() {
        assert!(Histogram::new("x", []).draw().inline().contains("no data"));
        assert!(
            Histogram::new("x", [f64::NAN])
                .draw()
                .inline()
                .contains("no data")
        );
        for value in [0.0, 1e-12, -3.5, 1e99] {
            let svg = Histogram::new("x", [value, value, f64::INFINITY]).draw().inline();
            assert!(svg.contains("class=\"fill"), "{value}");
            assert!(svg.contains("1 not finite, not shown"));
        }
    }
}
