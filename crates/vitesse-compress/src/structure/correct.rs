//! What a cut took is won back without training and without labels: every projection behind something that was cut is solved anew.
//!
//! ```text
//! x: what the projection reads in the pruned model ────────────┐
//!                                                              ├─ least squares ─▶ its new weight and bias
//! y: what takes the stream to where the dense model has it then ┘
//! ```
//!
//! So a projection makes good for its own cut and for what is still wrong of all before it.
//!
//! Papers: He et al., *Channel Pruning for Accelerating Very Deep Neural Networks*, ICCV 2017, equation 5; Frantar and Alistarh,
//! *Optimal Brain Compression*, NeurIPS 2022, which solves layers in order, each from the inputs that it will really see. When to use it:
//! always, if some hundred images are at hand. What it changes: weights and biases of `proj` and `fc2`, queries; no shape.
//! Cost: about five forward passes over the images.
//!
//! | what was cut | what is solved |
//! | --- | --- |
//! | hidden units | `fc2`, with its bias |
//! | heads, dimensions of values | `proj`, with its bias |
//! | dimensions of queries and keys | the queries of each head, so that their products with the keys that are left come close to the products there were; logits are bilinear, so keys stay |
//! | a sub-layer or a block | its mean is added to the bias before it: that of a projection, of the embedding, or of the norm before patch merging |
//! | channels of the stream, rows of `proj` and `fc2` | nothing |
//!
//! Blocks are walked in order; the streams of all images lie in a temporary file between two of them, so memory depends on a batch alone.

use burn::tensor::{Device, Int, Tensor};
use serde::Serialize;
use vitesse_model::network::{Ctx, Network, Trace};
use vitesse_model::spec::{AttentionSpec, Transformer};
use vitesse_model::{ModelSpec, Site, Tensors};
use vitesse_words::counted;

use super::halves::Half;
use super::kept::{Kept, KeptAttention, KeptHead};
use super::moments::{Map, Moments};
use super::queries::solve;
use super::selection::Selection;
use super::slice::{Sliced, slice};
use super::streams::Streams;
use super::units::{Kind, bounds, unshared};
use super::write::{add_behind, add_to, store};
use crate::linalg::dot;
use crate::{Error, Result};

/// What is solved anew where units of a kind are cut; `None` where nothing is.
pub fn remedy(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Hidden => Some("fc2 is solved anew"),
        Kind::Head | Kind::VDim => Some("proj is solved anew"),
        Kind::Dim | Kind::Position => Some("queries and proj are solved anew"),
        Kind::QkDim => Some("queries are solved anew"),
        Kind::Attn | Kind::Mlp | Kind::Block => Some("their mean goes into the bias before"),
        Kind::Embed | Kind::AttnOut | Kind::MlpOut => None,
    }
}

/// How it is solved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How strongly weights are held to what they were: a share of the mean variance of an input.
    pub damping: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { damping: 3e-3 }
    }
}

/// A model that was cut and corrected.
#[derive(Debug, Clone)]
pub struct Corrected {
    /// The model.
    pub sliced: Sliced,
    /// What was corrected, in the order of the blocks.
    pub fits: Vec<Fit>,
}

/// How far the stream is from where the dense model has it, after a half of a block: the mean square of the distance, as a share of that of the
/// stream around each token's mean.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// The projection that ends the half, by its name in the source, such as `blocks.3.mlp.fc2`; of a half that is gone the one it had.
    pub module: String,
    /// After the cut, with everything before it corrected.
    pub cut: f64,
    /// After the correction.
    pub corrected: f64,
}

