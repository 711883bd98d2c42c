//! From numbers to places: an axis's range, its ticks, and where a value lies between the two ends.

/// The number itself if it can be placed: not NaN, not infinite, not so large that differences overflow. What is so small
/// that quotients would is zero.
pub(super) fn usable(value: f64) -> Option<f64> {
    match value.abs() {
        0.0..1e-100 => Some(0.0),
        1e-100..=1e100 => Some(value),
        _ => None,
    }
}

/// A round step: `mantissa * 10^exponent` with mantissa 1, 2 or 5.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    mantissa: f64,
    exponent: i32,
}

impl Step {
    /// The smallest round step that makes at most `target` of them out of `span`; `least` is a lower bound.
    pub(super) fn new(span: f64, target: usize, least: f64) -> Self {
        let raw = (span / target.max(1) as f64).max(least).max(1e-120);
        let exponent = raw.log10().floor() as i32;
        let leading = raw / 10f64.powi(exponent);
        // The tolerance is for quotients such as 0.6 / 3, which is a little more than 0.2.
        let (mantissa, exponent) = match leading {
            x if x <= 1.0 + 1e-9 => (1.0, exponent),
            x if x <= 2.0 + 1e-9 => (2.0, exponent),
            x if x <= 5.0 + 1e-9 => (5.0, exponent),
            _ => (1.0, exponent + 1),
        };
        Step { mantissa, exponent }
    }

    pub(super) fn size(self) -> f64 {
        self.at(1.0)
    }

    /// The next smaller round step.
    fn finer(self) -> Self {
        let (mantissa, exponent) = match self.mantissa {
            5.0 => (2.0, self.exponent),
            2.0 => (1.0, self.exponent),
            _ => (5.0, self.exponent - 1),
        };
        Step { mantissa, exponent }
    }

    /// `i` steps from zero, rounded once: dividing by a power of ten is exact where multiplying by its inverse is not.
    pub(super) fn at(self, i: f64) -> f64 {
        let scaled = i * self.mantissa;
        if self.exponent < 0 {
            scaled / 10f64.powi(-self.exponent)
        } else {
            scaled * 10f64.powi(self.exponent)
        }
    }

    /// The last multiple of the step at or below a value.
    pub(super) fn floor(self, value: f64) -> f64 {
        (value / self.size() + 1e-6).floor()
    }

    /// The first multiple of the step at or above a value.
    pub(super) fn ceil(self, value: f64) -> f64 {
        (value / self.size() - 1e-6).ceil()
    }
}

/// A marked place on an axis.
#[derive(Debug, Clone)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

/// An axis: its two ends and the ticks between them, in ascending order.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    pub(super) ticks: Vec<Tick>,
}

/// What an axis should look like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Want {
    /// Logarithmic: values that are not positive cannot be shown.
    pub(super) log: bool,
    /// The ends are the data's own; otherwise they are rounded out to ticks.
    pub(super) tight: bool,
    /// About how many ticks.
    pub(super) ticks: usize,
}

impl Axis {
    /// An axis that shows the given values; `None` where not one of them can be shown.
    pub(super) fn new(values: impl IntoIterator<Item = f64>, want: Want) -> Option<Self> {
        let (mut low, mut high, mut whole) = (f64::INFINITY, f64::NEG_INFINITY, true);
        let shown = |value: &f64| !want.log || *value > 0.0;
        for value in values.into_iter().filter_map(usable).filter(shown) {
            low = low.min(value);
            high = high.max(value);
            whole &= value.fract() == 0.0;
        }
        match (low <= high, want.log) {
            (false, _) => None,
            (true, true) => Some(Self::logarithmic(low, high, want)),
            (true, false) => Some(Self::linear(low, high, whole, want)),
        }
    }

    fn linear(low: f64, high: f64, whole: bool, want: Want) -> Self {
        // One value, or several that doubles barely tell apart, still need a range around them.
        let size = low.abs().max(high.abs());
        let (low, high) = if high - low > size * 1e-9 {
            (low, high)
        } else if size == 0.0 {
            (0.0, 1.0)
        } else {
            (low - size * 0.1, high + size * 0.1)
        };
        let mut step = Step::new(high - low, want.ticks, if whole { 1.0 } else { 0.0 });
        // Between ends that are not round there may be no multiple of a step that is nearly as wide as they are apart.
        if want.tight && step.ceil(low) > step.floor(high) {
            step = step.finer();
        }
        let (first, last) = match want.tight {
            true => (step.ceil(low), step.floor(high)),
            false => (step.floor(low), step.ceil(high)),
        };
        let values: Vec<f64> = (0..=(last - first).max(0.0) as usize)
            .map(|i| step.at(first + i as f64))
            .collect();
        let ends = match (want.tight, values.as_slice()) {
            (false, [first, .., last]) => (*first, *last),
            _ => (low, high),
        };
        let ticks = labelled(&values, step);
        Axis {
            low: ends.0,
            high: ends.1,
            log: false,
            ticks,
        }
    }

