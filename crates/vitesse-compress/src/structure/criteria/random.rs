//! No criterion at all: what every other one must beat at equal cost.
//!
//! A unit's score is a pure function of seed, group and unit, so the same seed keeps the same units in any order of work.

use serde::{Deserialize, Serialize};
use vitesse_model::Tensors;
use vitesse_rng::Key;

use super::{Criterion, normalise};
use crate::Result;
use crate::structure::units::Group;

/// At random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// The seed.
    pub seed: u64,
}

impl Criterion for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn scores(&self, _: &Tensors, group: &Group) -> Result<Vec<f64>> {
        let key = Key::new(self.seed).with("structure").with(&group.id.to_string());
        let mut scores: Vec<f64> = (0..group.units)
            .map(|unit| key.at(unit as u64).rng().uniform())
            .collect();
        normalise(&mut scores);
        Ok(scores)
    }
}
