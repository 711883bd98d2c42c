//! How series are told apart: colour, and beside it dashes, markers and hatches.

use super::canvas::{Canvas, Num};
use crate::escape::Escaped;

/// The number of series colours in `chart.css`. Later series begin again, with other dashes, markers and hatches.
const COLOURS: usize = 7;

/// The class that gives a mark the colour of series `i`.
pub(super) fn class(i: usize) -> String {
    format!("s{}", i % COLOURS + 1)
}

/// The dashes of series `i`'s line, as an attribute. The first series is solid.
pub(super) fn dashes(i: usize) -> &'static str {
    const DASHES: [&str; 5] = [
        "",
        " stroke-dasharray=\"8 4\"",
        " stroke-dasharray=\"1.5 4.5\"",
        " stroke-dasharray=\"10 4 1.5 4\"",
        " stroke-dasharray=\"5 4\"",
    ];
    DASHES.get(i % DASHES.len()).copied().unwrap_or_default()
}

/// The outline of series `i`'s marker around a point. All markers cover about the same area.
fn outline(i: usize, x: f64, y: f64) -> String {
    let polygon = |corners: &[(f64, f64)]| {
        let points: Vec<String> = corners
            .iter()
            .map(|&(dx, dy)| format!("{} {}", Num(x + dx), Num(y + dy)))
            .collect();
        format!("M{}Z", points.join("L"))
    };
    match i % 6 {
        0 => format!("M{} {}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", Num(x - 4.0), Num(y)),
        1 => polygon(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
        2 => polygon(&[(0.0, -5.2), (4.8, 3.4), (-4.8, 3.4)]),
        3 => polygon(&[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)]),
        4 => polygon(&[(0.0, 5.2), (-4.8, -3.4), (4.8, -3.4)]),
        _ => {
            // A plus sign turned by 45 degrees: arms of half width `a` and length `b` along the diagonals.
            let (a, b) = (1.5, 3.9);
            polygon(&[
                (0.0, -2.0 * a),
                (b - a, -b - a),
                (b + a, -b + a),
                (2.0 * a, 0.0),
                (b + a, b - a),
                (b - a, b + a),
                (0.0, 2.0 * a),
                (-b + a, b + a),
                (-b - a, b - a),
                (-2.0 * a, 0.0),
                (-b - a, -b + a),
                (-b + a, -b - a),
            ])
        }
    }
}

/// Draws series `i`'s marker, with a tooltip unless that is empty.
pub(super) fn marker(canvas: &mut Canvas, i: usize, (x, y): (f64, f64), tooltip: &str) {
    let (class, outline) = (class(i), outline(i, x, y));
    if tooltip.is_empty() {
        canvas.put(format_args!("<path class=\"mark {class}\" d=\"{outline}\"/>"));
    } else {
        canvas.put(format_args!(
            "<path class=\"mark {class}\" d=\"{outline}\"><title>{}</title></path>",
            Escaped(tooltip)
        ));
    }
}

/// Draws a filled rectangle of series `i` and its hatch: solid, `/`, `\`, `|`, `×`, `—`.
pub(super) fn bar(canvas: &mut Canvas, i: usize, x: f64, y: f64, width: f64, height: f64, tooltip: &str) {
    canvas.put(format_args!(
        "<rect class=\"fill {}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
        class(i),
        Num(x),
        Num(y),
        Num(width),
        Num(height),
        Escaped(tooltip)
    ));
    let mut strokes = String::new();
    let mut stroke = |x1: f64, y1: f64, x2: f64, y2: f64| {
        strokes.push_str(&format!("M{} {}L{} {}", Num(x1), Num(y1), Num(x2), Num(y2)));
    };
    let every = 7.0;
    // A diagonal enters at offset `d` along the bar's length and has left it `height` further on: both ends are cut to
    // the rectangle here, which saves a clip path and its document-wide name.
    let diagonals = |stroke: &mut dyn FnMut(f64, f64, f64, f64), rising: bool| {
        let mut d = every / 2.0 - height;
        while d < width {
            let (from, to) = (d.max(0.0), (d + height).min(width));
            let depth = |along: f64| if rising { height - (along - d) } else { along - d };
            stroke(x + from, y + depth(from), x + to, y + depth(to));
            d += every;
        }
    };
    match i % 6 {
        1 => diagonals(&mut stroke, true),
        2 => diagonals(&mut stroke, false),
        3 => {
            let mut d = every / 2.0;
            while d < width {
                stroke(x + d, y, x + d, y + height);
                d += every;
            }
        }
        4 => {
            diagonals(&mut stroke, true);
            diagonals(&mut stroke, false);
        }
        5 => stroke(x, y + height / 2.0, x + width, y + height / 2.0),
        _ => {}
    }
    if !strokes.is_empty() {
        canvas.put(format_args!("<path class=\"hatch\" d=\"{strokes}\"/>"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::STYLE;
    use super::super::heatmap::FULL_SHADE;

    /// Red, green and blue, 0 to 1.
    type Colour = [f64; 3];

    /// Relative luminance (WCAG 2).
    fn luminance(colour: Colour) -> f64 {
        let linear = |v: f64| {
            if v <= 0.04045 {
                v / 12.92
            } else {
                ((v + 0.055) / 1.055).powf(2.4)
            }
        };
        let [red, green, blue] = colour.map(linear);
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    fn contrast(a: Colour, b: Colour) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// The light and the dark value of a variable of the style sheet.
    fn themes(name: &str) -> [Colour; 2] {
        let values: Vec<Colour> = STYLE
            .match_indices(&format!("--{name}: #"))
            .map(|(at, found)| {
                let digits = &STYLE[at + found.len()..at + found.len() + 6];
                [0, 2, 4].map(|i| f64::from(u8::from_str_radix(&digits[i..i + 2], 16).unwrap()) / 255.0)
            })
            .collect();
        values.try_into().unwrap()
    }

    #[test]
    fn every_colour_stands_out_from_the_paper() {
        let paper = themes("paper");
        let marks = (1..=super::COLOURS).map(|i| (format!("c{i}"), 3.0));
        let texts = [("ink", 7.0), ("muted", 4.5)].map(|(name, least)| (name.to_string(), least));
        for (name, least) in marks.chain(texts) {
            for (theme, (colour, paper)) in themes(&name).into_iter().zip(paper).enumerate() {
                let found = contrast(colour, paper);
                assert!(
                    found >= least,
                    "{name}, theme {theme}: contrast {found:.2}, wanted {least}"
                );
            }
        }
    }

    #[test]
    fn numbers_in_shaded_cells_can_be_read() {
        let [paper, heat, ink, on_heat] = ["paper", "heat", "ink", "on-heat"].map(themes);
        for theme in 0..2 {
            for shade in (0..=50).map(|i| f64::from(i) / 50.0) {
                let cell = [0, 1, 2].map(|i| paper[theme][i] + shade * (heat[theme][i] - paper[theme][i]));
                let text = if shade > FULL_SHADE { on_heat } else { ink };
                let found = contrast(text[theme], cell);
                assert!(found >= 3.7, "theme {theme}, shade {shade}: contrast {found:.2}");
            }
        }
    }

    #[test]
    fn there_are_as_many_colours_as_the_style_sheet_says() {
        assert!(STYLE.contains(&format!(".s{} ", super::COLOURS)));
        assert!(!STYLE.contains(&format!("--c{}:", super::COLOURS + 1)));
    }
}