    fn logarithmic(low: f64, high: f64, want: Want) -> Self {
        let (low, high) = if high / low > 1.0 + 1e-9 {
            (low, high)
        } else {
            (low / 2.0, high * 2.0)
        };
        let margin = if want.tight { 1.0 } else { (high / low).powf(0.04) };
        let (low, high) = ((low / margin).max(1e-100), (high * margin).min(1e100));
        let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let inside = |value: &f64| (low..=high).contains(value);
        let multiples = |of: &[f64], stride: usize| -> Vec<Step> {
            decades
                .clone()
                .filter(|decade| decade.rem_euclid(stride as i32) == 0)
                .flat_map(|exponent| of.iter().map(move |&mantissa| Step { mantissa, exponent }))
                .filter(|step| inside(&step.size()))
                .collect()
        };
        let powers = multiples(&[1.0], 1).len();
        let steps = match powers {
            0..3 => multiples(&[1.0, 2.0, 5.0], 1),
            _ => multiples(&[1.0], powers.div_ceil(want.ticks.max(1))),
        };
        let mut ticks: Vec<Tick> = if powers >= 3 || steps.len() >= 3 {
            steps
                .into_iter()
                .flat_map(|step| labelled(&[step.size()], step))
                .collect()
        } else {
            // Less than a decade: round steps, as on a linear axis.
            Self::linear(
                low,
                high,
                false,
                Want {
                    log: false,
                    tight: true,
                    ..want
                },
            )
            .ticks
        };
        ticks.retain(|tick| usable(tick.value).is_some_and(|value| value > 0.0));
        Axis {
            low,
            high,
            log: true,
            ticks,
        }
    }

    /// Where a value lies between the low end (0) and the high end (1); `None` where it cannot be shown.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let value = usable(value)?;
        match self.log {
            true if value <= 0.0 => None,
            true => Some((value / self.low).ln() / (self.high / self.low).ln()),
            false => Some((value - self.low) / (self.high - self.low)),
        }
    }
}

/// Ticks of one step, labelled alike: the same decimals and the same prefix all along the axis.
fn labelled(values: &[f64], step: Step) -> Vec<Tick> {
    let top = values.iter().fold(0.0f64, |top, value| top.max(value.abs()));
    let magnitude = if top > 0.0 { top.log10().floor() as i32 } else { 0 };
    let spell: Box<dyn Fn(f64) -> String> = if !(-4..15).contains(&magnitude) {
        let decimals = (magnitude - step.exponent).max(0) as usize;
        Box::new(move |value| format!("{:.decimals$}e{magnitude}", value / 10f64.powi(magnitude)))
    } else {
        let thousands = magnitude.div_euclid(3).clamp(0, 4);
        let prefix = ["", "k", "M", "G", "T"]
            .get(thousands as usize)
            .copied()
            .unwrap_or_default();
        let decimals = (3 * thousands - step.exponent).max(0) as usize;
        if magnitude >= 4 && decimals <= 2 {
            Box::new(move |value| format!("{:.decimals$}{prefix}", value / 10f64.powi(3 * thousands)))
        } else {
            let decimals = (-step.exponent).max(0) as usize;
            Box::new(move |value| format!("{value:.decimals$}"))
        }
    };
    let label = |value: f64| {
        if value == 0.0 {
            "0".to_string()
        } else {
            minus(&spell(value))
        }
    };
    values
        .iter()
        .map(|&value| Tick {
            value,
            label: label(value),
        })
        .collect()
}

