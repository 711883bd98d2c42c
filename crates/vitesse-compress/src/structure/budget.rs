//! From a budget to what is kept: by a ranking, the share of units that goes; by damage, how far each group is cut.

use std::collections::BTreeSet;

use vitesse_model::{ModelSpec, Tensors};

use super::allocate::{Choice, Level, allocate};
use super::rank::{Ranking, Scope, Scored};
use super::selection::Selection;
use super::slice::outline;
use super::units::{Group, Id, Kind};
use crate::{Error, Result};

/// In how many steps the share of a ranking goes from nothing to all.
const STEPS: usize = 1000;

/// What a model may cost at most.
pub struct Budget<'a> {
    /// What is counted, as messages say it: `MACs`, `parameters`.
    pub what: &'a str,
    /// What a model costs: the sum over its halves of what each costs, and of what there is beside them.
    pub cost: &'a dyn Fn(&ModelSpec) -> Result<f64>,
    /// The most that it may.
    pub most: f64,
}

impl std::fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} {})", self.most, self.what)
    }
}

/// What fits a budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// What is kept.
    pub selection: Selection,
    /// What is left, described.
    pub spec: ModelSpec,
}

/// In which order the units of a group go, and what that does.
#[derive(Debug, Clone, PartialEq)]
pub struct Elimination {
    /// The group: what `proj` or `fc2` reads.
    pub group: Id,
    /// All its units, the first to go first.
    pub order: Vec<usize>,
    /// What is lost with none, one, two … units gone, on a scale that all groups share: one more than there are units. The last is what is lost
    /// if the whole half goes.
    pub damage: Vec<f64>,
}

impl Budget<'_> {
    fn refuse(&self, spec: &ModelSpec, least: f64) -> Result<Error> {
        let before = (self.cost)(spec)?;
        let share = |part: f64| 100.0 * part / before.max(f64::MIN_POSITIVE);
        Ok(Error::Selection(format!(
            "these units leave at least {:.1} % of the {}, but {:.1} % were asked for; allow more, or let other units go as well",
            share(least),
            self.what,
            share(self.most)
        )))
    }

    /// The smallest share of units, in steps of a thousandth, without which the model meets the budget; `ranking` says all but the share.
    ///
    /// Where widths are rounded, a kind may jump from one width to the next and leave much of the budget unused: then it is held back,
    /// and the other kinds go further, if that leaves more. Not where kinds compete with each other.
    ///
    /// # Errors
    /// A budget that these units cannot meet; as [`Ranking::choose`] and [`slice`](super::slice()).
    pub fn by_ranking(
        &self,
        spec: &ModelSpec,
        tensors: &Tensors,
        ranking: &Ranking,
        scored: &[Scored<'_>],
    ) -> Result<Fit> {
        let search = Search {
            budget: self,
            model: (spec, tensors),
            ranking,
            scored,
        };
        let least = search.at(STEPS - 1, None)?;
        let Some((step, mut best)) = search.first(0, None)? else {
            return Err(self.refuse(spec, least.1)?);
        };
        if !matches!(ranking.scope, Scope::Global | Scope::Patterns(_)) && step > 0 {
            let kinds: BTreeSet<Kind> = scored.iter().map(|scored| scored.group.id.kind).collect();
            for kind in kinds {
                if let Some((_, found)) = search.first(step, Some((kind, step - 1)))?
                    && found.1 > best.1
                {
                    best = found;
                }
            }
        }
        Ok(best.0)
    }

    /// What does the least damage within the budget. A group keeps a multiple of `round_to` units, unless they are heads, or all; halves of the
    /// kinds `whole` may go altogether. No two groups may share a half, whose costs would not add up.
    ///
    /// # Errors
    /// A budget that these units cannot meet; as [`slice`](super::slice()).
    pub fn by_damage(
        &self,
        spec: &ModelSpec,
        tensors: &Tensors,
        eliminations: &[Elimination],
        round_to: usize,
        whole: &[Kind],
    ) -> Result<Fit> {
        let cost = |selection: &Selection| (self.cost)(&outline(spec, tensors, selection)?);
        let before = (self.cost)(spec)?;
        if before <= self.most {
            return Ok(Fit {
                selection: Selection::default(),
                spec: spec.clone(),
            });
        }
        let mut beside = before;
        let mut choices = Vec::with_capacity(eliminations.len());
        for elimination in eliminations {
            let mut without = Selection::default();
            elimination.keep(0, &mut without);
            let without = cost(&without)?;
            beside -= before - without;
            let mut levels = Vec::new();
            let half = elimination.group.kind.half();
            for kept in elimination.levels(round_to, whole.contains(&half)) {
                let mut selection = Selection::default();
                elimination.keep(kept, &mut selection);
                levels.push(Level {
                    kept,
                    cost: cost(&selection)? - without,
                    damage: elimination.lost(kept),
                });
            }
            let group = elimination.group;
            choices.push(Choice { group, levels });
        }
        let Some(taken) = allocate(&choices, self.most - beside) else {
            let cheapest = choices
                .iter()
                .filter_map(|choice| choice.levels.iter().map(|level| level.cost).reduce(f64::min));
            return Err(self.refuse(spec, beside + cheapest.sum::<f64>())?);
        };
        let mut selection = Selection::default();
        for ((choice, level), elimination) in choices.iter().zip(taken).zip(eliminations) {
            if let Some(level) = choice.levels.get(level) {
                elimination.keep(level.kept, &mut selection);
            }
        }
        let left = outline(spec, tensors, &selection)?;
        let cost = (self.cost)(&left)?;
        if cost > self.most * (1.0 + 1e-9) {
            return Err(self.refuse(spec, cost)?);
        }
        Ok(Fit {
            selection,
            spec: left,
        })
    }
}

