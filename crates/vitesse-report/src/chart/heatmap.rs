//! Cells: a matrix of numbers, such as a confusion matrix or the similarity of layers.

use super::canvas::{Anchor, Canvas, Num, Svg, size, text_width};
use super::frame::{Key, header, no_data};
use super::scale::usable;
use super::{Chart, FULL};
use crate::escape::Escaped;
use crate::format::{count, number, percent};

/// The largest matrix that is drawn; beyond it a cell would be smaller than a few pixels.
const MOST: usize = 150;

#[derive(Debug, Clone)]
struct Cell {
    /// What the shade shows.
    value: f64,
    /// What stands in the cell.
    text: String,
    /// What the tooltip adds.
    detail: String,
}

/// A heat map: the larger the value, the fuller the shade; the numbers stand in the cells where they fit.
#[derive(Debug, Clone)]
pub struct HeatMap {
    title: String,
    row_label: String,
    column_label: String,
    key_label: String,
    rows: Vec<String>,
    columns: Vec<String>,
    cells: Vec<Vec<Cell>>,
    confusion: bool,
    width: u32,
}

impl HeatMap {
    /// A map of `values` (`[rows, columns]`, one inner vector a row). Values that are missing or not finite are left empty.
    pub fn new<R: Into<String>, C: Into<String>>(
        title: impl Into<String>,
        rows: impl IntoIterator<Item = R>,
        columns: impl IntoIterator<Item = C>,
        values: &[Vec<f64>],
    ) -> Self {
        let cell = |value: &f64| Cell { value: *value, text: short(*value), detail: number(*value) };
        HeatMap {
            title: title.into(),
            row_label: String::new(),
            column_label: String::new(),
            key_label: String::new(),
            rows: rows.into_iter().map(Into::into).collect(),
            columns: columns.into_iter().map(Into::into).collect(),
            cells: values.iter().map(|row| row.iter().map(cell).collect()).collect(),
            confusion: false,
            width: FULL.0,
        }
    }

    /// A confusion matrix: `counts[t][p]` images of class `t` were taken for class `p`. The numbers are counts, the shades
    /// shares of the row, so that rare classes are seen as well as frequent ones.
    pub fn confusion<S: Into<String>>(
        title: impl Into<String>,
        classes: impl IntoIterator<Item = S>,
        counts: &[Vec<u64>],
    ) -> Self {
        let classes: Vec<String> = classes.into_iter().map(Into::into).collect();
        let cells = counts
            .iter()
            .map(|row| {
                let all: f64 = row.iter().map(|&n| n as f64).sum();
                row.iter()
                    .map(|&n| {
                        let share = if all > 0.0 { n as f64 / all } else { 0.0 };
                        let detail = format!("{} of {}, {}", count(n), count(all as u64), percent(share));
                        Cell { value: share, text: if n == 0 { String::new() } else { count(n) }, detail }
                    })
                    .collect()
            })
            .collect();
        HeatMap {
            title: title.into(),
            row_label: "true class".to_string(),
            column_label: "predicted class".to_string(),
            key_label: "share of the true class".to_string(),
            rows: classes.clone(),
            columns: classes,
            cells,
            confusion: true,
            width: FULL.0,
        }
    }

    /// Says what the rows and the columns are.
    pub fn labels(mut self, rows: impl Into<String>, columns: impl Into<String>) -> Self {
        self.row_label = rows.into();
        self.column_label = columns.into();
        self
    }

