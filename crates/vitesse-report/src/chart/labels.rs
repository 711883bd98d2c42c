//! Where labels go: beside their points, touching neither each other nor anything else that is drawn.

use super::canvas::text_width;
use super::frame::Area;

/// A label and the place of its point.
pub(super) type Label<'a> = (&'a str, (f64, f64));

/// The rectangle of a label.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) left: f64,
    pub(super) top: f64,
    width: f64,
    /// The line that joins the label to its point where the two are apart.
    pub(super) leader: Option<[(f64, f64); 2]>,
    /// How many better places there were.
    cost: usize,
}

/// The height of a label's rectangle.
const HEIGHT: f64 = 15.0;
/// Half the side of the square that a marker takes.
const MARKER: f64 = 6.0;
/// What it costs to leave a label out.
const LEFT_OUT: usize = 1000;

impl Place {
    fn overlaps(&self, other: &Place) -> bool {
        self.left < other.left + other.width
            && other.left < self.left + self.width
            && self.top < other.top + HEIGHT
            && other.top < self.top + HEIGHT
    }

    /// Whether a point is within some distance of the label.
    fn covers(&self, (x, y): (f64, f64), margin: f64) -> bool {
        x > self.left - margin
            && x < self.left + self.width + margin
            && y > self.top - margin
            && y < self.top + HEIGHT + margin
    }

    /// Whether the other label's line runs through this label.
    fn crossed_by(&self, other: &Place) -> bool {
        other.along_leader().any(|point| self.covers(point, 1.0))
    }

    /// Whether the label's own line runs over a marker.
    fn reaches_across(&self, (x, y): (f64, f64)) -> bool {
        self.along_leader().any(|at| (at.0 - x).hypot(at.1 - y) < MARKER)
    }

    /// Points on the way from the marker to the label, without the marker itself.
    fn along_leader(&self) -> impl Iterator<Item = (f64, f64)> {
        self.leader.into_iter().flat_map(|[from, to]| {
            let at = move |part: f64| (from.0 + (to.0 - from.0) * part, from.1 + (to.1 - from.1) * part);
            (4..=16).map(move |i| at(f64::from(i) / 16.0))
        })
    }

    fn inside(&self, area: Area) -> bool {
        // A label may reach a little into the margins, where nothing else is.
        self.left >= area.left
            && self.left + self.width <= area.right + 14.0
            && self.top >= area.top - 8.0
            && self.top + HEIGHT <= area.bottom
    }
}

/// A place for each label, or none. Labels are placed one after the other, each at the first free one of its
/// [`candidates`]; of several orders, the one that leaves the labels nearest to their points is taken.
pub(super) fn place_labels(labels: &[Label<'_>], area: Area) -> Vec<Option<Place>> {
    let keys: [fn((f64, f64)) -> f64; 5] = [|_| 0.0, |at| at.0, |at| -at.0, |at| at.1, |at| -at.1];
    let tries = keys.into_iter().map(|key| {
        let mut order: Vec<(usize, Label<'_>)> = labels.iter().copied().enumerate().collect();
        order.sort_by(|a, b| key(a.1.1).total_cmp(&key(b.1.1)));
        place_in_order(&order, area)
    });
    let cost = |places: &Vec<Option<Place>>| -> usize {
        places
            .iter()
            .map(|place| place.map_or(LEFT_OUT, |place| place.cost))
            .sum()
    };
    tries.min_by_key(cost).unwrap_or_default()
}

/// Places labels in the order given; the result is in the order of their numbers.
fn place_in_order(labels: &[(usize, Label<'_>)], area: Area) -> Vec<Option<Place>> {
    let mut places: Vec<Option<Place>> = vec![None; labels.len()];
    for &(number, (label, at)) in labels {
        let free = |place: &Place| {
            place.inside(area)
                && !labels.iter().any(|&(other, (_, point))| {
                    place.covers(point, MARKER) || (other != number && place.reaches_across(point))
                })
                && !places
                    .iter()
                    .flatten()
                    .any(|other| place.overlaps(other) || place.crossed_by(other) || other.crossed_by(place))
        };
        let found = candidates(at, text_width(label)).find(free);
        if let Some(place) = places.get_mut(number) {
            *place = found;
        }
    }
    places
}

/// The places around a point for a label of the given width, the best first: right, left, above, below, across, then the
/// same further away.
fn candidates((x, y): (f64, f64), width: f64) -> impl Iterator<Item = Place> {
    let corners = [0.0, 8.0, 16.0, 26.0, 38.0]
        .into_iter()
        .flat_map(move |away: f64| {
            let side = 8.0 + away;
            let (right, left, middle) = (x + side, x - side - width, x - width / 2.0);
            let (level, above, below) = (y - HEIGHT / 2.0, y - side - HEIGHT, y + side);
            let (near_right, near_left) = (x + 4.0 + away / 2.0, x - 4.0 - away / 2.0 - width);
            [
                (right, level),
                (left, level),
                (middle, above),
                (middle, below),
                (near_right, above),
                (near_left, above),
                (near_right, below),
                (near_left, below),
            ]
            .map(|corner| (corner, away > 0.0))
        });
    corners.enumerate().map(move |(cost, ((left, top), apart))| {
        let nearest = (x.clamp(left, left + width), y.clamp(top, top + HEIGHT));
        let leader = apart.then_some([(x, y), nearest]);
        Place {
            left,
            top,
            width,
            leader,
            cost,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AREA: Area = Area {
        left: 40.0,
        top: 20.0,
        right: 600.0,
        bottom: 320.0,
    };

    proptest! {
        #[test]
        fn labels_touch_nothing(points in prop::collection::vec((40.0f64..600.0, 20.0f64..320.0), 1..40)) {
            let labels: Vec<Label<'_>> = points.iter().map(|&at| ("deit_tiny", at)).collect();
            let places = place_labels(&labels, AREA);
            prop_assert_eq!(places.len(), labels.len());
            for (n, place) in places.iter().enumerate().filter_map(|(n, place)| Some((n, place.as_ref()?))) {
                prop_assert!(place.inside(AREA));
                prop_assert!(!points.iter().any(|&at| place.covers(at, MARKER)));
                for other in places.iter().skip(n + 1).flatten() {
                    prop_assert!(!place.overlaps(other));
                    prop_assert!(!place.crossed_by(other) && !other.crossed_by(place));
                }
            }
        }
    }

    #[test]
    fn a_lone_label_stands_right_of_its_point_and_left_at_the_edge() {
        let place = |x: f64| place_labels(&[("deit_tiny", (x, 100.0))], AREA)[0].unwrap();
        assert!(place(300.0).left > 300.0 && place(300.0).leader.is_none());
        assert!(place(598.0).left < 598.0);
    }
}
