//! Numbers as people read them: one spelling for the whole program.
//!
//! Units stand after a space. What is not a finite number is written [`MISSING`], so a table never shows `NaN`.

use vitesse_words::group;
pub use vitesse_words::{count, counted, listed};

/// Stands where there is no number: an en dash.
pub const MISSING: &str = "–";

const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// Four significant digits, an SI prefix and the unit: `si(1.254e9, "MACs")` is `1.254 GMACs`, `si(1.254e9, "")` is
/// `1.254 G`. Whole numbers below a thousand stay as they are: `12`.
pub fn si(x: f64, unit: &str) -> String {
    if !x.is_finite() {
        return MISSING.to_string();
    }
    let text = if x.abs() < 1000.0 && x.fract() == 0.0 {
        format!("{x:.0} {unit}")
    } else {
        let (scaled, prefix) = scale(x, &PREFIXES, 4);
        format!("{} {prefix}{unit}", significant(scaled, 4))
    };
    text.trim_end().to_string()
}

/// A size in decimal units, as hubs and file managers give it: `22.9 MB`, `512 B`.
pub fn bytes(n: u64) -> String {
    if n < 1000 {
        return format!("{n} B");
    }
    let mut scaled = n as f64 / 1000.0;
    let mut units = ["kB", "MB", "GB", "TB", "PB", "EB"].into_iter().peekable();
    let mut unit = units.next().unwrap_or("kB");
    // 999.95 would be rounded up to `1000.0`.
    while scaled >= 999.95 {
        let Some(next) = units.next() else { break };
        scaled /= 1000.0;
        unit = next;
    }
    format!("{scaled:.1} {unit}")
}

/// A span of time, given in seconds: `412 µs`, `8.31 ms`, `12.4 s`, `3 min 07 s`, `1 h 02 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return MISSING.to_string();
    }
    let (sign, s) = (if seconds < 0.0 { "-" } else { "" }, seconds.abs());
    let text = if s == 0.0 {
        "0 s".to_string()
    } else if s < 59.95 {
        let (scaled, unit) = scale(s * 1e9, &["ns", "µs", "ms", "s"], 3);
        format!("{} {unit}", significant(scaled, 3))
    } else if s < 3599.5 {
        let whole = s.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        let minutes = (s / 60.0).round() as u64;
        format!("{} h {:02} min", count(minutes / 60), minutes % 60)
    };
    format!("{sign}{text}")
}

/// A fraction as a percentage with three decimals, as timm reports accuracies: `percent(0.72134)` is `72.134 %`.
pub fn percent(fraction: f64) -> String {
    if !fraction.is_finite() {
        return MISSING.to_string();
    }
    format!("{:.3} %", fraction * 100.0)
}

/// The mean of some runs and, where there are two or more, their sample standard deviation: `72.13 ± 0.21`. Values that
/// are not finite make the whole `–`: a diverged run is not averaged away.
pub fn mean_spread(values: &[f64], decimals: usize) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if !mean.is_finite() {
        return MISSING.to_string();
    }
    if values.len() < 2 {
        return format!("{mean:.decimals$}");
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    format!("{mean:.decimals$} ± {:.decimals$}", variance.sqrt())
}

/// Any number in at most four significant digits, without trailing zeros: `0.0831`, `12.5`, `1,843`, `1.254 G`, `2.5e-6`.
pub fn number(x: f64) -> String {
    let size = x.abs();
    if !x.is_finite() {
        MISSING.to_string()
    } else if size == 0.0 {
        "0".to_string()
    } else if !(1e-4..999.95e18).contains(&size) {
        let text = format!("{x:.3e}");
        match text.split_once('e') {
            Some((mantissa, exponent)) => format!("{}e{exponent}", trim_zeros(mantissa)),
            None => text,
        }
    } else if size < 999.95 {
        trim_zeros(&significant(x, 4)).to_string()
    } else if size < 999_999.5 {
        group(&format!("{x:.0}"))
    } else {
        let (scaled, prefix) = scale(x, &PREFIXES, 4);
        format!("{} {prefix}", trim_zeros(&significant(scaled, 4)))
    }
}

/// Divides by a thousand, a prefix at a time, until less than a thousand remains after rounding to `digits` digits.
fn scale<'a>(x: f64, prefixes: &[&'a str], digits: i32) -> (f64, &'a str) {
    // What is below `limit` is not rounded up to 1000.
    let limit = 1000.0 - 10f64.powi(3 - digits) / 2.0;
    let mut scaled = x;
    let mut prefixes = prefixes.iter().peekable();
    let mut prefix = "";
    while let Some(name) = prefixes.next() {
        prefix = name;
        if scaled.abs() < limit || prefixes.peek().is_none() {
            break;
        }
        scaled /= 1000.0;
    }
    (scaled, prefix)
}

