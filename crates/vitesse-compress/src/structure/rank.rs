//! From scores to a selection: who competes with whom, and how many go.

use std::collections::BTreeMap;

use regex_lite::Regex;
use vitesse_model::Tensors;

use super::criteria::Criterion;
use super::selection::Selection;
use super::units::{Axis, Group, Kind};
use crate::{Error, Result};

/// Which groups are ranked together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    /// Each group by itself: all of a kind lose the same share.
    #[default]
    Local,
    /// Groups that are built alike, so that scores mean the same: all groups of hidden units, all of heads (Fang et al.,
    /// *Isomorphic Pruning*, ECCV 2024).
    Kind,
    /// All groups. On plain models this removes nearly all attention, since scores of different kinds are not
    /// comparable.
    Global,
    /// Groups whose names, such as `blocks.3.hidden`, a regular expression matches whole; each one is a ranking, in this
    /// order, and a group that none matches is left as it is.
    Patterns(Vec<String>),
}

/// How many units go.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Who competes.
    pub scope: Scope,
    /// The share of units that is removed: at least 0, below 1.
    pub ratio: f64,
    /// What is kept of a group is a multiple of this, reached by taking the best removed units back; 1 changes nothing. Heads are not
    /// counted so.
    pub round_to: usize,
}

impl Default for Ranking {
    fn default() -> Self {
        Ranking {
            scope: Scope::Local,
            ratio: 0.5,
            round_to: 1,
        }
    }
}

/// A group and what its units are worth.
#[derive(Debug, Clone)]
pub struct Scored<'a> {
    /// The group.
    pub group: &'a Group,
    /// One score for each unit.
    pub scores: Vec<f64>,
}

impl Ranking {
    /// Scores the units of `groups` and chooses among them.
    ///
    /// # Errors
    /// As [`Ranking::choose`]; what the criterion says.
    pub fn select(
        &self,
        criterion: &dyn Criterion,
        tensors: &Tensors,
        groups: &[&Group],
    ) -> Result<Selection> {
        self.choose(&Scored::all(criterion, tensors, groups)?)
    }

    /// Keeps the best units: of `n` that compete, `⌊n·(1 − ratio)⌋`.
    ///
    /// A group by itself loses exactly that many, of equal scores the later unit first. Where several compete, all whose score is not
    /// above that of the last to go are removed, so equals go together. Every group keeps its best unit.
    ///
    /// # Errors
    /// A ratio or a multiple that is none; a pattern that is no regular expression or matches no group.
    pub fn choose(&self, scored: &[Scored<'_>]) -> Result<Selection> {
        if !(0.0..1.0).contains(&self.ratio) || self.round_to == 0 {
            return Err(Error::Selection(format!(
                "the share of units to remove must be at least 0 and below 1, and what is kept a multiple of at least 1, \
                 but they are {} and {}",
                self.ratio, self.round_to
            )));
        }
        let mut out = Selection::default();
        let mut keep = |scored: &Scored<'_>, kept: usize| {
            let id = scored.group.id;
            out.keep(
                id.kind,
                id.core,
                scored.best(self.rounded(kept, scored.scores.len(), id.kind)),
            );
        };
        for together in self.scopes(scored)? {
            match &together[..] {
                [alone] if self.scope == Scope::Local => keep(alone, self.count(alone.scores.len())),
                together => {
                    let threshold = self.threshold(together);
                    for scored in together {
                        let above = |score: &&f64| threshold.is_none_or(|threshold| **score > threshold);
                        keep(scored, scored.scores.iter().filter(above).count());
                    }
                }
            }
        }
        Ok(out)
    }

    /// Of `n` units, how many stay.
    fn count(&self, n: usize) -> usize {
        (n as f64 * (1.0 - self.ratio)) as usize
    }

