//! The windows of a map: which token is where, which pairs are how far apart, and who does not see whom.
//!
//! Numbers only, for network, engine and costs alike. Tokens of a map are counted row by row; windows too, and the tokens
//! inside a window.

use super::WindowRule;

/// What keeps two tokens apart that only meet because the map was rolled, added to their logit.
const APART: f32 = -100.0;

/// How a map is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Rows and columns of the map.
    pub map: [usize; 2],
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// By how many rows and columns the map is rolled up and to the left before it is cut.
    pub shift: [usize; 2],
    /// The shift whose mask is added to the logits: `shift`, except in layers that are not shifted and take the mask of those that are.
    pub masked: [usize; 2],
}

impl Windows {
    pub(super) fn of(map: [usize; 2], window: [usize; 2], shifted: bool, rule: WindowRule) -> Self {
        let half = |window: usize| if shifted { window / 2 } else { 0 };
        let (window, shift) = match rule {
            WindowRule::PerAxis => {
                let fits = |axis: usize| map[axis] <= window[axis];
                (
                    [0, 1].map(|axis| if fits(axis) { map[axis] } else { window[axis] }),
                    [0, 1].map(|axis| if fits(axis) { 0 } else { half(window[axis]) }),
                )
            }
            WindowRule::Joint => {
                let (least, side) = (map[0].min(map[1]), window[0].min(window[1]));
                let whole = least <= side;
                (
                    if whole { [least; 2] } else { window },
                    if whole { [0; 2] } else { window.map(half) },
                )
            }
        };
        Windows {
            map,
            window,
            shift,
            masked: shift,
        }
    }

    /// Tokens of a window.
    pub fn area(&self) -> usize {
        self.window[0] * self.window[1]
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        let [down, across] = self.counts();
        down * across
    }

