//! LOW-RANK — `y += s · B A x` beside one projection `y = W x + b`.
//!
//! Paper: Hu et al., *LoRA*, ICLR 2022, equation 3; the factor `alpha / √rank` is rank-stabilised LoRA (Kalajdzievski,
//! 2023). It stands *on* a projection ([`Site::PROJECTIONS`], or [`Site::Embed`]) and sees what enters it. Linear, so it folds
//! into `W`.
//!
//! The fused projection to queries, keys and values has one update of the whole matrix, or, where `parts` names some of
//! the three, one for each of those with factors of its own: the rows of `a` and `b` then belong to the parts in order.

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::limits::WIDTH;
use crate::spec::{Init, Sites, TensorSpec};
use crate::{Error, Result};

/// A low-rank update of a projection. Starts as the identity: `b` is zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRank {
    /// Rows of `A`, of each part.
    pub rank: usize,
    /// Numerator of the factor.
    pub alpha: f64,
    /// Whether the factor is `alpha / √rank` and not `alpha / rank`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rank_stabilized: bool,
    /// The parts of a fused projection that are updated, each by factors of its own; the whole matrix by one when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<QkvPart>>,
    /// Probability with which an input of `A` is zeroed in training.
    #[serde(default)]
    pub dropout: f64,
}

/// A third of the fused projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkvPart {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
}

impl QkvPart {
    /// What it is called in sentences.
    pub(super) fn plural(self) -> &'static str {
        match self {
            QkvPart::Q => "queries",
            QkvPart::K => "keys",
            QkvPart::V => "values",
        }
    }

    /// Its rows of a fused projection whose parts have so many, as `(first, count)`.
    pub fn rows(self, [q, k, v]: [usize; 3]) -> (usize, usize) {
        match self {
            QkvPart::Q => (0, q),
            QkvPart::K => (q, k),
            QkvPart::V => (q + k, v),
        }
    }
}

impl LowRank {
    /// What the update is multiplied by.
    pub fn factor(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The rows of the projection that are updated, as `(first, count)`, one range for each update.
    pub fn ranges(&self, site: Site, layer: usize, sites: &dyn Sites) -> Vec<(usize, usize)> {
        let Some(projection) = sites.matrix(site, layer) else {
            return vec![(0, 0)];
        };
        match (&self.parts, projection.parts) {
            (Some(parts), Some(rows)) => parts.iter().map(|part| part.rows(rows)).collect(),
            _ => vec![(0, projection.outputs)],
        }
    }

    pub(super) fn validate(&self, index: usize, site: Site) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        if !site.is_projection() {
            let known = Site::PROJECTIONS.map(Site::name).join("`, `");
            return fail(format!(
                "low-rank must stand on a projection (one of `{known}`, `{}`), not at `{site}`",
                Site::Embed
            ));
        }
        if !(1..=WIDTH).contains(&self.rank) {
            return fail(format!("rank must be from 1 to {WIDTH}, but is {}", self.rank));
        }
        if !self.alpha.is_finite() {
            return fail("alpha must be a finite number".into());
        }
        super::check_dropout(index, self.dropout)?;
        match &self.parts {
            Some(_) if site != Site::Qkv => fail(format!("only `qkv` has parts, not `{site}`")),
            Some(parts) if parts.is_empty() || !parts.is_sorted_by(|a, b| a < b) => {
                fail("parts must be some of `q`, `k`, `v`, each at most once and in this order".into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn tensors(
        &self,
        prefix: &str,
        site: Site,
        layer: usize,
        sites: &dyn Sites,
    ) -> Vec<TensorSpec> {
        let inputs = sites
            .matrix(site, layer)
            .map_or(0, |projection| projection.inputs);
        let ranges = self.ranges(site, layer, sites);
        let written: usize = ranges.iter().map(|(_, count)| count).sum();
        let bound = (inputs.max(1) as f64).powf(-0.5);
        vec![
            TensorSpec::parameter(
                format!("{prefix}.a"),
                &[ranges.len() * self.rank, inputs],
                Init::Uniform { bound },
            ),
            TensorSpec::parameter(format!("{prefix}.b"), &[written, self.rank], Init::Zeros),
        ]
    }

    /// Multiply-accumulates for one token.
    pub(super) fn macs(&self, site: Site, layer: usize, sites: &dyn Sites) -> usize {
        self.tensors("", site, layer, sites)
            .iter()
            .map(TensorSpec::numel)
            .sum()
    }
}

#[cfg(feature = "train")]
pub(super) use network::LowRankOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::LowRank;
    use crate::Result;
    use crate::network::fused::{Before, Residual, linear};
    use crate::network::{Ctx, Parameters};
    use crate::ops::network::Act;
    use crate::site::Site;
    use crate::spec::Sites;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct LowRankOp {
        a: Param<Tensor<2>>,
        b: Param<Tensor<2>>,
        #[module(skip)]
        spec: LowRank,
        #[module(skip)]
        ranges: Vec<(usize, usize)>,
        #[module(skip)]
        name: String,
    }

    impl LowRankOp {
        pub(in crate::ops) fn new(
            spec: &LowRank,
            prefix: &str,
            site: Site,
            layer: usize,
            sites: &dyn Sites,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            Ok(LowRankOp {
                a: parameters.parameter(&format!("{prefix}.a"))?,
                b: parameters.parameter(&format!("{prefix}.b"))?,
                spec: spec.clone(),
                ranges: spec.ranges(site, layer, sites),
                name: prefix.to_owned(),
            })
        }
    }

    impl Act for LowRankOp {
        fn projection(&self, x: &Tensor<3>, y: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let x = ctx.dropout(x.clone(), self.spec.dropout, &self.name);
            let (nothing, compute) = (|| Before::Nothing, ctx.compute);
            let z = linear(x, nothing(), self.a.val(), None, None, compute) * self.spec.factor() as f32;
            let [batch, tokens, width] = y.dims();
            let (rank, b) = (self.spec.rank, self.b.val());
            let mut row = 0;
            if let [(0, count)] = self.ranges[..]
                && count == width
            {
                let residual = Residual { x: y, factors: None };
                return linear(z, nothing(), b, None, Some(residual), compute);
            }
            let mut update = |i: usize, count: usize| {
                let factor = b.clone().narrow(0, row, count);
                row += count;
                linear(
                    z.clone().narrow(2, i * rank, rank),
                    nothing(),
                    factor,
                    None,
                    None,
                    compute,
                )
            };
            // Between the parts nothing is added.
            let device = z.device();
            let (mut at, mut pieces) = (0, Vec::new());
            for (i, &(first, count)) in self.ranges.iter().enumerate() {
                if first > at {
                    pieces.push(Tensor::zeros([batch, tokens, first - at], &device));
                }
                pieces.push(update(i, count));
                at = first + count;
            }
            if at < width {
                pieces.push(Tensor::zeros([batch, tokens, width - at], &device));
            }
            y + Tensor::cat(pieces, 2)
        }
    }
}
