//! What stands at the stations of a block, and whether anything does.

use burn::tensor::Tensor;

use super::Ctx;
use crate::ops::Op;
use crate::site::Site;

/// The ops that stand at `site`, in order, then the trace.
pub(super) fn at(site: Site, x: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward(x, ctx));
    ctx.record(site, x)
}

/// The same for attention maps.
pub(super) fn at_map(site: Site, x: Tensor<4>, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward_map(x, ctx));
    ctx.record_map(site, x)
}

/// Whether an op or the trace stands at `site`, so that the value there must exist.
pub(super) fn cut(site: Site, ops: &[Op], ctx: &Ctx) -> bool {
    ops.iter().any(|op| op.site() == site) || ctx.trace.wants(site, ctx.layer)
}
