//! Cells: a matrix of numbers, such as a confusion matrix or the similarity of layers.

use super::canvas::{Anchor, Canvas, Num, Svg, size, text_width};
use super::frame::{Key, header, no_data};
use super::scale::{minus, usable};
use super::{Chart, FULL, HALF};
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
        let cell = |value: &f64| Cell {
            value: *value,
            text: short(*value),
            detail: number(*value),
        };
        HeatMap {
            title: title.into(),
            row_label: String::new(),
            column_label: String::new(),
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
                        Cell {
                            value: share,
                            text: if n == 0 { String::new() } else { count(n) },
                            detail,
                        }
                    })
                    .collect()
            })
            .collect();
        HeatMap {
            title: title.into(),
            row_label: "true class".to_string(),
            column_label: "predicted class".to_string(),
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
        let (low, high) = values.fold((0.0f64, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
        match self.confusion {
            _ if high < low => None,
            true => Some((0.0, 1.0)),
            false if high == low => Some((low, low + 1.0)),
            false => Some((low, high)),
        }
    }

    /// How full the shade of a value is, 0 to 1. A confusion matrix' shades rise steeply at first: it is the few per cent
    /// beside the diagonal that one looks for.
    fn shade(&self, value: f64, (low, high): (f64, f64)) -> f64 {
        let place = (value - low) / (high - low);
        if self.confusion { place.powf(0.6) } else { place }
    }

    /// In words: the size, and of a confusion matrix what is right and the largest confusion.
    fn description(&self) -> String {
        let mut words = format!(
            "Heat map of {} rows and {} columns.",
            self.rows.len(),
            self.columns.len()
        );
        if self.confusion {
            words.push_str(" Rows are true classes, columns predicted ones.");
            let cells = self.cells.iter().enumerate().flat_map(|(t, row)| {
                row.iter()
                    .enumerate()
                    .filter(move |(p, _)| *p != t)
                    .map(move |(p, cell)| (t, p, cell))
            });
            let worst = cells
                .max_by(|a, b| a.2.value.total_cmp(&b.2.value))
                .filter(|worst| worst.2.value > 0.0);
            if let Some((t, p, cell)) = worst {
                let name = |i: usize| self.rows.get(i).map_or("", String::as_str);
                words.push_str(&format!(
                    " Most confused: {} taken for {} ({}).",
                    name(t),
                    name(p),
                    cell.detail
                ));
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
    minus(&if value.abs() < 10.0 {
        format!("{value:.2}")
    } else {
        number(value)
    })
}

/// Where the cells are.
#[derive(Debug)]
struct Grid {
    left: f64,
    top: f64,
    /// The distance from one cell to the next, and what of it is left free.
    cell: f64,
    gap: f64,
    /// Whether the numbers fit into the cells.
    numbers: bool,
    /// Only every so many rows and columns have room for their label.
    every: usize,
    /// The widths kept for labels, and by how many degrees the columns' are turned.
    row_room: f64,
    column_room: f64,
    turn: f64,
}

impl Grid {
    /// Fits a map's cells into a width, below `top`.
    fn new(map: &HeatMap, width: f64, top: f64) -> Self {
        let widest = |labels: &[String]| labels.iter().map(|label| text_width(label)).fold(0.0, f64::max);
        let row_room = widest(&map.rows).min(width * 0.3) + 1.0;
        let left = row_room + 9.0;
        let number_width = widest(
            &map.cells
                .iter()
                .flatten()
                .map(|cell| cell.text.clone())
                .collect::<Vec<_>>(),
        );
        let cell_in = |room: f64| (room / map.columns.len() as f64).min((number_width + 12.0).max(40.0));
        let cell = cell_in(width - left);
        // Labels wider than their column rise to the right, and need room there; where the columns are too narrow even for
        // that, they stand upright.
        let column_width = widest(&map.columns);
        let turn = match cell {
            cell if column_width + 6.0 <= cell => 0.0,
            cell if cell >= 20.0 => 45.0f64,
            _ => 90.0,
        };
        let (sin, cos) = turn.to_radians().sin_cos();
        let column_room = column_width.min(150.0) + 1.0;
        let cell = if turn == 45.0 {
            cell_in(width - left - column_room * cos)
        } else {
            cell
        };
        Grid {
            left,
            top: top + 26.0 + column_room * sin,
            cell,
            gap: if cell >= 12.0 { 1.0 } else { 0.0 },
            numbers: number_width + 4.0 <= cell,
            every: (15.0 / cell).ceil().max(1.0) as usize,
            row_room,
            column_room,
            turn,
        }
    }

    /// The upper left corner of a cell.
    fn corner(&self, row: usize, column: usize) -> (f64, f64) {
        (
            self.left + self.cell * column as f64,
            self.top + self.cell * row as f64,
        )
    }

    fn draw_labels(&self, canvas: &mut Canvas, map: &HeatMap) {
        for (row, label) in map.rows.iter().enumerate().step_by(self.every) {
            let y = self.corner(row, 0).1 + self.cell / 2.0 + 4.0;
            canvas.text_within(self.row_room, self.row_room, y, Anchor::End, "label", label);
        }
        for (column, label) in map.columns.iter().enumerate().step_by(self.every) {
            let (x, y) = (self.corner(0, column).0 + self.cell / 2.0, self.top - 6.0);
            if self.turn == 0.0 {
                canvas.text(x, y, Anchor::Middle, "label", label);
            } else {
                // A turned line of text stands on its baseline, which lies beside its middle.
                let x = x + 4.0 * self.turn.to_radians().sin();
                canvas.put(format_args!(
                    "<g transform=\"translate({} {}) rotate(-{})\">",
                    Num(x),
                    Num(y),
                    self.turn
                ));
                canvas.text_within(self.column_room, 0.0, 0.0, Anchor::Start, "label", label);
                canvas.put(format_args!("</g>"));
            }
        }
    }
}

/// A shaded rectangle; the page's colour mode gives the shade its colour.
fn shaded(canvas: &mut Canvas, (x, y): (f64, f64), (width, height): (f64, f64), shade: f64, tooltip: &str) {
    let (x, y, width, height, shade) = (Num(x), Num(y), Num(width), Num(height), Num(shade));
    let start = format!(
        "<rect class=\"heat\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill-opacity=\"{shade}\""
    );
    if tooltip.is_empty() {
        canvas.put(format_args!("{start}/>"));
    } else {
        canvas.put(format_args!("{start}><title>{}</title></rect>", Escaped(tooltip)));
    }
}

/// The shade on which every cell lies, so that an empty one is seen too.
const EMPTY: f64 = 0.05;
/// The shade from which on a number is written in the light of the paper rather than in ink.
pub(super) const FULL_SHADE: f64 = 0.62;

impl HeatMap {
    /// The names of the two directions, in a line: `true class ↓   ·   predicted class →`.
    fn directions(&self) -> String {
        let named = [(&self.row_label, "↓"), (&self.column_label, "→")].into_iter();
        let words = named
            .filter(|(label, _)| !label.is_empty())
            .map(|(label, arrow)| format!("{label} {arrow}"));
        words.collect::<Vec<_>>().join(" · ")
    }

    fn draw_cells(&self, canvas: &mut Canvas, grid: &Grid, range: (f64, f64)) {
        let side = grid.cell - grid.gap;
        for (row, (cells, row_name)) in self.cells.iter().zip(&self.rows).enumerate() {
            for (column, (cell, column_name)) in cells.iter().zip(&self.columns).enumerate() {
                let Some(value) = usable(cell.value) else { continue };
                let (x, y) = grid.corner(row, column);
                let shade = self.shade(value, range);
                // Nothing is drawn for nothing: a large confusion matrix is nearly empty.
                if shade > 0.0 {
                    let tooltip = format!("{row_name}, {column_name}: {}", cell.detail);
                    shaded(canvas, (x, y), (side, side), shade, &tooltip);
                }
                if grid.numbers && !cell.text.is_empty() {
                    let class = if shade > FULL_SHADE { "on-heat" } else { "value" };
                    canvas.text(
                        x + side / 2.0,
                        y + side / 2.0 + 4.0,
                        Anchor::Middle,
                        class,
                        &cell.text,
                    );
                }
            }
        }
    }

    /// Some shades with the values they stand for, from `left` on or, where that is too narrow, ending at `width`.
    fn draw_key(&self, canvas: &mut Canvas, left: f64, y: f64, width: f64, range: (f64, f64)) {
        let (entries, note) = match self.confusion {
            true => (
                [0.01, 0.05, 0.2, 0.5, 1.0].map(|v| (v, format!("{:.0} %", v * 100.0))),
                "of the row",
            ),
            false => {
                let value = |part: f64| range.0 + part * (range.1 - range.0);
                (
                    [0.0, 0.25, 0.5, 0.75, 1.0]
                        .map(value)
                        .map(|v| (v, minus(&number(v)))),
                    "",
                )
            }
        };
        let entry_width = |text: &str| 20.0 + text_width(text) + 14.0;
        let all = entries.iter().map(|(_, text)| entry_width(text)).sum::<f64>() + text_width(note);
        let mut x = left.min(width - all).max(0.0);
        for (value, text) in entries {
            for shade in [EMPTY, self.shade(value, range)] {
                shaded(canvas, (x, y), (14.0, 14.0), shade, "");
            }
            canvas.text(x + 20.0, y + 11.0, Anchor::Start, "", &text);
            x += entry_width(&text);
        }
        if !note.is_empty() {
            canvas.text(x, y + 11.0, Anchor::Start, "", note);
        }
    }
}

impl Chart for HeatMap {
    fn narrow(&self) -> Svg {
        self.clone().width(HALF.0).draw()
    }

    fn draw(&self) -> Svg {
        let (width, least_height) = size(self.width, 0);
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let Some(range) = self.range().filter(|_| rows > 0 && columns > 0) else {
            return no_data((width, least_height), &self.title);
        };
        let mut canvas = Canvas::default();
        let mut y = header(&mut canvas, width, &self.title, &[], Key::Bar);
        if rows.max(columns) > MOST {
            let (rows, columns) = (count(rows as u64), count(columns as u64));
            let note = format!("{rows} × {columns} cells are too many to draw");
            canvas.text(0.0, y + 16.0, Anchor::Start, "", &note);
            return canvas.finish((width, y + 28.0), &self.title, self.description());
        }
        let directions = self.directions();
        if !directions.is_empty() {
            y += 16.0;
            canvas.text_within(width, 0.0, y, Anchor::Start, "", &directions);
        }
        let grid = Grid::new(self, width, y);
        grid.draw_labels(&mut canvas, self);
        let (left, bottom) = grid.corner(rows, 0);
        let all = (
            grid.cell * columns as f64 - grid.gap,
            bottom - grid.top - grid.gap,
        );
        shaded(&mut canvas, (left, grid.top), all, EMPTY, "");
        self.draw_cells(&mut canvas, &grid, range);
        self.draw_key(&mut canvas, left, bottom + 14.0, width, range);
        canvas.finish((width, bottom + 34.0), &self.title, self.description())
    }
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
        // Five cells are not empty; the rest is the square under them and the key.
        assert_eq!(svg.matches("class=\"heat\"").count(), 5 + 1 + 10);
    }

    #[test]
    fn ragged_empty_and_broken_matrices() {
        let ragged = [vec![1], vec![0, 2, 3, 4]];
        assert!(
            HeatMap::confusion("x", names(2), &ragged)
                .draw()
                .inline()
                .contains(">2</text>")
        );
        assert!(
            HeatMap::confusion("x", names(2), &[])
                .draw()
                .inline()
                .contains("no data")
        );
        assert!(
            HeatMap::confusion("x", names(2), &[vec![0, 0], vec![0, 0]])
                .draw()
                .inline()
                .contains("<svg")
        );
        assert!(
            HeatMap::new("x", names(1), names(1), &[vec![f64::NAN]])
                .draw()
                .inline()
                .contains("no data")
        );
        let svg = HeatMap::new("x", names(1), names(3), &[vec![f64::NAN, 0.5, -0.5]])
            .draw()
            .inline();
        assert!(svg.contains(">0.50</text>") && svg.contains(">−0.50</text>") && !svg.contains("NaN"));
    }

    #[test]
    fn many_classes_lose_their_numbers_then_the_drawing() {
        let diagonal = |n: usize| -> Vec<Vec<u64>> {
            (0..n)
                .map(|i| (0..n).map(|j| if i == j { 50 } else { 0 }).collect())
                .collect()
        };
        let svg = HeatMap::confusion("x", names(100), &diagonal(100))
            .draw()
            .inline();
        assert!(!svg.contains(">50</text>") && svg.matches("class=\"heat\"").count() == 111);
        let svg = HeatMap::confusion("x", names(1000), &diagonal(1000))
            .draw()
            .inline();
        assert!(svg.contains("1,000 × 1,000 cells are too many to draw"));
    }
}
