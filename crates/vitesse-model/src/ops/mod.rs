//! Ops: what can stand at a site.
//!
//! Ops are few and serve many methods, so they live beside the network: one file a kind with its spec, its tensors'
//! names and its forward. The enum is closed. A *method* (RepAdapter, UVC, …) decides which ops stand where, how they
//! start, what trains them and how they end: folded, sliced or kept.
//!
//! An op is called with the value at its site and the context of the forward pass, and returns the value that goes on.

mod scale_shift;

pub use scale_shift::ScaleShift;

#[cfg(feature = "train")]
pub(crate) use network::Op;

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::{TensorSpec, VitSpec};
use crate::{Error, Result};

/// One op at one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpSpec {
    /// Where it stands.
    pub site: Site,
    /// The block, or `None` for the sites outside blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// What it does.
    #[serde(flatten)]
    pub kind: OpKind,
}

/// The kinds of ops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum OpKind {
    /// `y = x · scale + shift`, by channel.
    ScaleShift(ScaleShift),
}

impl OpSpec {
    /// The prefix of the op's tensors: `ops.<index>.<layer>.<site>` with dots in the site, such as
    /// `ops.0.3.attn.in`.
    pub fn prefix(&self, index: usize) -> String {
        match self.layer {
            Some(layer) => format!("ops.{index}.{layer}.{}", self.site),
            None => format!("ops.{index}.{}", self.site),
        }
    }

    /// Whether the op is linear and acts on each token alone: what `merge` can fold into a neighbour.
    pub fn is_linear_per_token(&self) -> bool {
        match &self.kind {
            OpKind::ScaleShift(_) => true,
        }
    }

    /// Whether the op reads what the attention of its block computed (`network::Ctx::attention`). Then the maps are
    /// computed and kept, which a plain forward pass avoids.
    pub fn reads_attention(&self) -> bool {
        match &self.kind {
            OpKind::ScaleShift(_) => false,
        }
    }

    pub(crate) fn validate(&self, index: usize, vit: &VitSpec) -> Result<()> {
        if vit.width_at(self.site, self.layer).is_none() {
            let layer = self
                .layer
                .map_or("no layer".to_owned(), |layer| format!("layer {layer}"));
            return Err(Error::invalid_spec(format!(
                "ops[{index}] stands at `{}` of {layer}, which this model does not have",
                self.site
            )));
        }
        match &self.kind {
            OpKind::ScaleShift(op) => op.validate(index, self.site),
        }
    }

    pub(crate) fn tensors(&self, index: usize, vit: &VitSpec) -> Vec<TensorSpec> {
        let width = vit.width_at(self.site, self.layer).unwrap_or(0);
        match &self.kind {
            OpKind::ScaleShift(op) => op.tensors(&self.prefix(index), width),
        }
    }

    pub(crate) fn macs(&self, vit: &VitSpec) -> usize {
        let width = vit.width_at(self.site, self.layer).unwrap_or(0);
        match &self.kind {
            OpKind::ScaleShift(_) => vit.tokens_count() * width,
        }
    }
}

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;

    use super::scale_shift::ScaleShiftOp;
    use super::{OpKind, OpSpec};
    use crate::Result;
    use crate::network::{Ctx, Parameters};
    use crate::site::Site;

    /// An op in the network.
    #[derive(Module, Debug)]
    pub(crate) struct Op {
        kind: Kind,
        #[module(skip)]
        site: Site,
        #[module(skip)]
        reads_attention: bool,
    }

    #[derive(Module, Debug)]
    enum Kind {
        ScaleShift(ScaleShiftOp),
    }

    impl Op {
        pub(crate) fn new(spec: &OpSpec, index: usize, parameters: &Parameters<'_>) -> Result<Self> {
            let prefix = spec.prefix(index);
            let kind = match &spec.kind {
                OpKind::ScaleShift(op) => Kind::ScaleShift(ScaleShiftOp::new(op, &prefix, parameters)?),
            };
            Ok(Op {
                kind,
                site: spec.site,
                reads_attention: spec.reads_attention(),
            })
        }

        pub(crate) fn site(&self) -> Site {
            self.site
        }

        /// See [`OpSpec::reads_attention`].
        pub(crate) fn reads_attention(&self) -> bool {
            self.reads_attention
        }

        /// The value `[batch, tokens, width]` at the op's site, changed.
        pub(crate) fn forward(&self, x: Tensor<3>, _ctx: &mut Ctx) -> Tensor<3> {
            match &self.kind {
                Kind::ScaleShift(op) => op.forward(x),
            }
        }

        /// The attention maps `[batch, heads, tokens, tokens]` at the op's site, changed. A kind that acts on tokens
        /// alone is refused at such a site when the spec is validated.
        pub(crate) fn forward_map(&self, x: Tensor<4>, _ctx: &mut Ctx) -> Tensor<4> {
            match &self.kind {
                Kind::ScaleShift(_) => x,
            }
        }
    }
}
