//! Fewer tokens from layer to layer: which go, where, and how many.
//!
//! The ops that take tokens away or merge them stand in `vitesse-model` (`ops/tokens/`); they learn nothing here, so that a method is a
//! map from one description of a model to another, and its weights stay as they are.
//!
//! | method | module | tokens | its knob |
//! | --- | --- | --- | --- |
//! | ToMe | [`tome`] | the most similar pairs merge, in every block | `r`, pairs a block |
//! | EViT | [`evit`] | those stay to which the class token attends, in three blocks | `keep`, the share that stays |
//! | CAIT's merging | [`cait`] | neighbours of the grid merge, in two blocks | none: a step halves the tokens |
//! | random | [`random`] | a fixed random set stays, in three blocks: the baseline | `keep`, the share that stays |

pub mod cait;
pub mod evit;
pub mod random;
pub mod tome;

use std::fmt;

use serde::Serialize;
use vitesse_model::ops::OpSpec;
use vitesse_model::{ModelSpec, Sites};

use crate::{Error, Result};

/// In how many steps a share goes from all to almost nothing.
const STEPS: usize = 1000;

/// A method that needs no training, with its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Method {
    /// The most similar pairs merge.
    Tome(tome::Config),
    /// Those stay to which the class token attends most.
    Evit(evit::Config),
    /// Neighbours merge.
    Cait(cait::Config),
    /// A random set stays.
    Random(random::Config),
}

