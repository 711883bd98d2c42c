//! What stands at the stations of a block, and whether anything does.

use burn::tensor::Tensor;

use super::Ctx;
use super::fused::Before;
use super::layers::Linear;
use crate::ops::Op;
use crate::site::Site;

/// The ops that stand at `site`, in order, then the trace.
pub(super) fn at(site: Site, x: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward(x, ctx));
    if ops.iter().any(|op| op.reads() == Some(site)) {
        ctx.held.push((site, x.clone()));
    }
    ctx.record(site, x)
}

/// A projection of `before(x)` with the ops on it, in order. Where there are none it is one segment.
pub(super) fn project(
    site: Site,
    map: &Linear,
    (x, before): (Tensor<3>, Before),
    ops: &[Op],
    ctx: &mut Ctx,
) -> Tensor<3> {
    let mut here = ops.iter().filter(|op| op.site() == site).peekable();
    if here.peek().is_none() {
        return map.segment(x, before, None, ctx.compute);
    }
    let x = before.apply(x, ctx.compute);
    let y = map.forward(x.clone(), ctx.compute);
    here.fold(y, |y, op| op.forward_projection(&x, y, ctx))
}

/// The same for attention maps.
pub(super) fn at_map(site: Site, x: Tensor<4>, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward_map(x, ctx));
    ctx.record_map(site, x)
}

/// Whether an op or the trace stands at `site`, or an op elsewhere reads it, so that the value there must exist.
pub(super) fn cut(site: Site, ops: &[Op], ctx: &Ctx) -> bool {
    let needs = |op: &Op| op.site() == site || op.reads() == Some(site);
    ops.iter().any(needs) || ctx.trace.wants(site, ctx.layer)
}