    /// The score of the last unit to go; `None` if none goes.
    fn threshold(&self, together: &[&Scored<'_>]) -> Option<f64> {
        let mut all: Vec<f64> = together
            .iter()
            .flat_map(|scored| scored.scores.iter().copied())
            .collect();
        all.sort_by(f64::total_cmp);
        let gone = all.len() - self.count(all.len());
        all.get(gone.checked_sub(1)?).copied()
    }

    /// At least one, and a multiple of what is asked for, as far as there are units; heads and what is larger are not columns.
    fn rounded(&self, kept: usize, units: usize, kind: Kind) -> usize {
        let columns = !matches!(kind, Kind::Head | Kind::Attn | Kind::Mlp | Kind::Block);
        let multiple = if columns { self.round_to } else { 1 };
        kept.max(1).next_multiple_of(multiple).min(units)
    }

    /// Who is ranked with whom.
    fn scopes<'a, 'g>(&self, scored: &'a [Scored<'g>]) -> Result<Vec<Vec<&'a Scored<'g>>>> {
        match &self.scope {
            Scope::Local => Ok(scored.iter().map(|scored| vec![scored]).collect()),
            Scope::Global => Ok(vec![scored.iter().collect()]),
            Scope::Kind => {
                let mut alike: BTreeMap<(Kind, Vec<Axis>), Vec<_>> = BTreeMap::new();
                for scored in scored {
                    let axes = scored.group.members.iter().map(|member| member.axis).collect();
                    alike
                        .entry((scored.group.id.kind, axes))
                        .or_default()
                        .push(scored);
                }
                Ok(alike.into_values().collect())
            }
            Scope::Patterns(patterns) => {
                let mut left: Vec<_> = scored.iter().collect();
                let mut out = Vec::new();
                for pattern in patterns {
                    let regex = whole(pattern)?;
                    let (matching, others): (Vec<_>, Vec<_>) = left
                        .into_iter()
                        .partition(|scored| regex.is_match(&scored.group.id.to_string()));
                    if matching.is_empty() {
                        return Err(unmatched(pattern));
                    }
                    left = others;
                    out.push(matching);
                }
                Ok(out)
            }
        }
    }
}

/// The groups whose names one of `patterns` matches whole.
///
/// # Errors
/// A pattern that is no regular expression or matches no group.
pub fn matching(patterns: &[String], groups: Vec<Group>) -> Result<Vec<Group>> {
    let regexes = patterns
        .iter()
        .map(|pattern| Ok((pattern, whole(pattern)?)))
        .collect::<Result<Vec<_>>>()?;
    for (pattern, regex) in &regexes {
        if !groups.iter().any(|group| regex.is_match(&group.id.to_string())) {
            return Err(unmatched(pattern));
        }
    }
    let matched = |group: &Group| {
        regexes
            .iter()
            .any(|(_, regex)| regex.is_match(&group.id.to_string()))
    };
    Ok(groups.into_iter().filter(matched).collect())
}

/// A regular expression for all of a name.
fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        Error::Selection(format!(
            "`{pattern}` cannot be read as a regular expression: {error}"
        ))
    })
}

fn unmatched(pattern: &str) -> Error {
    Error::Selection(format!(
        "`{pattern}` matches no group that is left; groups are called such as `blocks.3.hidden`"
    ))
}

