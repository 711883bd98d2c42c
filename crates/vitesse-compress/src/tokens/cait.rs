//! CAIT — neighbouring patches merge, in rows at one depth and in columns at another; the grid survives.
//!
//! Paper: Wang et al., *CAIT: Triple-Win Compression towards High Accuracy, Fast Inference, and Favorable Transferability for ViTs*, 2023,
//! asymmetric token merging; not its pruning of channels. Before a block of the layout columns 0 and 1, 2 and 3, … of every row merge (`h`), or rows of
//! every column (`v`).
//!
//! When to use it: for models that are trained again, and for dense tasks, whose maps it keeps; without training it loses most, since what merges
//! does not depend on the image. Changes nothing in the tensors of a checkpoint, and costs one mean. Deviations: no code is public, so that the
//! blocks of the layout and the value of a merged token are our reading; in a model that is not twelve blocks deep, they stand at the same share of the
//! depth.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use vitesse_model::ops::{Direction, GridMerging, MergeValue, OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Sites};

use super::{Method, check_blocks, op, scaled};
use crate::{Error, Result};

/// Where which neighbours merge, and into what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The merges. Ours: `4h,8v` of 12 blocks, which leaves a quarter of the patches.
    pub layout: Vec<Merge>,
    /// What two neighbours become. Ours: their mean.
    pub value: MergeValue,
}

/// One merge, as text the block and the first letter of the direction: `4h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Merge {
    /// The block before which it happens, from 0.
    pub block: usize,
    /// Which neighbours.
    pub direction: Direction,
}

impl Config {
    /// The default, for a model of so many blocks.
    pub fn of(depth: usize) -> Config {
        Config::at(&scaled(&[4, 8], depth))
    }

    /// Columns before the first block, rows before the second, where there is one.
    fn at(blocks: &[usize]) -> Config {
        let directions = [Direction::Horizontal, Direction::Vertical];
        let layout = blocks.iter().zip(directions);
        Config {
            layout: layout
                .map(|(&block, direction)| Merge { block, direction })
                .collect(),
            value: MergeValue::default(),
        }
    }

    pub(super) fn ops(&self, spec: &ModelSpec) -> Result<Vec<OpSpec>> {
        let blocks = self.layout.iter().map(|merge| merge.block);
        check_blocks(blocks, spec.depth())?;
        let ops = self.layout.iter().map(|merge| {
            let kind = GridMerging {
                direction: merge.direction,
                value: self.value,
            };
            op(Site::BlockIn, merge.block, OpKind::GridMerging(kind))
        });
        Ok(ops.collect())
    }
}

impl Default for Config {
    fn default() -> Self {
        Config::of(12)
    }
}

/// Why no budget is searched for, with what some layouts leave, as `left` counts it.
pub(super) fn no_knob(spec: &ModelSpec, left: impl Fn(&Method) -> Result<f64>) -> Error {
    let depth = spec.depth();
    let mut told = Vec::new();
    for blocks in [[4, 8], [6, 9], [8, 10]] {
        let config = Config::at(&scaled(&blocks, depth));
        // What a small model has no room for is no offer.
        if let Ok(share) = left(&Method::Cait(config.clone())) {
            told.push(format!("{} leaves {:.1} %", config.spelled(), 100.0 * share));
        }
    }
    Error::Unsuited(format!(
        "cait halves the tokens at each step of its layout, so that no setting is to be found for a budget of MACs; choose a layout ({})",
        told.join(", ")
    ))
}

impl Config {
    /// The layout, as it is typed.
    fn spelled(&self) -> String {
        let merges: Vec<String> = self.layout.iter().map(Merge::to_string).collect();
        merges.join(",")
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match self.value {
            MergeValue::Mean => "mean",
            MergeValue::Area => "mean by area",
        };
        write!(f, "{}, {value}", self.spelled())
    }
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.direction {
            Direction::Horizontal => 'h',
            Direction::Vertical => 'v',
        };
        write!(f, "{}{letter}", self.block)
    }
}

impl FromStr for Merge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Merge> {
        let split = |letter, direction| {
            let block = text.strip_suffix(letter)?.parse().ok()?;
            Some(Merge { block, direction })
        };
        split('h', Direction::Horizontal)
            .or_else(|| split('v', Direction::Vertical))
            .ok_or_else(|| {
                Error::Unsuited(format!(
                    "`{text}` is no merge: expected a block, from 0, and h (columns of a row) or v (rows of a column), such as 4h"
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::zoo;

    #[test]
    fn a_layout_is_read_and_halves_the_grid() {
        let layout: Vec<Merge> = ["4h", "8v"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(layout, Config::default().layout);
        assert_eq!(Config::default().to_string(), "4h,8v, mean");
        for text in ["h", "4x", "-1h", "4"] {
            assert!(text.parse::<Merge>().is_err(), "{text}");
        }
        let spec = zoo::get("deit_small_patch16_224").unwrap().spec;
        let reduced = Method::Cait(Config::default()).reduce(&spec).unwrap();
        let last = reduced.token_counts().last().unwrap().perceptron;
        assert_eq!((last.patches, last.grid), (49, Some([7, 7])));
        let macs = reduced.costs().unwrap().macs() as f64 / 1e9;
        assert!((macs - 2.664).abs() < 1e-3, "{macs}");
    }

    #[test]
    fn a_budget_is_answered_with_layouts() {
        let spec = zoo::get("deit_small_patch16_224").unwrap().spec;
        let refused = Method::Cait(Config::default()).within(&spec, 0.65).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("4h,8v leaves 57.9 %") && said.contains("6h,9v"),
            "{said}"
        );
        // Where two merges would fall into one block there is one layout less.
        let small = zoo::get("deit_nano_patch8_32").unwrap().spec;
        let refused = Method::Cait(Config::of(4)).within(&small, 0.65).unwrap_err();
        assert!(refused.to_string().contains("1h,2v leaves"), "{refused}");
    }
}
