//! GRID MERGING — neighbouring patches of every row, or of every column, become one token; the grid survives.
//!
//! Paper: Wang et al., *CAIT: Triple-Win Compression towards High Accuracy, Fast Inference, and Favorable Transferability for ViTs*,
//! 2023, asymmetric token merging. Columns 0 and 1, 2 and 3, … of every row merge (`horizontal`), or rows of every column
//! (`vertical`); an odd last one passes as it is. Never both directions at once: each step halves the count, and the blocks in
//! between adapt. No index depends on the image, so it costs a mean and is differentiable throughout. No public code exists;
//! what a merged token is worth, the `mean` of the two or a mean by their `area`, is our reading.

use serde::{Deserialize, Serialize};

use super::Leaves;
use crate::spec::TokenSet;

/// Merging of neighbours, at `block.in`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridMerging {
    /// Which neighbours.
    pub direction: Direction,
    /// What they become.
    #[serde(default)]
    pub value: MergeValue,
}

/// Which neighbours merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Those beside each other in a row.
    Horizontal,
    /// Those below each other in a column.
    Vertical,
}

/// What two neighbours become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeValue {
    /// The mean of the two.
    #[default]
    Mean,
    /// Their mean weighted by how many patches each stands for; it differs where an odd one was passed on.
    Area,
}

impl GridMerging {
    pub(super) fn leaves(&self, set: TokenSet) -> Leaves {
        let Some(grid) = set.grid else {
            return Err("the patches lie in no map here, and neighbours cannot be told".into());
        };
        let merged = self.merged(grid);
        if merged == grid {
            return Err(format!(
                "the map is {}x{} here, and nothing in it lies {}",
                grid[0],
                grid[1],
                match self.direction {
                    Direction::Horizontal => "side by side",
                    Direction::Vertical => "one below the other",
                }
            ));
        }
        Ok(TokenSet {
            patches: merged[0] * merged[1],
            grid: Some(merged),
            ..set
        })
    }

    /// Rows and columns of what a grid becomes.
    pub fn merged(&self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        match self.direction {
            Direction::Horizontal => [rows, columns.div_ceil(2)],
            Direction::Vertical => [rows.div_ceil(2), columns],
        }
    }

    /// For every cell of a grid, in raster order, the cell of the merged grid that holds it.
    pub fn token_of_cell(&self, grid: [usize; 2]) -> Vec<usize> {
        let [_, width] = self.merged(grid);
        let cell = |row, column| match self.direction {
            Direction::Horizontal => row * width + column / 2,
            Direction::Vertical => (row / 2) * width + column,
        };
        (0..grid[0])
            .flat_map(|row| (0..grid[1]).map(move |column| cell(row, column)))
            .collect()
    }
}

#[cfg(feature = "train")]
pub(in crate::ops) use network::GridMergingOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;

    use super::{GridMerging, MergeValue};
    use crate::network::Ctx;
    use crate::ops::network::Act;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct GridMergingOp {
        #[module(skip)]
        spec: GridMerging,
    }

    impl GridMergingOp {
        pub(in crate::ops) fn new(spec: &GridMerging) -> Self {
            GridMergingOp { spec: spec.clone() }
        }
    }

    impl Act for GridMergingOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let ([batch, tokens, _], prefix) = (x.dims(), ctx.stream.prefix);
            let grid = ctx.stream.grid;
            let merged = self.spec.merged(grid);
            let cells = self.spec.token_of_cell(grid);
            let after = prefix + merged[0] * merged[1];
            let first_tail = prefix + cells.len();
            let places: Vec<usize> = (0..prefix)
                .chain(cells.iter().map(|cell| prefix + cell))
                .chain((first_tail..tokens).map(|token| token - first_tail + after))
                .collect();
            let by_size = self.spec.value == MergeValue::Area;
            ctx.stream.grid = merged;
            ctx.stream.merge(x, &vec![places; batch], by_size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_last_column_or_row_passes_as_it_is() {
        let merging = |direction| GridMerging {
            direction,
            value: MergeValue::Mean,
        };
        let (h, v) = (merging(Direction::Horizontal), merging(Direction::Vertical));
        assert_eq!(h.merged([2, 3]), [2, 2]);
        assert_eq!(h.token_of_cell([2, 3]), [0, 0, 1, 2, 2, 3]);
        assert_eq!(v.merged([3, 2]), [2, 2]);
        assert_eq!(v.token_of_cell([3, 2]), [0, 1, 0, 1, 2, 3]);
    }
}