impl Method {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Tome(_) => "tome",
            Method::Evit(_) => "evit",
            Method::Cait(_) => "cait",
            Method::Random(_) => "random",
        }
    }

    /// `spec` with the ops of this method.
    ///
    /// # Errors
    /// A model whose tokens cannot become fewer, or became fewer already; settings that do not fit it.
    pub fn reduce(&self, spec: &ModelSpec) -> Result<ModelSpec> {
        check_model(spec)?;
        let ops = match self {
            Method::Tome(config) => config.ops(spec)?,
            Method::Evit(config) => config.ops(spec)?,
            Method::Cait(config) => config.ops(spec)?,
            Method::Random(config) => config.ops(spec)?,
        };
        let mut reduced = spec.clone();
        reduced.ops.extend(ops);
        reduced.validate()?;
        Ok(reduced)
    }

    /// Refuses settings that leave `spec` as it is.
    ///
    /// # Errors
    /// Those, and as [`Method::reduce`].
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        if self.reduce(spec)?.token_counts() != spec.token_counts() {
            return Ok(());
        }
        Err(Error::Unsuited(format!(
            "{} ({self}) takes no token of this model away; choose a larger `r` or a smaller share that stays",
            self.name()
        )))
    }

    /// The same method with the mildest knob that leaves at most `share` of the multiply-accumulates of `spec`. Its own `r` or `keep` is
    /// ignored.
    ///
    /// # Errors
    /// A budget that the method cannot meet, with the least that it can; a method without a knob; as [`Method::reduce`].
    pub fn within(&self, spec: &ModelSpec, share: f64) -> Result<Method> {
        check_model(spec)?;
        let before = macs(spec)?;
        let left = |method: &Method| Ok::<f64, Error>(macs(&method.reduce(spec)?)? / before);
        let strongest = match self {
            Method::Tome(config) => config.strongest(spec)?,
            Method::Evit(_) | Method::Random(_) => STEPS - 1,
            Method::Cait(_) => return Err(cait::no_knob(spec, left)),
        };
        let least = left(&self.at(strongest))?;
        if least > share {
            return Err(Error::Unsuited(format!(
                "{} leaves at least {:.1} % of the MACs ({}), but {:.1} % were asked for; allow more, or let tokens go in earlier blocks",
                self.name(),
                100.0 * least,
                self.at(strongest),
                100.0 * share
            )));
        }
        // A stronger knob never costs more.
        let (mut low, mut high) = (0, strongest);
        while low < high {
            let middle = (low + high) / 2;
            if left(&self.at(middle))? <= share {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(self.at(high))
    }

    /// The same with the knob `step` steps from nothing.
    fn at(&self, step: usize) -> Method {
        let keep = (STEPS - step) as f64 / STEPS as f64;
        match self.clone() {
            Method::Tome(config) => Method::Tome(config.with(step)),
            Method::Evit(config) => Method::Evit(evit::Config { keep, ..config }),
            Method::Random(config) => Method::Random(random::Config { keep, ..config }),
            cait => cait,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Tome(config) => config.fmt(f),
            Method::Evit(config) => config.fmt(f),
            Method::Cait(config) => config.fmt(f),
            Method::Random(config) => config.fmt(f),
        }
    }
}

/// Multiply-accumulates of an image.
fn macs(spec: &ModelSpec) -> Result<f64> {
    Ok(spec.costs()?.macs() as f64)
}

/// Refuses a model whose tokens cannot become fewer, or became fewer already.
fn check_model(spec: &ModelSpec) -> Result<()> {
    let name = &spec.architecture;
    if let Some(why) = spec.fixed_tokens() {
        return Err(Error::Unsuited(format!(
            "the tokens of `{name}` cannot become fewer: {why}; ViT, DeiT and CLIP can lose some"
        )));
    }
    if !spec.is_transformer() {
        return Err(Error::Unsuited(format!(
            "`{name}` is no vision transformer and has no tokens that could become fewer"
        )));
    }
    let standing = spec.ops.iter().find(|op| op.kind.reduces_tokens());
    standing.map_or(Ok(()), |op| {
        Err(Error::Unsuited(format!(
            "the tokens of this model become fewer already, by `{}`; begin with the model that it was made from",
            op.kind.name()
        )))
    })
}

/// Refuses a share of tokens that is none.
fn check_keep(keep: f64) -> Result<()> {
    if keep > 0.0 && keep <= 1.0 {
        return Ok(());
    }
    Err(Error::Unsuited(format!(
        "the share of tokens that stays must be above 0 and at most 1, but is {keep}"
    )))
}

/// Refuses blocks that a model does not have, and one that is named twice.
fn check_blocks(blocks: impl IntoIterator<Item = usize>, depth: usize) -> Result<()> {
    let mut seen = Vec::new();
    for block in blocks {
        if block >= depth {
            return Err(Error::Unsuited(format!(
                "tokens are to become fewer in block {block}, but the blocks of this model are 0 to {}",
                depth.saturating_sub(1)
            )));
        }
        if seen.contains(&block) {
            return Err(Error::Unsuited(format!(
                "block {block} is named twice; tokens become fewer at most once in a block"
            )));
        }
        seen.push(block);
    }
    Ok(())
}

/// The blocks of a model of so many that stand where `of`, in ascending order, stands among twelve; each once.
fn scaled(of: &[usize], depth: usize) -> Vec<usize> {
    let mut blocks: Vec<usize> = of.iter().map(|block| block * depth / 12).collect();
    blocks.dedup();
    blocks
}

/// Blocks as a sentence lists them.
fn spell(blocks: &[usize]) -> String {
    match blocks {
        [one] => format!("block {one}"),
        several => format!("blocks {}", vitesse_words::listed(several)),
    }
}

/// An op of a block.
fn op(site: vitesse_model::Site, block: usize, kind: vitesse_model::ops::OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(block),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::zoo;

    fn all(depth: usize) -> [Method; 3] {
        [
            Method::Tome(tome::Config::default()),
            Method::Evit(evit::Config::of(depth)),
            Method::Random(random::Config::of(depth)),
        ]
    }

    #[test]
    fn a_budget_is_met_by_the_mildest_knob() {
        let spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let before = macs(&spec).unwrap();
        let left = |method: &Method| macs(&method.reduce(&spec).unwrap()).unwrap() / before;
        for method in all(12) {
            for share in [0.9, 0.65, 0.5] {
                let found = method.within(&spec, share).unwrap();
                let milder = match &found {
                    Method::Tome(tome::Config {
                        schedule: tome::Schedule::Constant(r),
                        ..
                    }) => found.at(r - 1),
                    Method::Evit(evit::Config { keep, .. }) | Method::Random(random::Config { keep, .. }) => {
                        found.at(STEPS - (keep * STEPS as f64).round() as usize - 1)
                    }
                    other => panic!("{other:?}"),
                };
                assert!(left(&found) <= share, "{found:?}");
                assert!(left(&milder) > share, "{found:?}, {milder:?}");
            }
            assert_eq!(method.within(&spec, 1.0).unwrap().reduce(&spec).unwrap(), spec);
            let refused = method.within(&spec, 0.05).unwrap_err().to_string();
            assert!(refused.contains("leaves at least"), "{refused}");
        }
    }

    #[test]
    fn other_families_and_reduced_models_are_refused_with_the_reason() {
        for (name, said) in [
            ("swin_tiny_patch4_window7_224", "the windows of a Swin"),
            ("regnety_160", "is no vision transformer"),
        ] {
            let spec = zoo::get(name).unwrap().spec;
            for method in all(12) {
                let refused = method.reduce(&spec).unwrap_err().to_string();
                assert!(refused.contains(said), "{refused}");
            }
        }
        let spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let [tome, evit, _] = all(12);
        let reduced = evit.reduce(&spec).unwrap();
        let refused = tome.reduce(&reduced).unwrap_err().to_string();
        assert!(refused.contains("already, by `attentive-tokens`"), "{refused}");
    }

    #[test]
    fn blocks_are_there_and_named_once() {
        assert_eq!(scaled(&[3, 6, 9], 12), [3, 6, 9]);
        assert_eq!(scaled(&[3, 6, 9], 4), [1, 2, 3]);
        assert_eq!(scaled(&[3, 6, 9], 2), [0, 1]);
        let refused = |blocks: [usize; 2]| check_blocks(blocks, 4).unwrap_err().to_string();
        assert!(refused([1, 4]).contains("are 0 to 3"));
        assert!(refused([2, 2]).contains("named twice"));
    }
}