/// A ranking whose share of units is sought.
struct Search<'a> {
    budget: &'a Budget<'a>,
    model: (&'a ModelSpec, &'a Tensors),
    ranking: &'a Ranking,
    scored: &'a [Scored<'a>],
}

impl Search<'_> {
    /// What is left without so many thousandths of the units, and what it costs; a kind may be `held` at another share.
    fn at(&self, step: usize, held: Option<(Kind, usize)>) -> Result<(Fit, f64)> {
        let (spec, tensors) = self.model;
        let choose = |step: usize, scored: &[Scored<'_>]| {
            let ratio = step as f64 / STEPS as f64;
            Ranking {
                ratio,
                ..self.ranking.clone()
            }
            .choose(scored)
        };
        let selection = match held {
            None => choose(step, self.scored)?,
            Some((kind, back)) => {
                let (held, free): (Vec<_>, Vec<_>) = self
                    .scored
                    .iter()
                    .cloned()
                    .partition(|scored| scored.group.id.kind == kind);
                let mut selection = choose(step, &free)?;
                selection.meet(&choose(back, &held)?);
                selection
            }
        };
        let spec = outline(spec, tensors, &selection)?;
        let cost = (self.budget.cost)(&spec)?;
        Ok((Fit { selection, spec }, cost))
    }

    /// The first step from `low` on that meets the budget, by halving: more units never cost less.
    fn first(&self, low: usize, held: Option<(Kind, usize)>) -> Result<Option<(usize, (Fit, f64))>> {
        let (mut low, mut high) = (low, STEPS - 1);
        let mut best = self.at(high, held)?;
        if best.1 > self.budget.most {
            return Ok(None);
        }
        while low < high {
            let middle = (low + high) / 2;
            let found = self.at(middle, held)?;
            if found.1 <= self.budget.most {
                (best, high) = (found, middle);
            } else {
                low = middle + 1;
            }
        }
        Ok(Some((high, best)))
    }
}

impl Elimination {
    /// By scores: the least go first, and what is lost is their sum.
    pub fn of_scores(scored: &Scored<'_>) -> Elimination {
        let mut order: Vec<usize> = (0..scored.scores.len()).collect();
        let score = |unit: &usize| scored.scores.get(*unit).copied().unwrap_or_default();
        order.sort_by(|a, b| score(a).total_cmp(&score(b)));
        let lost = order.iter().scan(0.0, |sum, unit| {
            *sum += score(unit);
            Some(*sum)
        });
        Elimination {
            group: scored.group.id,
            damage: std::iter::once(0.0).chain(lost).collect(),
            order,
        }
    }

    /// Of each unit its place in the order, as a score: the last to go is worth most.
    pub fn places(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.order.len()];
        for (place, &unit) in self.order.iter().enumerate() {
            if let Some(score) = out.get_mut(unit) {
                *score = place as f64;
            }
        }
        out
    }

    /// How many units may be kept.
    fn levels(&self, round_to: usize, whole: bool) -> Vec<usize> {
        let all = self.order.len();
        let step = if self.group.kind == Kind::Head {
            1
        } else {
            round_to.max(1)
        };
        let mut levels: Vec<usize> = (1..=all / step).map(|level| level * step).collect();
        levels.extend((!all.is_multiple_of(step)).then_some(all));
        levels.extend(whole.then_some(0));
        levels
    }

    /// What is lost if so many are kept.
    fn lost(&self, kept: usize) -> f64 {
        self.damage
            .get(self.order.len().saturating_sub(kept))
            .copied()
            .unwrap_or(f64::INFINITY)
    }

    /// Keeps the last so many; of none the half goes.
    fn keep(&self, kept: usize, selection: &mut Selection) {
        let Id { kind, core } = self.group;
        if kept == 0 {
            selection.drop_all(kind.half(), core);
        } else {
            let gone = self.order.len().saturating_sub(kept);
            selection.keep(kind, core, self.order.iter().skip(gone).copied());
        }
    }
}

/// The share of the units of `groups` that `selection` cuts.
pub fn share_gone(groups: &[&Group], selection: &Selection) -> f64 {
    let all: usize = groups.iter().map(|group| group.units).sum();
    let kept = groups.iter().map(|group| {
        let Id { kind, core } = group.id;
        match (selection.of(kind.half(), core), selection.of(kind, core)) {
            (Some([]), _) => 0,
            (_, Some(kept)) => kept.len(),
            (_, None) => group.units,
        }
    });
    1.0 - kept.sum::<usize>() as f64 / all.max(1) as f64
}
