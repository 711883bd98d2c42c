//! Attention inside windows: the map cut into them and put together again, and what is added to their logits.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

use super::attention::{Mask, Terms};
use super::fused::{Compute, Order, arrange};
use super::params::Parameters;
use crate::Result;
use crate::spec::Windows;

/// What is learned about where two tokens of a window lie to each other: a number for each way and head, `[ways, heads]`.
#[derive(Module, Debug)]
pub(super) struct RelativeBias {
    table: Param<Tensor<2>>,
}

/// The windows of a layer, with the orders of tokens that belong to them.
#[derive(Debug, Clone)]
pub(super) struct Division {
    count: usize,
    area: usize,
    pads: bool,
    /// From the map to the windows and back.
    there: Order,
    back: Order,
    /// The row of the table for each pair of tokens.
    relative: Arc<[i64]>,
    /// `[count, area, area]`
    mask: Option<Arc<[f32]>>,
}

impl RelativeBias {
    /// `table` is the name of its tensor.
    pub(super) fn new(table: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(RelativeBias {
            table: parameters.parameter(table)?,
        })
    }

    /// For the pairs of tokens of a window, `[1, heads, area, area]`.
    fn of(&self, division: &Division) -> Tensor<4> {
        let (table, area) = (self.table.val(), division.area);
        let [_, heads] = table.dims();
        let rows = TensorData::new(division.relative.to_vec(), [area * area]);
        let rows = Tensor::<1, Int>::from_data(rows, &table.device());
        let bias = table.select(0, rows);
        bias.transpose().reshape([1, heads, area, area])
    }
}

impl Division {
    pub(super) fn new(windows: &Windows) -> Self {
        Division {
            count: windows.count(),
            area: windows.area(),
            pads: windows.pads(),
            there: windows.tokens().into(),
            back: windows.windowed().into_iter().map(Some).collect(),
            relative: windows.relative().into_iter().map(|row| row as i64).collect(),
            mask: windows.mask().map(Into::into),
        }
    }

    /// Whether a map is filled up with zeros, which must not be normed.
    pub(super) fn pads(&self) -> bool {
        self.pads
    }

    /// Number of windows of an image.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// `[batch, tokens, dim]` to `[batch · windows, tokens of a window, dim]`.
    pub(super) fn divide(&self, x: Tensor<3>, compute: Compute) -> Tensor<3> {
        let [batch, _, dim] = x.dims();
        arrange(x, &self.there, compute).reshape([batch * self.count, self.area, dim])
    }

    /// And back.
    pub(super) fn unite(&self, x: Tensor<3>, compute: Compute) -> Tensor<3> {
        let [windows, _, dim] = x.dims();
        let x = x.reshape([windows / self.count, self.count * self.area, dim]);
        arrange(x, &self.back, compute)
    }

    /// What is added to the logits.
    pub(super) fn terms(&self, bias: Option<&RelativeBias>) -> Terms {
        let mask = |values: &Arc<[f32]>| Mask {
            values: Arc::clone(values),
            windows: self.count,
        };
        Terms {
            bias: bias.map(|bias| bias.of(self)),
            mask: self.mask.as_ref().map(mask),
        }
    }
}