impl<'a> Scored<'a> {
    /// Groups with what `criterion` says of their units.
    ///
    /// # Errors
    /// What the criterion says.
    pub fn all(criterion: &dyn Criterion, tensors: &Tensors, groups: &[&'a Group]) -> Result<Vec<Self>> {
        let scored = groups.iter().map(|&group| {
            let scores = criterion.scores(tensors, group)?;
            Ok(Scored { group, scores })
        });
        scored.collect()
    }

    /// The `count` best units; of equal scores the earlier.
    fn best(&self, count: usize) -> Vec<usize> {
        let mut order: Vec<(usize, f64)> = self.scores.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        order.into_iter().take(count).map(|(unit, _)| unit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structure::units::Id;

    #[derive(Debug)]
    struct Given(Vec<Vec<f64>>);

    impl Criterion for Given {
        fn name(&self) -> &'static str {
            "given"
        }

        fn scores(&self, _: &Tensors, group: &Group) -> Result<Vec<f64>> {
            Ok(self.0[group.id.core.unwrap()].clone())
        }
    }

    fn select(scores: &[&[f64]], ranking: &Ranking) -> Vec<Vec<usize>> {
        let groups: Vec<Group> = scores
            .iter()
            .enumerate()
            .map(|(core, scores)| Group {
                id: Id {
                    kind: Kind::Hidden,
                    core: Some(core),
                },
                units: scores.len(),
                members: Vec::new(),
            })
            .collect();
        let groups: Vec<&Group> = groups.iter().collect();
        let given = Given(scores.iter().map(|scores| scores.to_vec()).collect());
        let selection = ranking.select(&given, &Tensors::new(), &groups).unwrap();
        let of = |core| selection.of(Kind::Hidden, Some(core));
        (0..scores.len())
            .filter_map(|core| Some(of(core)?.to_vec()))
            .collect()
    }

    fn ranking(scope: Scope, ratio: f64, round_to: usize) -> Ranking {
        Ranking {
            scope,
            ratio,
            round_to,
        }
    }

    #[test]
    fn scopes_count_as_they_say() {
        let scores: [&[f64]; 2] = [&[1.0, 5.0, 2.0, 4.0], &[0.1, 0.2, 9.0]];
        let at = |scope, ratio, round_to| select(&scores, &ranking(scope, ratio, round_to));
        // `n − ⌊n·(1 − r)⌋` go: two of four, two of three.
        assert_eq!(at(Scope::Local, 0.5, 1), [vec![1, 3], vec![2]]);
        // Three of seven stay, wherever they are.
        assert_eq!(at(Scope::Kind, 0.5, 1), [vec![1, 3], vec![2]]);
        assert_eq!(at(Scope::Global, 0.4, 1), [vec![1, 2, 3], vec![2]]);
        // The best of each stays even where all would go; multiples are reached upwards.
        assert_eq!(at(Scope::Global, 0.9, 1), [vec![1], vec![2]]);
        assert_eq!(at(Scope::Local, 0.7, 2), [vec![1, 3], vec![1, 2]]);
        assert_eq!(at(Scope::Local, 0.5, 16), [vec![0, 1, 2, 3], vec![0, 1, 2]]);
        assert_eq!(at(Scope::Local, 0.0, 1), [vec![0, 1, 2, 3], vec![0, 1, 2]]);
        let patterns = Scope::Patterns(vec!["blocks\\.1\\..*".into()]);
        assert_eq!(at(patterns, 0.5, 1), [vec![2]]);
    }

    #[test]
    fn equals_go_the_later_first_or_together() {
        let scores: [&[f64]; 2] = [&[1.0; 4], &[2.0, 3.0]];
        assert_eq!(
            select(&scores, &ranking(Scope::Local, 0.5, 1)),
            [vec![0, 1], vec![1]]
        );
        assert_eq!(
            select(&scores, &ranking(Scope::Global, 0.2, 1)),
            [vec![0], vec![0, 1]]
        );
    }

    #[test]
    fn a_wrong_ratio_and_a_pattern_for_nothing_are_refused() {
        let refused = |ranking: &Ranking| {
            let error = ranking
                .select(&Given(Vec::new()), &Tensors::new(), &[])
                .unwrap_err();
            error.to_string()
        };
        assert!(refused(&ranking(Scope::Local, 1.0, 1)).contains("below 1"));
        assert!(refused(&ranking(Scope::Local, 0.5, 0)).contains("multiple"));
        let pattern = |text: &str| refused(&ranking(Scope::Patterns(vec![text.into()]), 0.5, 1));
        assert!(pattern("nothing").contains("matches no group"));
        assert!(pattern("(").contains("regular expression"));
    }
}
