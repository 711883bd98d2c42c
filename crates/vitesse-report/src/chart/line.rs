//! Lines: how something moves along something else, such as accuracy along the epochs.

use super::canvas::{Num, Svg, size};
use super::frame::{Around, Frame, Key, no_data};
use super::scale::{Axis, Want};
use super::{Chart, FULL, HALF, style};
use crate::escape::Escaped;
use crate::format::number;

/// One line: a name and its points in order.
#[derive(Debug, Clone)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    band: Vec<(f64, f64)>,
}

impl Series {
    /// A line through `(x, y)` points. A point that is not finite is a gap.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Series {
            name: name.into(),
            points: points.into_iter().collect(),
            band: Vec::new(),
        }
    }

    /// A band around the line: `(low, high)` for each point in turn, such as the mean less and plus the standard deviation
    /// over seeds.
    pub fn band(mut self, low_high: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.band = low_high.into_iter().collect();
        self
    }

    fn band_values(&self) -> impl Iterator<Item = f64> {
        self.band
            .iter()
            .take(self.points.len())
            .flat_map(|&(low, high)| [low, high])
    }
}

/// A line chart. Several series are told apart by colour, dashes and markers.
#[derive(Debug, Clone)]
pub struct LineChart {
    title: String,
    x_label: String,
    y_label: String,
    log_x: bool,
    log_y: bool,
    size: (u32, u32),
    series: Vec<Series>,
}

impl LineChart {
    /// A chart without lines.
    pub fn new(title: impl Into<String>) -> Self {
        LineChart {
            title: title.into(),
            x_label: String::new(),
            y_label: String::new(),
            log_x: false,
            log_y: false,
            size: FULL,
            series: Vec::new(),
        }
    }