/// Cuts out what `selection` does not keep, and corrects what is left by `images`, `[batch, channels, height, width]` each, prepared as the
/// model wants them.
///
/// # Errors
/// As [`slice`](super::slice()); blocks that share matrices; fewer tokens than twice the inputs of a projection; what `images` say, such as
/// that the work is to stop.
pub fn correct<E: From<Error>>(
    spec: &ModelSpec,
    tensors: &Tensors,
    selection: &Selection,
    settings: Settings,
    images: impl IntoIterator<Item = std::result::Result<Tensor<4>, E>>,
    mut between: impl FnMut(usize) -> std::result::Result<(), E>,
) -> std::result::Result<Corrected, E> {
    let mut walk = Walk::new(spec, tensors, selection, settings)?;
    for images in images {
        walk.enter(&images?)?;
    }
    enough(&walk.sliced.spec, walk.streams[0].images())?;
    for layer in 0..walk.body.layers().len() {
        between(layer)?;
        walk.block(layer)?;
    }
    let Walk { sliced, fits, .. } = walk;
    Ok(Corrected { sliced, fits })
}

/// Refuses so few images that they have fewer tokens than twice what some projection of the model reads: least squares would learn
/// them by heart.
///
/// # Errors
/// A sentence that says how many it takes; a model that is no transformer.
pub fn enough(spec: &ModelSpec, images: usize) -> Result<()> {
    let body = spec.transformer()?;
    let of = |layer: usize| {
        let inputs = Half::BOTH.map(|half| half.of(body, layer).map_or(0, |(inputs, _)| inputs));
        let (widest, each) = (
            inputs[0].max(inputs[1]),
            spec.sites().tokens_passing(Site::MlpIn, layer).max(1),
        );
        ((2 * widest).div_ceil(each), widest, each)
    };
    let Some((least, widest, each)) = (0..body.layers().len()).map(of).max() else {
        return Ok(());
    };
    if images >= least {
        return Ok(());
    }
    Err(Error::Unsuited(format!(
        "{} ({}) cannot tell what a projection needs that reads {widest} numbers: it takes at least twice as many tokens; give at least {}",
        counted(images, "calibration image"),
        counted(images * each, "token"),
        counted(least, "image")
    )))
}

struct Walk<'a> {
    body: Transformer<'a>,
    tensors: &'a Tensors,
    settings: Settings,
    kept: Kept,
    dense: Network,
    /// What it has become so far.
    sliced: Sliced,
    pruned: Network,
    /// The streams of the dense model before the block that is next, and those of the pruned one.
    streams: [Streams; 2],
    /// Whether the two differ by now.
    differ: bool,
    /// The projection of this stage that wrote last.
    last: Option<Written>,
    fits: Vec<Fit>,
}

/// A projection of the pruned model, and the channels it writes.
struct Written {
    module: String,
    out_idx: Option<Vec<usize>>,
    /// The layer of the source.
    layer: usize,
}

