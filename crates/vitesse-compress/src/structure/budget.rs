//! From a budget to the share of units that go.

use vitesse_model::{ModelSpec, Tensors};

use super::rank::{Ranking, Scored};
use super::selection::Selection;
use super::slice::outline;
use crate::{Error, Result};

/// In how many steps the share goes from nothing to all.
const STEPS: usize = 1000;

/// What fits a budget.
#[derive(Debug, Clone)]
pub struct Fit {
    /// The share of units that go.
    pub ratio: f64,
    /// What is kept.
    pub selection: Selection,
    /// What is left, described.
    pub spec: ModelSpec,
}

/// The smallest share of units, in steps of a thousandth, without which the model takes at most `share` of its multiply-accumulates
/// for one image; `ranking` says all but the share.
///
/// # Errors
/// A budget that is no share, or that these units cannot meet; as [`Ranking::choose`] and [`slice`](super::slice()).
pub fn macs(
    spec: &ModelSpec,
    tensors: &Tensors,
    ranking: &Ranking,
    scored: &[Scored<'_>],
    share: f64,
) -> Result<Fit> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(Error::Selection(format!(
            "the MACs to keep are a share above 0 and at most 1, but {share} was asked for"
        )));
    }
    let before = spec.costs()?.macs() as f64;
    let at = |step: usize| -> Result<(Fit, f64)> {
        let ratio = step as f64 / STEPS as f64;
        let selection = Ranking {
            ratio,
            ..ranking.clone()
        }
        .choose(scored)?;
        let spec = outline(spec, tensors, &selection)?;
        let macs = spec.costs()?.macs() as f64;
        let fit = Fit {
            ratio,
            selection,
            spec,
        };
        Ok((fit, macs / before))
    };
    let (mut best, least) = at(STEPS - 1)?;
    if least > share {
        return Err(Error::Selection(format!(
            "these units leave at least {:.1} % of the MACs, but {:.1} % were asked for; allow more, or cut blocks and embedding \
             channels as well",
            100.0 * least,
            100.0 * share
        )));
    }
    // More units never cost less, so the steps that fit are the last ones.
    let (mut low, mut high) = (0, STEPS - 1);
    while low < high {
        let middle = (low + high) / 2;
        let (fit, found) = at(middle)?;
        if found <= share {
            (best, high) = (fit, middle);
        } else {
            low = middle + 1;
        }
    }
    Ok(best)
}