/// An accuracy in percent over so many images, with as many decimals as tell one image from another: `78.1 %` of 1,000.
pub fn share(percent: f64, images: usize) -> String {
    if !percent.is_finite() {
        return MISSING.to_string();
    }
    format!("{percent:.*} %", share_decimals(images))
}

/// The decimals of [`share`].
pub fn share_decimals(images: usize) -> usize {
    let step = 100.0 / images.max(1) as f64;
    (-step.log10()).ceil().clamp(1.0, 3.0) as usize
}

/// `digits` significant digits in positional notation; never fewer digits than the whole part has.
pub fn significant(x: f64, digits: i32) -> String {
    if x == 0.0 {
        return "0".to_string();
    }
    // The exponent after rounding: 9.9996 to four digits is 10.00, which has one decimal fewer.
    let scientific = format!("{x:.0$e}", (digits - 1).max(0) as usize);
    let exponent = scientific
        .split_once('e')
        .and_then(|(_, e)| e.parse::<i32>().ok())
        .unwrap_or(0);
    format!("{x:.0$}", (digits - 1 - exponent).max(0) as usize)
}

/// `12.500` → `12.5`, `3.000` → `3`; leaves whole numbers alone.
fn trim_zeros(text: &str) -> &str {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(5_717_416), "5,717,416");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn si_keeps_four_digits() {
        assert_eq!(si(1.254e9, "MACs"), "1.254 GMACs");
        assert_eq!(si(86_567_656.0, ""), "86.57 M");
        assert_eq!(si(999_960.0, ""), "1.000 M");
        assert_eq!(si(999_940.0, ""), "999.9 k");
        assert_eq!(si(12.0, "MACs"), "12 MACs");
        assert_eq!(si(12.0, ""), "12");
        assert_eq!(si(3.17159, ""), "3.172");
        assert_eq!(si(-2500.0, ""), "-2.500 k");
        assert_eq!(si(f64::NAN, "MACs"), MISSING);
    }

    #[test]
    fn bytes_change_unit_where_rounding_would_overflow() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(22_871_234), "22.9 MB");
        assert_eq!(bytes(999_949), "999.9 kB");
        assert_eq!(bytes(999_950), "1.0 MB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
    }

    #[test]
    fn durations_choose_their_unit() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (95e-9, "95.0 ns"),
            (412e-6, "412 µs"),
            (8.31e-3, "8.31 ms"),
            (0.99951, "1.00 s"),
            (12.4, "12.4 s"),
            (59.96, "1 min 00 s"),
            (187.0, "3 min 07 s"),
            (3599.6, "1 h 00 min"),
            (3720.0, "1 h 02 min"),
            (-2.0, "-2.00 s"),
            (f64::INFINITY, MISSING),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn percentages_and_spreads() {
        assert_eq!(percent(0.72134), "72.134 %");
        assert_eq!(percent(f64::NAN), MISSING);
        assert_eq!(mean_spread(&[], 1), MISSING);
        assert_eq!(mean_spread(&[72.13], 1), "72.1");
        assert_eq!(mean_spread(&[1.0, 2.0, 3.0], 2), "2.00 ± 1.00");
        assert_eq!(mean_spread(&[1.0, f64::NAN], 2), MISSING);
    }

    #[test]
    fn an_accuracy_is_as_exact_as_its_images() {
        for (images, text) in [
            (0, "71.2 %"),
            (60, "71.2 %"),
            (1000, "71.2 %"),
            (2000, "71.23 %"),
            (50_000, "71.235 %"),
        ] {
            assert_eq!(share(71.2346, images), text, "{images}");
        }
        assert_eq!(share(f64::NAN, 10), MISSING);
    }

    #[test]
    fn numbers_of_any_size() {
        for (x, text) in [
            (0.0, "0"),
            (0.08310, "0.0831"),
            (12.5, "12.5"),
            (999.96, "1,000"),
            (1842.6, "1,843"),
            (-45_678.0, "-45,678"),
            (1.2e6, "1.2 M"),
            (1.254e9, "1.254 G"),
            (2.5e-6, "2.5e-6"),
            (1e300, "1e300"),
            (f64::NEG_INFINITY, MISSING),
        ] {
            assert_eq!(number(x), text, "{x}");
        }
    }

    proptest! {
        #[test]
        fn a_count_without_its_commas_is_the_number(n in any::<u64>()) {
            prop_assert_eq!(count(n).replace(',', "").parse::<u64>(), Ok(n));
        }

        #[test]
        fn a_number_is_within_half_a_unit_of_its_fourth_digit(x in -9e5f64..9e5) {
            let read: f64 = number(x).replace(',', "").parse().unwrap();
            prop_assert!((read - x).abs() <= x.abs() * 5.001e-4 , "{x} read back as {read}");
        }
    }
}