/// A typographic minus sign, as wide as a digit.
pub(super) fn minus(text: &str) -> String {
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(values: &[f64], want: Want) -> Vec<String> {
        Axis::new(values.iter().copied(), want)
            .unwrap()
            .ticks
            .into_iter()
            .map(|tick| tick.label)
            .collect()
    }

    const ROUND: Want = Want {
        log: false,
        tight: false,
        ticks: 5,
    };
    const TIGHT: Want = Want {
        log: false,
        tight: true,
        ticks: 5,
    };
    const LOG: Want = Want {
        log: true,
        tight: false,
        ticks: 6,
    };

    #[test]
    fn ticks_that_people_would_choose() {
        assert_eq!(labels(&[0.0, 0.6], ROUND), ["0", "0.2", "0.4", "0.6"]);
        assert_eq!(labels(&[61.2, 76.9], ROUND), ["60", "65", "70", "75", "80"]);
        assert_eq!(labels(&[1.0, 30.0], TIGHT), ["10", "20", "30"]);
        assert_eq!(labels(&[1.0, 2.0], TIGHT), ["1", "2"]);
        assert_eq!(labels(&[0.0, 40_000.0], ROUND), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(
            labels(&[0.0, 2.0e6], ROUND),
            ["0", "0.5M", "1.0M", "1.5M", "2.0M"]
        );
        assert_eq!(
            labels(&[12_345.0, 12_348.0], ROUND),
            ["12345", "12346", "12347", "12348"]
        );
        assert_eq!(labels(&[0.0, 3e-6], ROUND), ["0", "1e−6", "2e−6", "3e−6"]);
        assert_eq!(
            labels(&[-0.5, 0.5], ROUND),
            ["−0.6", "−0.4", "−0.2", "0", "0.2", "0.4", "0.6"]
        );
    }

    #[test]
    fn between_ends_that_are_not_round_there_is_a_tick() {
        let want = Want { ticks: 2, ..TIGHT };
        assert_eq!(labels(&[0.22528612397612807], want), ["0.22", "0.24"]);
        check(&[0.22528612397612807], want).unwrap();
    }

    #[test]
    fn logarithmic_ticks() {
        assert_eq!(labels(&[0.01, 100.0], LOG), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(&[1e-6, 1e6], LOG), ["1e−6", "0.001", "1", "1000", "1M"]);
        assert_eq!(labels(&[3.0, 40.0], LOG), ["5", "10", "20"]);
        assert_eq!(
            labels(&[3.0, 4.0], LOG),
            ["3.0", "3.2", "3.4", "3.6", "3.8", "4.0"]
        );
    }

    #[test]
    fn what_cannot_be_shown() {
        assert!(Axis::new([], ROUND).is_none());
        assert!(Axis::new([f64::NAN, f64::INFINITY, 1e200], ROUND).is_none());
        assert!(Axis::new([0.0, -1.0], LOG).is_none());
        let axis = Axis::new([1.0, 10.0, f64::NAN], LOG).unwrap();
        assert_eq!(axis.place(-1.0), None);
        assert_eq!(axis.place(f64::NAN), None);
        assert!((axis.place(10f64.sqrt()).unwrap() - 0.5).abs() < 1e-12);
    }

    /// Any magnitude, either sign, and ranges from nothing to everything.
    fn value() -> impl Strategy<Value = f64> {
        (-1.0f64..1.0, -100i32..=100).prop_map(|(mantissa, exponent)| mantissa * 10f64.powi(exponent))
    }

    fn check(values: &[f64], want: Want) -> Result<(), TestCaseError> {
        let Some(axis) = Axis::new(values.iter().copied(), want) else {
            return Ok(());
        };
        for pair in axis.ticks.windows(2) {
            prop_assert!(pair[0].value < pair[1].value, "ticks rise: {pair:?}");
            prop_assert!(pair[0].label != pair[1].label, "labels differ: {pair:?}");
        }
        prop_assert!(!axis.ticks.is_empty());
        prop_assert!(
            axis.ticks.len() <= 3 * want.ticks + 3,
            "{} ticks",
            axis.ticks.len()
        );
        for tick in &axis.ticks {
            let place = axis.place(tick.value).unwrap();
            prop_assert!((-1e-5..=1.0 + 1e-5).contains(&place), "a tick outside: {place}");
        }
        for &value in values {
            if let Some(place) = axis.place(value) {
                prop_assert!((-1e-5..=1.0 + 1e-5).contains(&place), "a value outside: {place}");
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn ticks_rise_and_cover(values in prop::collection::vec(value(), 1..5), tight: bool, log: bool, ticks in 2usize..12) {
            check(&values, Want { log, tight, ticks })?;
        }

        #[test]
        fn narrow_ranges_too(at in value(), by in 0.0f64..1e-7, tight: bool, log: bool) {
            check(&[at, at * (1.0 + by)], Want { log, tight, ticks: 5 })?;
        }
    }
}
