//! The transformer block, of every family that has attention.
//!
//! ```text
//! block.in ─ x + drop(proj(attention(norm1 x))) ─ mid ─ x + drop(mlp(norm2 x)) ─ block.out
//! ```
//!
//! Its matrices are a [`Core`] and its norms are [`Norms`], both of which several blocks may share; ops and drop path are a
//! [`Layer`]. What is shared exists once: [`Blocks`] holds a list of each.

use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::{SelfAttention, Terms};
use super::ctx::Ctx;
use super::fused::{self, Before, Residual};
use super::layers::{LayerNorm, Linear, activate, gelu_form};
use super::pack::pack;
use super::params::Parameters;
use super::stations::{at, cut, project, weighted};
use super::windows::{Division, RelativeBias};
use crate::Result;
use crate::ops::{Activation, Op};
use crate::site::Site;
use crate::spec::{BlockSpec, MlpSpec};

/// Blocks that follow each other at one width.
#[derive(Module, Debug)]
pub(super) struct Blocks {
    cores: Vec<Core>,
    norms: Vec<Norms>,
    layers: Vec<Layer>,
}

/// The matrices of a block.
#[derive(Module, Debug)]
pub(super) struct Core {
    attn: Option<SelfAttention>,
    mlp: Option<Mlp>,
    /// Of attention in windows.
    bias: Option<RelativeBias>,
}

/// The norms of a block; that of a sub-layer which the core does not have is absent.
#[derive(Module, Debug)]
pub(super) struct Norms {
    /// Before attention.
    pub(super) attn: Option<LayerNorm>,
    /// Before the MLP.
    pub(super) mlp: Option<LayerNorm>,
}

/// What a block keeps for itself.
#[derive(Module, Debug)]
pub(super) struct Layer {
    ops: Vec<Op>,
    #[module(skip)]
    place: Place,
    /// The windows in which it attends; the whole stream where there are none.
    #[module(skip)]
    windows: Option<Division>,
}

/// Where a block stands in its network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The number of its core.
    pub(super) core: usize,
    /// The number of its norms.
    pub(super) norms: usize,
    /// Its own number in the order of the forward pass.
    pub(super) layer: usize,
    /// How many blocks there are.
    pub(super) depth: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    spec: MlpSpec,
    #[module(skip)]
    activation: Activation,
}

/// How a residual branch ends.
#[derive(Clone, Copy)]
struct End<'a> {
    /// The map that writes to the residual stream.
    map: &'a Linear,
    /// Where ops on it stand.
    projection: Site,
    /// The channels that it writes; all when `None`.
    out_idx: Option<&'a [usize]>,
    /// The station after it.
    site: Site,
    /// 0 for attention, 1 for the MLP.
    branch: u64,
}

impl Core {
    /// `name` is the prefix of its tensors, such as `blocks.3`.
    pub(super) fn new(
        spec: &BlockSpec,
        name: &str,
        activation: Activation,
        parameters: &Parameters<'_>,
    ) -> Result<Self> {
        let attn = spec.attn.as_ref();
        let mlp = spec.mlp.as_ref();
        Ok(Core {
            attn: attn
                .map(|spec| SelfAttention::new(spec, name, parameters))
                .transpose()?,
            mlp: mlp
                .map(|spec| Mlp::new(spec, name, activation, parameters))
                .transpose()?,
            bias: None,
        })
    }

    /// With what its attention adds to logits in windows.
    pub(super) fn with_bias(self, bias: Option<RelativeBias>) -> Self {
        Core { bias, ..self }
    }
}

impl Blocks {
    /// `layers` name the others by number.
    pub(super) fn new(cores: Vec<Core>, norms: Vec<Norms>, layers: Vec<Layer>) -> Self {
        Blocks { cores, norms, layers }
    }

    #[cfg(test)]
    pub(super) fn layer_mut(&mut self, layer: usize) -> &mut Layer {
        &mut self.layers[layer]
    }

    /// `[batch, tokens, dim]`, through all blocks in order.
    pub(super) fn forward(&self, mut x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        for layer in &self.layers {
            x = self.run(layer, x, ctx);
        }
        ctx.layer = None;
        x
    }

    /// `[batch, tokens, dim]`, through one block; `None` if there is none of this number.
    pub(super) fn one(&self, layer: usize, x: Tensor<3>, ctx: &mut Ctx) -> Option<Tensor<3>> {
        let x = self.run(self.layers.get(layer)?, x, ctx);
        ctx.layer = None;
        Some(x)
    }

