//! LOCAL CONVOLUTION — `y = x̃ + conv(x̃)`: a depth-wise convolution over the map of the patches.
//!
//! Paper: Zhang et al., *MiniViT*, CVPR 2022, section 3.2, the transformation for perceptrons. The published Mini-Swin has it between
//! the sub-layers (`mid`), with a layer norm before and a sum after it, and what comes out *is* the stream from there on; the
//! paper puts the convolution alone before the perceptron (`mlp.in`). Tokens before and behind the patches pass as they are, apart
//! from the norm, if there is one.

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::limits::{PAIRS, within};
use crate::spec::{Init, Sites, TensorSpec};
use crate::{Error, Result};

/// The largest kernel.
const MOST: usize = 31;

/// A depth-wise convolution with zeros around the map, which keeps its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalConvolution {
    /// Rows and columns of the kernel; odd.
    pub kernel: usize,
    /// Whether a layer norm stands before it, with the epsilon [`NORM_EPS`](super::NORM_EPS).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub norm: bool,
    /// Whether its input is added to what it makes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
}

impl LocalConvolution {
    /// The one of the published Mini-Swins.
    pub fn published() -> Self {
        LocalConvolution {
            kernel: 7,
            norm: true,
            residual: true,
        }
    }

    pub(super) fn validate(
        &self,
        index: usize,
        site: Site,
        layer: Option<usize>,
        sites: &dyn Sites,
    ) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        if ![Site::Mid, Site::MlpIn].contains(&site) {
            return fail(format!(
                "a local convolution can stand at `{}` and `{}`, not at `{site}`",
                Site::Mid,
                Site::MlpIn
            ));
        }
        if self.kernel.is_multiple_of(2) || self.kernel > MOST {
            return fail(format!(
                "the kernel must be an odd number up to {MOST}, but is {}",
                self.kernel
            ));
        }
        if layer.and_then(|layer| sites.grid_at(layer)).is_none() {
            return fail("a local convolution needs patches that lie in a map, and these do not".into());
        }
        let neighbours = sites.tokens_passing(site, layer.unwrap_or(0)) * self.kernel * self.kernel;
        within("the number of neighbours of a layer's tokens", neighbours, PAIRS)
    }

    pub(super) fn tensors(&self, prefix: &str, width: usize) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        let mut add = |name: &str, shape: &[usize], init| {
            out.push(TensorSpec::parameter(format!("{prefix}.{name}"), shape, init));
        };
        if self.norm {
            add("norm.weight", &[width], Init::Ones);
            add("norm.bias", &[width], Init::Zeros);
        }
        // The framework's default, which the published code leaves as it is: an output has `kernel²` inputs, whose root is the kernel's side.
        let init = Init::Uniform {
            bound: 1.0 / self.kernel.max(1) as f64,
        };
        add("conv.weight", &[width, 1, self.kernel, self.kernel], init);
        add("conv.bias", &[width], init);
        out
    }

    /// Multiply-accumulates for one image, where `width` channels pass.
    pub(super) fn macs(&self, width: usize, layer: usize, sites: &dyn Sites) -> usize {
        let patches: usize = sites.grid_at(layer).map_or(0, |grid| grid.iter().product());
        patches * width * self.kernel * self.kernel
    }
}

#[cfg(feature = "train")]
pub(super) use network::LocalConvolutionOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::LocalConvolution;
    use crate::Result;
    use crate::network::fused::{Convolution, Layout, conv2d};
    use crate::network::layers::LayerNorm;
    use crate::network::{Ctx, Parameters};
    use crate::ops::NORM_EPS;
    use crate::ops::network::Act;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct LocalConvolutionOp {
        norm: Option<LayerNorm>,
        weight: Param<Tensor<4>>,
        bias: Param<Tensor<1>>,
        #[module(skip)]
        spec: LocalConvolution,
    }

    impl LocalConvolutionOp {
        pub(in crate::ops) fn new(
            spec: &LocalConvolution,
            prefix: &str,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            Ok(LocalConvolutionOp {
                norm: spec
                    .norm
                    .then(|| LayerNorm::new(&format!("{prefix}.norm"), NORM_EPS, parameters))
                    .transpose()?,
                weight: parameters.parameter(&format!("{prefix}.conv.weight"))?,
                bias: parameters.parameter(&format!("{prefix}.conv.bias"))?,
                spec: spec.clone(),
            })
        }
    }

    impl Act for LocalConvolutionOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let x = match &self.norm {
                Some(norm) => norm.forward(x, ctx.compute),
                None => x,
            };
            let [batch, tokens, width] = x.dims();
            let ([rows, columns], first) = (ctx.stream.grid, ctx.stream.prefix);
            let patches = rows * columns;
            let part = |from, count| x.clone().narrow(1, from, count);
            let map = part(first, patches)
                .swap_dims(1, 2)
                .reshape([batch, width, rows, columns]);
            let padding = self.spec.kernel / 2;
            let convolution = Convolution {
                stride: [1, 1],
                padding: [padding, padding],
                groups: width,
                layout: Layout::BatchFirst,
            };
            let y = conv2d(
                map,
                self.weight.val(),
                Some(self.bias.val()),
                convolution,
                ctx.compute,
            );
            let mut y = y.reshape([batch, width, patches]).swap_dims(1, 2);
            if self.spec.residual {
                y = y + part(first, patches);
            }
            if patches == tokens {
                return y;
            }
            let mut parts = Vec::with_capacity(3);
            if first > 0 {
                parts.push(part(0, first));
            }
            parts.push(y);
            let behind = first + patches;
            if behind < tokens {
                parts.push(part(behind, tokens - behind));
            }
            Tensor::cat(parts, 1)
        }
    }
}