    /// Windows down and across.
    fn counts(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.map[axis].div_ceil(self.window[axis].max(1)))
    }

    /// Rows and columns of all windows together: those of the map, filled up to whole windows.
    fn whole(&self) -> [usize; 2] {
        let counts = self.counts();
        [0, 1].map(|axis| counts[axis] * self.window[axis])
    }

    /// Whether the map is filled up.
    pub fn pads(&self) -> bool {
        self.whole() != self.map
    }

    /// Whether the map is rolled.
    pub fn shifts(&self) -> bool {
        self.shift != [0; 2]
    }

    /// Whether there is one window, which is the map.
    pub fn is_one(&self) -> bool {
        self.window == self.map
    }

    /// Rows of the table of biases: one for each way in which two tokens of a window can lie to each other.
    pub fn relative_positions(&self) -> usize {
        self.window
            .iter()
            .map(|side| (2 * side).saturating_sub(1))
            .product()
    }

    /// The token of the map for each token of each window; `None` where the map is filled up.
    pub fn tokens(&self) -> Vec<Option<usize>> {
        self.places()
            .map(|at| {
                let inside = at[0] < self.map[0] && at[1] < self.map[1];
                let of = |axis: usize| (at[axis] + self.shift[axis]) % self.map[axis];
                inside.then(|| of(0) * self.map[1] + of(1))
            })
            .collect()
    }

    /// The place among the tokens of all windows for each token of the map.
    pub fn windowed(&self) -> Vec<usize> {
        let mut places = vec![0; self.map[0] * self.map[1]];
        for (place, token) in self.tokens().into_iter().enumerate() {
            if let Some(to) = token.and_then(|token| places.get_mut(token)) {
                *to = place;
            }
        }
        places
    }

    /// The row of the table for each pair of tokens of a window, `[area, area]`.
    pub fn relative(&self) -> Vec<usize> {
        let [rows, columns] = self.window;
        let at = move |token: usize| [token / columns, token % columns];
        let pairs = (0..self.area()).flat_map(|i| (0..self.area()).map(move |j| (i, j)));
        pairs
            .map(|(i, j)| {
                let ([y, x], [other_y, other_x]) = (at(i), at(j));
                (y + rows - 1 - other_y) * (2 * columns - 1) + x + columns - 1 - other_x
            })
            .collect()
    }

    /// What is added to the logits of each window, `[count, area, area]`: tokens that were not beside each other before the
    /// map was rolled do not see each other. `None` where nothing keeps tokens apart.
    pub fn mask(&self) -> Option<Vec<f32>> {
        if self.masked == [0; 2] {
            return None;
        }
        let whole = self.whole();
        // Which of the regions that lie apart a row or a column belongs to.
        let region = |axis: usize, at: usize| match self.masked[axis] {
            0 => 0,
            shift if at >= whole[axis] - shift => 2,
            _ if at >= whole[axis] - self.window[axis] => 1,
            _ => 0,
        };
        let labels: Vec<usize> = self
            .places()
            .map(|at| 3 * region(0, at[0]) + region(1, at[1]))
            .collect();
        let mut mask = Vec::with_capacity(labels.len() * self.area());
        for window in labels.chunks_exact(self.area()) {
            for label in window {
                mask.extend(
                    window
                        .iter()
                        .map(|other| if other == label { 0.0 } else { APART }),
                );
            }
        }
        Some(mask)
    }

    /// Row and column of the rolled map for each token of each window.
    fn places(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let ([down, across], [rows, columns]) = (self.counts(), self.window);
        (0..down * across).flat_map(move |window| {
            let corner = [window / across * rows, window % across * columns];
            (0..rows * columns).map(move |token| [corner[0] + token / columns, corner[1] + token % columns])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_axis_by_itself_or_both_as_one() {
        let of = |rule| Windows::of([4, 8], [4, 4], true, rule);
        let (timms, original) = (of(WindowRule::PerAxis), of(WindowRule::Joint));
        assert_eq!((timms.window, timms.shift), ([4, 4], [0, 2]));
        assert_eq!((original.window, original.shift), ([4, 4], [0, 0]));
        let small = Windows::of([3, 9], [4, 4], true, WindowRule::PerAxis);
        assert_eq!((small.window, small.shift, small.count()), ([3, 4], [0, 2], 3));
        assert!(small.pads());
        let small = Windows::of([3, 9], [4, 4], true, WindowRule::Joint);
        assert_eq!((small.window, small.count(), small.pads()), ([3, 3], 3, false));
    }

    #[test]
    fn every_token_has_one_place_and_comes_back() {
        for (map, window, shifted) in [
            ([4, 6], [2, 3], true),
            ([5, 7], [3, 3], true),
            ([2, 2], [7, 7], false),
        ] {
            let windows = Windows::of(map, window, shifted, WindowRule::PerAxis);
            let (tokens, places) = (windows.tokens(), windows.windowed());
            assert_eq!(tokens.len(), windows.count() * windows.area());
            assert_eq!(tokens.iter().flatten().count(), map[0] * map[1]);
            for (token, &place) in places.iter().enumerate() {
                assert_eq!(tokens[place], Some(token));
            }
        }
    }

    #[test]
    fn the_map_is_rolled_before_it_is_filled_up() {
        let windows = Windows {
            map: [3, 3],
            window: [2, 2],
            shift: [1, 1],
            masked: [1, 1],
        };
        let first: Vec<_> = windows.tokens().into_iter().take(8).collect();
        assert_eq!(
            first,
            [Some(4), Some(5), Some(7), Some(8), Some(3), None, Some(6), None]
        );
    }

    #[test]
    fn pairs_are_counted_from_the_top_left() {
        let windows = Windows {
            map: [2, 2],
            window: [2, 2],
            shift: [0, 0],
            masked: [0, 0],
        };
        assert_eq!(windows.relative_positions(), 9);
        assert_eq!(
            windows.relative(),
            [4, 3, 1, 0, 5, 4, 2, 1, 7, 6, 4, 3, 8, 7, 5, 4]
        );
    }

    #[test]
    fn tokens_that_met_by_rolling_do_not_see_each_other() {
        let windows = Windows {
            map: [1, 4],
            window: [1, 2],
            shift: [0, 1],
            masked: [0, 1],
        };
        let apart = [0.0, APART, APART, 0.0];
        assert_eq!(windows.mask().unwrap(), [[0.0; 4], apart].concat());
        // Who sees whom is a matter of the mask alone.
        let unshifted = Windows {
            shift: [0, 0],
            ..windows
        };
        assert_eq!(unshifted.mask(), windows.mask());
        let plain = Windows {
            masked: [0, 0],
            ..unshifted
        };
        assert_eq!(plain.mask(), None);
    }
}