    fn run(&self, layer: &Layer, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        let Place { core, norms, .. } = layer.place;
        // The spec was validated: every layer names a core and norms that exist.
        match (self.cores.get(core), self.norms.get(norms)) {
            (Some(core), Some(norms)) => layer.run(core, norms, x, ctx),
            _ => x,
        }
    }
}

impl Layer {
    pub(super) fn new(ops: Vec<Op>, place: Place) -> Self {
        Layer {
            ops,
            place,
            windows: None,
        }
    }

    /// Attending in windows.
    pub(super) fn inside(self, windows: Option<Division>) -> Self {
        Layer { windows, ..self }
    }

    #[cfg(test)]
    pub(super) fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// The block's output `[batch, tokens, dim]`. With gradient checkpointing only its input is kept for the backward
    /// pass, unless the trace records something inside.
    fn run(&self, core: &Core, norms: &Norms, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        ctx.layer = Some(self.place.layer);
        ctx.attention = None;
        ctx.held.clear();
        let again = ctx.compute.grad_checkpointing && x.is_autodiff();
        if again && !ctx.trace.wants_block(self.place.layer) {
            self.recomputed(core, norms, x, ctx)
        } else {
            self.forward(core, norms, x, ctx)
        }
    }

    fn forward(&self, core: &Core, norms: &Norms, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        let mut x = at(Site::BlockIn, x, &self.ops, ctx);
        if let (Some(norm), Some(attn)) = (&norms.attn, &core.attn) {
            let (input, before) = self.normed(norm, Site::AttnIn, x.clone(), ctx);
            let heads = match &self.windows {
                None => attn.heads(input, before, &Terms::default(), &self.ops, ctx),
                Some(windows) => {
                    let bias = core.bias.as_ref();
                    self.in_windows(windows, (attn, bias), (input, before), ctx)
                }
            };
            let end = End {
                map: &attn.proj,
                projection: Site::Proj,
                out_idx: attn.spec.out_idx.as_deref(),
                site: Site::AttnOut,
                branch: 0,
            };
            x = self.add(x, (heads, Before::Nothing), end, ctx);
        }
        x = at(Site::Mid, x, &self.ops, ctx);
        if let (Some(norm), Some(mlp)) = (&norms.mlp, &core.mlp) {
            if let Some(y) = self.perceptron(norm, mlp, &x, ctx) {
                return at(Site::BlockOut, y, &self.ops, ctx);
            }
            let (input, before) = self.normed(norm, Site::MlpIn, x.clone(), ctx);
            let hidden = mlp.hidden(input, before, &self.ops, ctx);
            let end = End {
                map: &mlp.fc2,
                projection: Site::Fc2,
                out_idx: mlp.spec.out_idx.as_deref(),
                site: Site::MlpOut,
                branch: 1,
            };
            x = self.add(x, hidden, end, ctx);
        }
        at(Site::BlockOut, x, &self.ops, ctx)
    }

    /// Attention in windows: `before(x)` `[batch, tokens, dim]` to what `proj` reads, `[batch, tokens, Σv]`. Inside, every window is
    /// a sample of its own.
    fn in_windows(
        &self,
        windows: &Division,
        (attn, bias): (&SelfAttention, Option<&RelativeBias>),
        (x, before): (Tensor<3>, Before),
        ctx: &mut Ctx,
    ) -> Tensor<3> {
        // The zeros with which a map is filled up are put there after the norm.
        let (x, before) = if windows.pads() {
            (before.apply(x, ctx.compute), Before::Nothing)
        } else {
            (x, before)
        };
        let x = windows.divide(x, ctx.compute);
        let terms = windows.terms(bias);
        let first_sample = ctx.draws.first_sample;
        ctx.draws.first_sample = first_sample * windows.count();
        let heads = attn.heads(x, before, &terms, &self.ops, ctx);
        ctx.draws.first_sample = first_sample;
        windows.unite(heads, ctx.compute)
    }

    /// The block's second half in one segment, unless something stands inside it.
    fn perceptron(&self, norm: &LayerNorm, mlp: &Mlp, x: &Tensor<3>, ctx: &Ctx) -> Option<Tensor<3>> {
        const INSIDE: [Site; 6] = [
            Site::MlpIn,
            Site::Fc1,
            Site::MlpFc1,
            Site::MlpHidden,
            Site::Fc2,
            Site::MlpOut,
        ];
        let form = gelu_form(mlp.activation)?;
        if mlp.spec.out_idx.is_some() || INSIDE.iter().any(|&site| cut(site, &self.ops, ctx)) {
            return None;
        }
        let maps = [
            &weighted(Site::Fc1, mlp.fc1.values(), &self.ops, ctx),
            &weighted(Site::Fc2, mlp.fc2.values(), &self.ops, ctx),
        ];
        let factors = ctx.drop_path(x.dims()[0], self.place.depth, 1);
        fused::perceptron(x, &norm.before(), (maps, form), factors, ctx.compute)
    }