    /// Sets the largest width in pixels; the height follows from the number of rows.
    pub fn width(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    /// The values of the empty and of the full shade.
    fn range(&self) -> Option<(f64, f64)> {
        let values = self.cells.iter().flatten().filter_map(|cell| usable(cell.value));
        let (low, high) = values.fold((0.0f64, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match self.confusion {
            _ if high < low => None,
            true => Some((0.0, 1.0)),
            false if high == low => Some((low, low + 1.0)),
            false => Some((low, high)),
        }
    }

    /// In words: the size, and of a confusion matrix what is right and the largest confusion.
    fn description(&self) -> String {
        let mut words = format!("Heat map of {} rows and {} columns.", self.rows.len(), self.columns.len());
        if self.confusion {
            words.push_str(" Rows are true classes, columns predicted ones.");
            let cells = self.cells.iter().enumerate().flat_map(|(t, row)| {
                row.iter().enumerate().filter(move |(p, _)| *p != t).map(move |(p, cell)| (t, p, cell))
            });
            let worst = cells.max_by(|a, b| a.2.value.total_cmp(&b.2.value)).filter(|worst| worst.2.value > 0.0);
            if let Some((t, p, cell)) = worst {
                let name = |i: usize| self.rows.get(i).map_or("", String::as_str);
                words.push_str(&format!(" Most confused: {} taken for {} ({}).", name(t), name(p), cell.detail));
            }
        }
        words
    }
}

/// A number in the few letters a cell has room for.
fn short(value: f64) -> String {
    if usable(value).is_none() {
        return String::new();
    }
    if value.abs() < 10.0 { format!("{value:.2}") } else { number(value) }
}

impl Chart for HeatMap {
    fn draw(&self) -> Svg {
        let (width, least_height) = size(self.width, 0);
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let Some((low, high)) = self.range().filter(|_| rows > 0 && columns > 0) else {
            return no_data((width, least_height), &self.title);
        };
        let mut canvas = Canvas::default();
        let mut y = header(&mut canvas, width, &self.title, &[], Key::Bar) + 4.0;
        if rows.max(columns) > MOST {
            let note = format!("{} × {} cells are too many to draw", count(rows as u64), count(columns as u64));
            canvas.text(0.0, y + 16.0, Anchor::Start, "", &note);
            return canvas.finish((width, y + 28.0), &self.title, self.description());
        }

        let widest = |labels: &[String]| labels.iter().map(|label| text_width(label)).fold(0.0, f64::max);
        let row_width = widest(&self.rows).min(width * 0.3);
        let left = row_width + 10.0;
        let number_width = self.cells.iter().flatten().map(|cell| text_width(&cell.text)).fold(0.0, f64::max);
        let cell = ((width - left) / columns as f64).min((number_width + 10.0).max(30.0));
        let numbers = number_width + 4.0 <= cell && cell >= 16.0;
        // Labels that do not fit across their cell stand upright; where even lines of text do not fit, every k-th is shown.
        let upright = widest(&self.columns) + 6.0 > cell;
        let label_height = if upright { widest(&self.columns).min(140.0) + 6.0 } else { 18.0 };
        let every = (15.0 / cell).ceil().max(1.0) as usize;

        y += 16.0;
        let between = if self.row_label.is_empty() || self.column_label.is_empty() { "" } else { " ↓   " };
        let after = if self.column_label.is_empty() { "" } else { " →" };
        canvas.text(0.0, y, Anchor::Start, "", &format!("{}{between}{}{after}", self.row_label, self.column_label));
        let top = y + 6.0 + label_height;
        let gap = if cell >= 12.0 { 1.0 } else { 0.0 };

        for (column, label) in self.columns.iter().enumerate().step_by(every) {
            let x = left + cell * (column as f64 + 0.5);
            if upright {
                canvas.put(format_args!("<g transform=\"translate({} {}) rotate(-90)\">", Num(x + 4.0), Num(top - 6.0)));
                canvas.text_within(140.0, 0.0, 0.0, Anchor::Start, "label", label);
                canvas.put(format_args!("</g>"));
            } else {
                canvas.text(x, top - 6.0, Anchor::Middle, "label", label);
            }
        }
        for (row, label) in self.rows.iter().enumerate() {
            let middle = top + cell * (row as f64 + 0.5);
            if row.is_multiple_of(every) {
                canvas.text_within(row_width + 1.0, row_width, middle + 4.0, Anchor::End, "label", label);
            }
            let cells = self.cells.get(row).map_or(&[][..], Vec::as_slice);
            for (column, (entry, column_name)) in cells.iter().zip(&self.columns).enumerate() {
                let Some(value) = usable(entry.value) else { continue };
                let (x, shade) = (left + cell * column as f64, (value - low) / (high - low));
                // Nothing is drawn for nothing: a large confusion matrix is nearly empty.
                if shade > 0.0 || !self.confusion {
                    canvas.put(format_args!(
                        "<rect class=\"heat\" x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\" fill-opacity=\"{}\">\
                         <title>{}, {}: {}</title></rect>",
                        Num(x),
                        Num(top + cell * row as f64),
                        Num(0.04 + 0.96 * shade),
                        Escaped(label),
                        Escaped(column_name),
                        Escaped(&entry.detail),
                        side = Num(cell - gap)
                    ));
                }
                if numbers {
                    let class = if shade > 0.62 { "on-heat" } else { "value" };
                    canvas.text(x + (cell - gap) / 2.0, middle + 3.5, Anchor::Middle, class, &entry.text);
                }
            }
        }
        let bottom = top + cell * rows as f64;
        canvas.put(format_args!(
            "<rect class=\"grid\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            Num(left - 0.5),
            Num(top - 0.5),
            Num(cell * columns as f64 + 1.0 - gap),
            Num(bottom - top + 1.0 - gap)
        ));
        draw_key(&mut canvas, left, bottom + 14.0, &self.key_label, |value| match self.confusion {
            true => format!("{:.0} %", value * 100.0),
            false => number(low + value * (high - low)),
        });
        canvas.finish((width, bottom + 34.0), &self.title, self.description())
    }
}

/// The shades from empty to full with the values at both ends.
fn draw_key(canvas: &mut Canvas, left: f64, top: f64, label: &str, spell: impl Fn(f64) -> String) {
    let mut x = left;
    if !label.is_empty() {
        canvas.text(x, top + 10.0, Anchor::Start, "", label);
        x += text_width(label) + 12.0;
    }
    let low = spell(0.0);
    canvas.text(x, top + 10.0, Anchor::Start, "", &low);
    x += text_width(&low) + 6.0;
    for step in 0..9 {
        let shade = f64::from(step) / 8.0;
        canvas.put(format_args!(
            "<rect class=\"heat\" x=\"{}\" y=\"{}\" width=\"14\" height=\"12\" fill-opacity=\"{}\"/>",
            Num(x + 14.0 * f64::from(step)),
            Num(top),
            Num(0.04 + 0.96 * shade)
        ));
    }
    canvas.text(x + 14.0 * 9.0 + 6.0, top + 10.0, Anchor::Start, "", &spell(1.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn a_confusion_matrix_shows_counts_and_names_the_worst() {
        let counts = [vec![8, 2, 0], vec![0, 10, 0], vec![1, 0, 999]];
        let svg = HeatMap::confusion("confusion", names(3), &counts).draw().inline();
        assert!(svg.contains("Most confused: class 0 taken for class 1 (2 of 10, 20.000 %)."));
        assert!(svg.contains(">999</text>"));
        // Five cells are not empty; nine more squares are the key.
        assert_eq!(svg.matches("class=\"heat\"").count(), 5 + 9);
    }

    #[test]
    fn ragged_empty_and_broken_matrices() {
        let ragged = [vec![1], vec![0, 2, 3, 4]];
        assert!(HeatMap::confusion("x", names(2), &ragged).draw().inline().contains(">2</text>"));
        assert!(HeatMap::confusion("x", names(2), &[]).draw().inline().contains("no data"));
        assert!(HeatMap::confusion("x", names(2), &[vec![0, 0], vec![0, 0]]).draw().inline().contains("<svg"));
        assert!(HeatMap::new("x", names(1), names(1), &[vec![f64::NAN]]).draw().inline().contains("no data"));
        let svg = HeatMap::new("x", names(1), names(3), &[vec![f64::NAN, 0.5, -0.5]]).draw().inline();
        assert!(svg.contains(">0.50</text>") && svg.contains(">-0.50</text>") && !svg.contains("NaN"));
    }

    #[test]
    fn many_classes_lose_their_numbers_then_the_drawing() {
        let diagonal = |n: usize| -> Vec<Vec<u64>> {
            (0..n).map(|i| (0..n).map(|j| if i == j { 50 } else { 0 }).collect()).collect()
        };
        let svg = HeatMap::confusion("x", names(100), &diagonal(100)).draw().inline();
        assert!(!svg.contains(">50</text>") && svg.matches("class=\"heat\"").count() == 109);
        let svg = HeatMap::confusion("x", names(1000), &diagonal(1000)).draw().inline();
        assert!(svg.contains("1,000 × 1,000 cells are too many to draw"));
    }
}