impl<'a> Walk<'a> {
    fn new(
        spec: &'a ModelSpec,
        tensors: &'a Tensors,
        selection: &Selection,
        settings: Settings,
    ) -> Result<Walk<'a>> {
        let body = unshared(spec)?;
        let sliced = slice(spec, tensors, selection)?;
        Ok(Walk {
            body,
            tensors,
            settings,
            kept: Kept::of(spec, tensors, selection)?,
            dense: Network::new(spec, tensors, "the model", &Device::flex())?,
            pruned: network(&sliced)?,
            sliced,
            streams: [Streams::new()?, Streams::new()?],
            differ: false,
            last: None,
            fits: Vec::new(),
        })
    }

    fn enter(&mut self, images: &Tensor<4>) -> Result<()> {
        let networks = [&self.dense, &self.pruned];
        for (network, streams) in networks.into_iter().zip(&mut self.streams) {
            streams.push(&network.embed(images.clone(), &mut Ctx::eval())?)?;
        }
        self.differ = self.kept.embed.is_some();
        Ok(())
    }

    fn small(&self) -> Transformer<'_> {
        // What was sliced from a transformer is one.
        self.sliced.spec.transformer().unwrap_or(self.body)
    }

    fn block(&mut self, layer: usize) -> Result<()> {
        let to = self.kept.layers.binary_search(&layer).ok();
        if self.begins(layer) {
            self.last = None;
        }
        if let Some(to) = to {
            self.queries(layer, to)?;
        }
        let targets = self.targets(layer)?;
        for (half, targets) in Half::BOTH.into_iter().zip(targets) {
            let Some(mut targets) = targets else { continue };
            match to.filter(|&to| half.of(self.small(), to).is_some()) {
                Some(to) => self.fit(half, (layer, to), &mut targets)?,
                None => self.leave(half, (layer, to), &mut targets)?,
            }
        }
        if let Some(to) = to {
            for batch in 0..self.streams[1].len() {
                let x = self
                    .pruned
                    .block(to, self.streams[1].get(batch)?, &mut Ctx::eval())?;
                self.streams[1].put(batch, &x)?;
            }
        }
        Ok(())
    }

    /// The dense streams after each half of a block; they go on.
    fn targets(&mut self, layer: usize) -> Result<[Option<Streams>; 2]> {
        let there = Half::BOTH.map(|half| half.of(self.body, layer).is_some());
        let after = Half::BOTH.map(|half| (half.stream()[1], Some(layer)));
        let mut out = [Streams::new()?, Streams::new()?];
        for batch in 0..self.streams[0].len() {
            let mut ctx = Ctx::tracing(Trace::pairs(after));
            let x = self.dense.block(layer, self.streams[0].get(batch)?, &mut ctx)?;
            self.streams[0].put(batch, &x)?;
            for ((site, layer), out) in after.into_iter().zip(&mut out) {
                if let Some(x) = ctx.trace.tokens(site, layer) {
                    out.push(&x)?;
                }
            }
        }
        let [attn, mlp] = out;
        Ok([there[0].then_some(attn), there[1].then_some(mlp)])
    }

    /// Solves the projection of a half.
    fn fit(&mut self, half: Half, (layer, to): (usize, usize), targets: &mut Streams) -> Result<()> {
        let dense_inputs = half.of(self.body, layer).map_or(0, |(inputs, _)| inputs);
        let (inputs, out_idx) = half
            .of(self.small(), to)
            .map_or((0, None), |(inputs, idx)| (inputs, idx.map(<[usize]>::to_vec)));
        let module = module(self.small(), to, half.projection());
        self.differ |= inputs < dense_inputs;
        if self.differ {
            let stream = self.kept.stream(self.body.dim(layer));
            let channels: Vec<usize> = match &out_idx {
                Some(idx) => idx.iter().map(|&channel| stream[channel]).collect(),
                None => stream,
            };
            let mut moments = Moments::new(inputs, channels.len());
            let mut energy = 0.0;
            let [entered, _] = half.stream();
            let sites = [half.sites()[0], entered].map(|site| (site, Some(to)));
            for batch in 0..targets.len() {
                let mut ctx = Ctx::tracing(Trace::pairs(sites));
                self.pruned.block(to, self.streams[1].get(batch)?, &mut ctx)?;
                let target = targets.get(batch)?;
                energy += spread(&target) / targets.tokens() as f64;
                if let (Some(x), Some(before)) = (
                    half.read(self.body, to, &ctx),
                    ctx.trace.tokens(entered, Some(to)),
                ) {
                    let before = match &out_idx {
                        Some(idx) => select(before, idx),
                        None => before,
                    };
                    moments.add(x, select(target, &channels) - before);
                }
            }
            let before = Map::of(&self.sliced.tensors, &module)?;
            moments.check(&module)?;
            let fitted = moments.fit(&before, self.settings.damping);
            let share = |map: &Map| moments.error(map) / energy.max(f64::MIN_POSITIVE);
            self.fits.push(Fit {
                module: self::module(self.body, layer, half.projection()),
                cut: share(&before),
                corrected: share(&fitted),
            });
            store(&mut self.sliced.tensors, &module, &fitted)?;
            self.pruned = network(&self.sliced)?;
        }
        self.last = Some(Written {
            module,
            out_idx,
            layer,
        });
        Ok(())
    }

    /// The mean of what a half that is gone would have to add goes to what wrote the stream last.
    fn leave(
        &mut self,
        half: Half,
        (layer, to): (usize, Option<usize>),
        targets: &mut Streams,
    ) -> Result<()> {
        self.differ = true;
        let before_block = match &self.last {
            Some(last) => last.layer != layer,
            None => !self.begins(layer),
        };
        let stream = self.kept.stream(self.body.dim(layer));
        let mut moments = Moments::new(stream.len(), 0);
        let mut energy = 0.0;
        for batch in 0..targets.len() {
            let mut before = self.streams[1].get(batch)?;
            // Behind this block's own attention, or behind patch merging, the stream is inside the pruned block.
            if let Some(to) = to.filter(|_| !before_block) {
                let site = (half.stream()[0], Some(to));
                let mut ctx = Ctx::tracing(Trace::pairs([site]));
                self.pruned.block(to, before.clone(), &mut ctx)?;
                before = ctx.trace.tokens(site.0, site.1).unwrap_or(before);
            }
            let target = targets.get(batch)?;
            energy += spread(&target) / targets.tokens() as f64;
            moments.see(select(target, &stream) - before);
        }
        let mut mean = moments.seen();
        let variance: f64 = moments.covariance().iter().step_by(mean.len() + 1).sum();
        let whole = variance + dot(&mean, &mean);
        if let Some(Written {
            out_idx: Some(idx), ..
        }) = &self.last
        {
            for (channel, mean) in mean.iter_mut().enumerate() {
                if idx.binary_search(&channel).is_err() {
                    *mean = 0.0;
                }
            }
        }
        let added = self.add_before(layer, &mean)?;
        let left = whole - 2.0 * dot(&mean, &added) + dot(&added, &added);
        self.fits.push(Fit {
            module: module(self.body, layer, half.projection()),
            cut: whole / energy.max(f64::MIN_POSITIVE),
            corrected: left / energy.max(f64::MIN_POSITIVE),
        });
        self.pruned = network(&self.sliced)?;
        if before_block {
            let added: Vec<f32> = added.iter().map(|added| *added as f32).collect();
            let added =
                Tensor::<1>::from_data(added.as_slice(), &Device::flex()).reshape([1, 1, added.len()]);
            for batch in 0..self.streams[1].len() {
                let x = self.streams[1].get(batch)? + added.clone();
                self.streams[1].put(batch, &x)?;
            }
        }
        Ok(())
    }

    /// Whether patch merging stands between a layer and the one before it.
    fn begins(&self, layer: usize) -> bool {
        layer > 0 && self.body.merging(layer) != self.body.merging(layer - 1)
    }

    /// Adds to the stream of a layer, for every token, before the next half: to what wrote last, or to what makes the stream. Returns what it came
    /// to; the next projection takes the rest on.
    fn add_before(&mut self, layer: usize, mean: &[f64]) -> Result<Vec<f64>> {
        let tensors = &mut self.sliced.tensors;
        if let Some(last) = &self.last {
            let written: Vec<f64> = match &last.out_idx {
                Some(idx) => idx.iter().map(|&channel| mean[channel]).collect(),
                None => mean.to_vec(),
            };
            add_to(tensors, &format!("{}.bias", last.module), &written)?;
            return Ok(mean.to_vec());
        }
        if let Some(merging) = self.body.merging(layer) {
            return add_behind(tensors, &merging, mean, self.settings.damping);
        }
        let names: &[&str] = match self.body {
            Transformer::Swin(_) => &["patch_embed.norm.bias"],
            Transformer::Vit(vit) if vit.pre_norm => &["norm_pre.bias"],
            Transformer::Vit(vit) if vit.embed_prefix => &["pos_embed"],
            Transformer::Vit(_) => &["cls_token", "dist_token", "reg_token", "pos_embed"],
        };
        names.iter().try_for_each(|name| add_to(tensors, name, mean))?;
        Ok(mean.to_vec())
    }

    /// Solves the queries of heads that lost dimensions of queries and keys: `A·q` in the place of `q`, with the least mean of
    /// `(q·k − (A·q)·k′)²` over the keys `k` there were and those `k′` that are left.
    fn queries(&mut self, layer: usize, to: usize) -> Result<()> {
        let core = self.body.core(layer).and_then(|core| self.kept.cores.get(core));
        let kept = core.and_then(|core| core.attn.clone());
        let (Some(kept), Some(attn)) = (kept, self.body.block(layer).and_then(|block| block.attn.as_ref()))
        else {
            return Ok(());
        };
        let whole = |head: &KeptHead| head.qk.len() == attn.qk_dims[head.index];
        if kept.heads.iter().all(whole) {
            return Ok(());
        }
        self.differ = true;
        let embed = self.kept.stream(self.body.dim(layer)).len();
        // The tokens attend to the zeros with which a map is filled up, too: their keys are the bias.
        let filled_up = self.body.windows(layer).map_or(0, |windows| {
            windows.tokens().iter().filter(|token| token.is_none()).count()
        });
        let mut moments = Moments::new(embed, 0);
        for batch in 0..self.streams[1].len() {
            let mut ctx = Ctx::tracing(Trace::pairs([(Site::AttnIn, Some(to))]));
            self.pruned.block(to, self.streams[1].get(batch)?, &mut ctx)?;
            if let Some(x) = ctx.trace.tokens(Site::AttnIn, Some(to)) {
                moments.see_zeros(x.dims()[0] * filled_up);
                moments.see(x);
            }
        }
        let solved = self.solve_queries(layer, attn, &kept, &moments.second())?;
        let module = module(self.small(), to, "attn.qkv");
        let mut qkv = Map::of(&self.sliced.tensors, &module)?;
        for (row, values) in solved.into_iter().enumerate() {
            let (weight, bias) = values.split_at(embed);
            qkv.weight[row * embed..(row + 1) * embed].copy_from_slice(weight);
            qkv.bias[row] = bias[0];
        }
        store(&mut self.sliced.tensors, &module, &qkv)?;
        self.pruned = network(&self.sliced)?;
        Ok(())
    }

    /// The rows of the new queries of all heads, each with its bias at the end.
    fn solve_queries(
        &self,
        layer: usize,
        attn: &AttentionSpec,
        kept: &KeptAttention,
        second: &[f64],
    ) -> Result<Vec<Vec<f64>>> {
        let dense = Map::of(self.tensors, &module(self.body, layer, "attn.qkv"))?;
        let dim = self.body.dim(layer);
        let stream = self.kept.stream(dim);
        // A row of the dense projection over the channels that are left, and its bias.
        let row = |row: usize| -> Vec<f64> {
            let weight = stream.iter().map(|channel| dense.weight[row * dim + channel]);
            weight.chain([dense.bias[row]]).collect()
        };
        let starts = bounds(&attn.qk_dims);
        let mut out = Vec::new();
        for head in &kept.heads {
            let all: Vec<usize> = (starts[head.index]..starts[head.index + 1]).collect();
            let keys: Vec<Vec<f64>> = all.iter().map(|key| row(attn.qk_width() + key)).collect();
            let queries: Vec<Vec<f64>> = all.iter().map(|query| row(*query)).collect();
            let left: Vec<usize> = head.qk.iter().map(|query| query - all[0]).collect();
            out.extend(solve(self.settings.damping, &queries, &keys, &left, second));
        }
        Ok(out)
    }
}

/// What a module of a layer's core is called.
fn module(body: Transformer<'_>, layer: usize, part: &str) -> String {
    let name = body.core(layer).map(|core| body.core_name(core));
    format!("{}.{part}", name.unwrap_or_default())
}

fn network(sliced: &Sliced) -> Result<Network> {
    Ok(Network::new(
        &sliced.spec,
        &sliced.tensors,
        "the pruned model",
        &Device::flex(),
    )?)
}

/// The sum of the squares of a stream around each token's mean: what the next norm divides by.
pub(super) fn spread(x: &Tensor<3>) -> f64 {
    let centred = x.clone() - x.clone().mean_dim(2);
    f64::from(centred.square().sum().into_scalar::<f32>())
}

/// Some channels of a stream `[batch, tokens, dim]`.
fn select(x: Tensor<3>, channels: &[usize]) -> Tensor<3> {
    if channels.len() == x.dims()[2] {
        return x;
    }
    let channels: Vec<i64> = channels.iter().map(|&channel| channel as i64).collect();
    let channels = Tensor::<1, Int>::from_data(channels.as_slice(), &x.device());
    x.select(2, channels)
}
