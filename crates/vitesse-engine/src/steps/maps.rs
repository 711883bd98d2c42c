//! Feature maps, out of the stream.

use std::ops::Range;

use vitesse_kernels::{Panels, Real};
use vitesse_model::spec::FeatureMap;

use crate::member::Member;
use crate::plan::Step;
use crate::team::Run;

/// The stream as it is here becomes a part of the first thread's results, `[channels, height, width]`.
#[derive(Debug)]
pub(crate) struct Take {
    pub(crate) map: FeatureMap,
    /// The position in the map of each row of the stream; `None` for a token that is no patch.
    pub(crate) positions: Vec<Option<usize>>,
}

impl Take {
    /// Writes the rows of `tokens` to their positions of `map`.
    fn write(&self, rows: &Panels<f32>, tokens: &Range<usize>, map: &mut [f32]) {
        let [height, width] = self.map.size;
        let positions = &self.positions[tokens.clone()];
        for (channel, map) in map.chunks_exact_mut((height * width).max(1)).enumerate() {
            let rows = rows.panel(channel / 32);
            for (row, position) in rows.iter().zip(positions) {
                if let Some(position) = *position {
                    map[position] = row[channel % 32];
                }
            }
        }
    }
}

impl<T: Real> Step<T> for Take {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let from = on.results.len();
        if run.team.index == 0 {
            on.results.resize(from + self.map.numel(), 0.0);
        }
        if run.team.members.len() == 1 {
            self.write(&on.x, &on.tokens, &mut on.results[from..]);
            return;
        }
        on.show(run.team, &on.x);
        let shown = run.team.all(on.next_turn());
        if run.team.index == 0 {
            for shown in shown.iter().flatten() {
                self.write(&shown.rows, &shown.tokens, &mut on.results[from..]);
            }
        }
    }

    fn describe(&self) -> String {
        let ([height, width], FeatureMap { name, channels, .. }) = (self.map.size, &self.map);
        format!("map `{name}` of {channels} x {height} x {width}")
    }
}
