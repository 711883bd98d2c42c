//! How far each group is cut, so that the whole costs no more than a budget and loses as little as can be: a knapsack in which one of
//! several levels is taken of every group.
//!
//! Paper: Kurtic et al., *ZipLM*, NeurIPS 2023, section 3.2, by dynamic programming as in Frantar and Alistarh, *SPDY*, ICML 2022. Exact up
//! to the rounding of costs: a budget is never overrun.

use super::units::Id;

/// In how many steps the budget is counted. Each group's cost is rounded up to one, so that at most a step a group is wasted.
const STEPS: usize = 20_000;

/// How far one group is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Units that are kept.
    pub kept: usize,
    /// What it costs, in the unit of the budget.
    pub cost: f64,
    /// What is lost.
    pub damage: f64,
}

/// A group and how far it may be cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Which group.
    pub group: Id,
    /// Its levels, in any order.
    pub levels: Vec<Level>,
}

/// For each choice the index of the level that is taken: the least damage among all ways to stay within `budget`. `None` if even the
/// cheapest levels cost more.
pub fn allocate(choices: &[Choice], budget: f64) -> Option<Vec<usize>> {
    let step = budget / STEPS as f64;
    if !(step > 0.0 && step.is_finite()) {
        return None;
    }
    // The least damage by what has been spent, and by which level of each group it came about.
    let mut least = vec![f64::INFINITY; STEPS + 1];
    least[0] = 0.0;
    let mut taken: Vec<Vec<usize>> = Vec::with_capacity(choices.len());
    for choice in choices {
        let mut next = vec![f64::INFINITY; STEPS + 1];
        let mut by = vec![usize::MAX; STEPS + 1];
        for (index, level) in choice.levels.iter().enumerate() {
            let steps = (level.cost.max(0.0) / step - 1e-9).ceil();
            if steps > STEPS as f64 {
                continue;
            }
            let steps = steps as usize;
            for (spent, before) in least[..=STEPS - steps].iter().enumerate() {
                let damage = before + level.damage;
                if damage < next[spent + steps] {
                    next[spent + steps] = damage;
                    by[spent + steps] = index;
                }
            }
        }
        least = next;
        taken.push(by);
    }
    let best = |spent: &usize| least[*spent];
    let mut spent = (0..=STEPS).min_by(|a, b| best(a).total_cmp(&best(b)))?;
    if !least[spent].is_finite() {
        return None;
    }
    let mut out = Vec::with_capacity(choices.len());
    for (choice, by) in choices.iter().zip(&taken).rev() {
        let index = by[spent];
        let level = choice.levels.get(index)?;
        spent -= (level.cost.max(0.0) / step - 1e-9).ceil() as usize;
        out.push(index);
    }
    out.reverse();
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structure::units::Kind;
    use vitesse_rng::Key;

    fn choice(core: usize, levels: Vec<[f64; 2]>) -> Choice {
        Choice {
            group: Id {
                kind: Kind::Hidden,
                core: Some(core),
            },
            levels: levels
                .into_iter()
                .enumerate()
                .map(|(kept, [cost, damage])| Level { kept, cost, damage })
                .collect(),
        }
    }

    #[test]
    fn the_best_of_all_ways_is_found() {
        for seed in 0..50 {
            let mut rng = Key::new(seed).rng();
            let choices: Vec<Choice> = (0..4)
                .map(|core| {
                    let level = |_| [rng.below(20) as f64, rng.uniform()];
                    choice(core, (0..3).map(level).collect())
                })
                .collect();
            // Between two sums of costs, which are whole numbers: rounding up changes nothing.
            let budget = 1.5 + rng.below(50) as f64;
            let of = |levels: &[usize], of: fn(&Level) -> f64| -> f64 {
                let taken = choices.iter().zip(levels);
                taken.map(|(choice, &level)| of(&choice.levels[level])).sum()
            };
            let ways = (0..81usize).map(|way| (0..4).map(|i| way / 3usize.pow(i) % 3).collect::<Vec<_>>());
            let best = ways
                .filter(|way| of(way, |level| level.cost) <= budget)
                .map(|way| of(&way, |level| level.damage))
                .reduce(f64::min);
            let found = allocate(&choices, budget);
            assert_eq!(found.is_some(), best.is_some(), "seed {seed}");
            if let (Some(found), Some(best)) = (found, best) {
                assert!(of(&found, |level| level.cost) <= budget * (1.0 + 1e-9));
                assert!(of(&found, |level| level.damage) <= best + 1e-9, "seed {seed}");
            }
        }
    }

    #[test]
    fn no_budget_buys_nothing() {
        let choices = [choice(0, vec![[1.0, 0.0]])];
        assert_eq!(allocate(&choices, 0.0), None);
        assert_eq!(allocate(&choices, 0.5), None);
        assert_eq!(allocate(&choices, f64::NAN), None);
        assert_eq!(allocate(&choices, 1.0), Some(vec![0]));
        assert_eq!(allocate(&[], 1.0), Some(vec![]));
    }
}