    /// Names the horizontal axis, with the unit: `epoch`.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.x_label = label.into();
        self
    }

    /// Names the vertical axis, with the unit: `top-1 (%)`.
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.y_label = label.into();
        self
    }

    /// Makes the horizontal axis logarithmic; points whose x is not positive become gaps.
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// Makes the vertical axis logarithmic; points whose y is not positive become gaps.
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Sets the size in pixels: [`FULL`] unless told, [`HALF`](super::HALF) for two beside each other.
    pub fn size(mut self, (width, height): (u32, u32)) -> Self {
        self.size = (width, height);
        self
    }

    /// Adds a line.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// In words: each line's first and last value.
    fn description(&self) -> String {
        let mut words = format!(
            "Line chart of {} against {}.",
            or(&self.y_label, "y"),
            or(&self.x_label, "x")
        );
        for series in &self.series {
            let mut shown = series
                .points
                .iter()
                .filter(|(x, y)| x.is_finite() && y.is_finite());
            let first = shown.next();
            let said = match (first, shown.next_back().or(first)) {
                (Some(first), Some(last)) => format!(
                    "{} at {} to {} at {}",
                    number(first.1),
                    number(first.0),
                    number(last.1),
                    number(last.0)
                ),
                _ => "no data".to_string(),
            };
            words.push_str(&format!(" {}: {said}.", series.name));
        }
        words
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

impl Chart for LineChart {
    fn narrow(&self) -> Svg {
        self.clone().size(HALF).draw()
    }

    fn draw(&self) -> Svg {
        let size = size(self.size.0, self.size.1);
        // Only what is drawn may stretch the axes: a point needs both its coordinates.
        let visible = |x: f64, y: f64| {
            let shown = |v: f64, log: bool| v.is_finite() && (!log || v > 0.0);
            shown(x, self.log_x) && shown(y, self.log_y)
        };
        let points = || {
            self.series
                .iter()
                .flat_map(|s| &s.points)
                .filter(|(x, y)| visible(*x, *y))
        };
        let x = Axis::new(
            points().map(|point| point.0),
            Want {
                log: self.log_x,
                tight: true,
                ticks: (size.0 / 80.0) as usize,
            },
        );
        let y = Axis::new(
            points()
                .map(|point| point.1)
                .chain(self.series.iter().flat_map(Series::band_values)),
            Want {
                log: self.log_y,
                tight: false,
                ticks: (size.1 / 60.0) as usize,
            },
        );
        let (Some(x), Some(y)) = (x, y) else {
            return no_data(size, &self.title);
        };
        let names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        let around = Around {
            size,
            title: &self.title,
            x_label: &self.x_label,
            y_label: &self.y_label,
            names: &names,
            key: Key::Line,
        };
        let mut frame = Frame::new(&around, x, y);
        for (i, series) in self.series.iter().enumerate() {
            draw_band(&mut frame, i, series);
        }
        for (i, series) in self.series.iter().enumerate() {
            draw_line(&mut frame, i, series, self.series.len() > 1);
        }
        frame.finish(self.description())
    }
}

/// Splits at the gaps.
fn runs<T>(items: impl Iterator<Item = Option<T>>) -> Vec<Vec<T>> {
    let mut runs = vec![Vec::new()];
    for item in items {
        match (item, runs.last_mut()) {
            (Some(item), Some(run)) => run.push(item),
            _ => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn draw_band(frame: &mut Frame, i: usize, series: &Series) {
    let edges = series.points.iter().zip(&series.band);
    let places = edges.map(|(&(x, _), &(low, high))| Some((frame.at((x, low))?, frame.at((x, high))?)));
    for run in runs(places) {
        let low = thin(run.iter().map(|edges| edges.0).collect());
        let high = thin(run.iter().map(|edges| edges.1).collect());
        let outline = path(high.iter().chain(low.iter().rev()));
        frame.canvas.put(format_args!(
            "<path class=\"band {}\" d=\"{outline}Z\"/>",
            style::class(i)
        ));
    }
}

fn draw_line(frame: &mut Frame, i: usize, series: &Series, among_others: bool) {
    let places = series
        .points
        .iter()
        .enumerate()
        .map(|(index, &point)| Some((index, frame.at(point)?)));
    let runs = runs(places);
    let mut d = String::new();
    for run in &runs {
        d.push_str(&path(thin(run.iter().map(|&(_, place)| place).collect()).iter()));
    }
    let dense = if series.points.len() as f64 > 2.0 * frame.area.width() {
        " dense"
    } else {
        ""
    };
    frame.canvas.put(format_args!(
        "<path class=\"line {}{dense}\" d=\"{d}\"{}><title>{}</title></path>",
        style::class(i),
        style::dashes(i),
        Escaped(&series.name)
    ));
    // Markers tell lines apart where there is no colour: about ten a line, beginning at different points so that lines
    // on top of each other still show theirs. A single line needs them only where its points are few, a point that stands
    // alone always.
    let every = (series.points.len() / 10).max(1);
    let wanted = among_others || series.points.len() <= 40;
    for run in &runs {
        for &(index, place) in run {
            if (wanted && index % every == (i * every / 4) % every) || run.len() == 1 {
                let (x, y) = series.points.get(index).copied().unwrap_or_default();
                let tooltip = format!("{}: {} at {}", series.name, number(y), number(x));
                style::marker(&mut frame.canvas, i, place, &tooltip);
            }
        }
    }
}

/// Keeps of each column of pixels the first, the lowest, the highest and the last point: what is drawn stays the same, and a
/// hundred thousand steps fit into a page.
fn thin(run: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let goes_back = || run.windows(2).any(|pair| matches!(pair, [a, b] if b.0 < a.0));
    if run.len() < 2000 || goes_back() {
        return run;
    }
    let mut kept = Vec::new();
    for column in run.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        let y = |&i: &usize| column.get(i).map_or(0.0, |place| place.1);
        let by_height = |a: &usize, b: &usize| y(a).total_cmp(&y(b));
        let low = (0..column.len()).min_by(by_height).unwrap_or(0);
        let high = (0..column.len()).max_by(by_height).unwrap_or(0);
        let mut keep = [0, low.min(high), low.max(high), column.len() - 1].to_vec();
        keep.dedup();
        kept.extend(keep.into_iter().filter_map(|i| column.get(i).copied()));
    }
    kept
}

/// A path through some places.
fn path<'a>(places: impl Iterator<Item = &'a (f64, f64)>) -> String {
    let mut d = String::new();
    for (n, (x, y)) in places.enumerate() {
        d.push_str(&format!(
            "{}{} {}",
            if n == 0 { 'M' } else { 'L' },
            Num(*x),
            Num(*y)
        ));
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_breaks_the_line_and_a_lone_point_is_marked() {
        let ys = [1.0, 2.0, f64::NAN, 3.0, f64::INFINITY, 4.0, 5.0];
        let chart = LineChart::new("gaps").series(Series::new(
            "a",
            ys.into_iter().enumerate().map(|(i, y)| (i as f64, y)),
        ));
        let svg = chart.draw().inline();
        let line = svg.lines().find(|line| line.contains("class=\"line")).unwrap();
        assert_eq!(line.matches('M').count(), 3, "{line}");
        assert!(svg.contains("a: 3 at 3</title>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_logarithmic_axis_leaves_out_what_it_cannot_show() {
        let chart = |ys: &[f64]| {
            let points = ys.iter().enumerate().map(|(i, &y)| (i as f64, y));
            LineChart::new("loss")
                .log_y()
                .series(Series::new("a", points))
                .draw()
                .inline()
        };
        assert!(chart(&[0.0, -1.0]).contains("no data"));
        assert_eq!(chart(&[1.0, 0.0, 0.1, 0.01]).matches("a: ").count(), 4);
    }

    #[test]
    fn many_points_make_a_small_picture_with_its_extremes() {
        let points = (0..100_000).map(|i| {
            let y = if i == 54_321 { 9.0 } else { (i as f64 * 0.7).sin() };
            (i as f64, y)
        });
        let svg = LineChart::new("steps")
            .series(Series::new("loss", points))
            .draw()
            .inline();
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
        let line = svg.lines().find(|line| line.contains("class=\"line")).unwrap();
        let top = line
            .split(['M', 'L', '"'])
            .filter_map(|point| point.split_once(' ')?.1.parse::<f64>().ok())
            .fold(f64::INFINITY, f64::min);
        assert!(top < 80.0, "the spike is drawn: {top}");
    }

    #[test]
    fn a_band_encloses_its_line() {
        let points = [(1.0, 2.0), (2.0, 3.0), (3.0, 2.5)];
        let band = points.map(|(_, y)| (y - 0.5, y + 0.5));
        let svg = LineChart::new("band")
            .series(Series::new("a", points).band(band))
            .draw()
            .inline();
        assert_eq!(svg.matches("class=\"band s1\"").count(), 1);
        let missing = [(1.5, 2.5), (f64::NAN, 3.5), (2.0, 3.0)];
        let svg = LineChart::new("band")
            .series(Series::new("a", points).band(missing))
            .draw()
            .inline();
        assert_eq!(svg.matches("class=\"band s1\"").count(), 2);
    }
}