    /// As [`Layer::forward`], keeping only what enters the block for the backward pass. Nothing of it is recorded; what
    /// the block does to the stream, its outputs and its buffers come out of it.
    fn recomputed(&self, core: &Core, norms: &Norms, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        let module = (self.clone(), core.clone(), norms.clone());
        let outside = ctx.of_block();
        let (packed, entering) = pack(x, &ctx.stream, &outside.outputs);
        let (packed, (leaving, buffers, spoiled)) =
            fused::recompute(&module, packed, move |(this, core, norms), packed| {
                let mut ctx = outside.clone();
                let x = entering.unpack(packed, &mut ctx);
                let x = this.forward(core, norms, x, &mut ctx);
                let (packed, leaving) = pack(x, &ctx.stream, &ctx.outputs);
                (packed, (leaving, ctx.buffers, ctx.spoiled))
            });
        ctx.buffers.extend(buffers);
        ctx.spoiled = ctx.spoiled.take().or(spoiled);
        leaving.unpack(packed, ctx)
    }

    /// The branch's input and what is still to be done to it: the norm, unless something stands behind it.
    fn normed(&self, norm: &LayerNorm, site: Site, x: Tensor<3>, ctx: &mut Ctx) -> (Tensor<3>, Before) {
        if cut(site, &self.ops, ctx) {
            let x = at(site, norm.forward(x, ctx.compute), &self.ops, ctx);
            (x, Before::Nothing)
        } else {
            (x, norm.before())
        }
    }

    /// `x + drop(map(before(input)))`, in one segment unless something stands between the map and the sum.
    fn add(
        &self,
        x: Tensor<3>,
        (input, before): (Tensor<3>, Before),
        end: End<'_>,
        ctx: &mut Ctx,
    ) -> Tensor<3> {
        let factors = ctx.drop_path(x.dims()[0], self.place.depth, end.branch);
        let whole = !cut(end.projection, &self.ops, ctx) && !cut(end.site, &self.ops, ctx);
        if end.out_idx.is_none() && whole {
            let residual = Some(Residual { x, factors });
            let map = weighted(end.projection, end.map.values(), &self.ops, ctx);
            return map.segment(input, before, residual, ctx.compute);
        }
        let branch = project(end.projection, end.map.values(), (input, before), &self.ops, ctx);
        let branch = scatter(branch, end.out_idx, x.dims()[2]);
        let branch = at(end.site, branch, &self.ops, ctx);
        x + fused::scaled(branch, factors)
    }
}

/// A branch that writes only some residual channels, widened to all of them with zeros.
fn scatter(branch: Tensor<3>, out_idx: Option<&[usize]>, dim: usize) -> Tensor<3> {
    let Some(idx) = out_idx else { return branch };
    let [batch, tokens, _] = branch.dims();
    let indices: Vec<i64> = idx.iter().map(|&i| i as i64).collect();
    let device = branch.device();
    let indices = Tensor::<1, burn::tensor::Int>::from_data(indices.as_slice(), &device);
    Tensor::zeros([batch, tokens, dim], &device).select_assign(
        2,
        indices,
        branch,
        burn::tensor::IndexingUpdateOp::Add,
    )
}

impl Mlp {
    fn new(spec: &MlpSpec, core: &str, activation: Activation, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(Mlp {
            fc1: Linear::new(&format!("{core}.mlp.fc1"), true, parameters)?,
            fc2: Linear::new(&format!("{core}.mlp.fc2"), true, parameters)?,
            spec: spec.clone(),
            activation,
        })
    }

    /// `before(x)` `[batch, tokens, dim]` to what `fc2` reads, `[batch, tokens, hidden]`, and what is still to be done to
    /// it: a GELU, unless something stands behind it. Other activations are part of no segment.
    fn hidden(&self, x: Tensor<3>, before: Before, ops: &[Op], ctx: &mut Ctx) -> (Tensor<3>, Before) {
        let hidden = project(Site::Fc1, self.fc1.values(), (x, before), ops, ctx);
        let hidden = at(Site::MlpFc1, hidden, ops, ctx);
        let form = gelu_form(self.activation);
        if let Some(form) = form
            && !cut(Site::MlpHidden, ops, ctx)
        {
            return (hidden, Before::Gelu(form));
        }
        let hidden = match form {
            Some(form) => fused::gelu(hidden, form, ctx.compute),
            None => activate(hidden, self.activation),
        };
        (at(Site::MlpHidden, hidden, ops, ctx), Before::Nothing)
    }
}
