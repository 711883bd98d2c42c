//! What stands at the stations of a block, and whether anything does.

use burn::tensor::Tensor;

use super::Ctx;
use super::fused::Before;
use super::layers::LinearValues;
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

/// The same for attention maps.
pub(super) fn at_map(site: Site, x: Tensor<4>, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward_map(x, ctx));
    ctx.record_map(site, x)
}

/// The weight and bias of a projection, the weight as the ops on it change it, in order.
pub(super) fn weighted(projection: Site, mut values: LinearValues, ops: &[Op], ctx: &Ctx) -> LinearValues {
    for op in ops.iter().filter(|op| op.site() == projection) {
        values.weight = op.weight(values.weight, ctx);
    }
    values
}

/// A projection of `before(x)` with the ops on it, in order. Where none needs more than its weight it is one segment.
pub(super) fn project(
    projection: Site,
    map: LinearValues,
    (x, before): (Tensor<3>, Before),
    ops: &[Op],
    ctx: &mut Ctx,
) -> Tensor<3> {
    let values = weighted(projection, map, ops, ctx);
    if !cut(projection, ops, ctx) {
        return values.segment(x, before, None, ctx.compute);
    }
    let x = before.apply(x, ctx.compute);
    let y = values.segment(x.clone(), Before::Nothing, None, ctx.compute);
    ops.iter()
        .filter(|op| op.site() == projection)
        .fold(y, |y, op| op.forward_projection(&x, y, ctx))
}

/// Whether the value at `site` must exist, because an op or the trace stands there, or an op elsewhere reads it. At a
/// projection: whether an op on it needs what enters and what leaves it.
pub(super) fn cut(site: Site, ops: &[Op], ctx: &Ctx) -> bool {
    let stands = |op: &Op| op.site() == site && !op.weight_alone();
    ops.iter().any(stands) || taken(site, ops, ctx)
}

/// Whether something else than the ops at `site` takes the value there: the trace, or an op elsewhere.
pub(super) fn taken(site: Site, ops: &[Op], ctx: &Ctx) -> bool {
    ops.iter().any(|op| op.reads() == Some(site)) || ctx.trace.wants(site, ctx.layer)
}
