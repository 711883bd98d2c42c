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
//! | a sub-layer or a block | its mean is added to the bias before it |
//! | channels of the stream, rows of `proj` and `fc2` | nothing |
//!
//! Blocks are walked in order; the streams of all images lie in a temporary file between two of them, so memory depends on a batch alone.

use burn::tensor::{Device, Int, Tensor};
use serde::Serialize;
use vitesse_model::network::{Ctx, Network, Trace};
use vitesse_model::spec::{AttentionSpec, NetworkSpec, VitSpec};
use vitesse_model::{ModelSpec, Site, Tensor as Stored, Tensors};
use vitesse_words::counted;

use super::halves::Half;
use super::kept::{Kept, KeptAttention};
use super::moments::{Map, Moments};
use super::selection::Selection;
use super::slice::{Sliced, slice};
use super::streams::Streams;
use super::units::{Kind, bounds, unshared};
use crate::linalg::{Cholesky, add, dot};
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
    enough(walk.small(), walk.streams[0].images())?;
    for layer in 0..walk.vit.layers.len() {
        between(layer)?;
        walk.block(layer)?;
    }
    let Walk { sliced, fits, .. } = walk;
    Ok(Corrected { sliced, fits })
}

/// Refuses so few images that they have fewer tokens than twice what the widest projection of `vit` reads: least squares would learn
/// them by heart.
///
/// # Errors
/// A sentence that says how many it takes.
pub fn enough(vit: &VitSpec, images: usize) -> Result<()> {
    let layers = 0..vit.layers.len();
    let inputs =
        layers.flat_map(|layer| Half::BOTH.map(|half| half.of(vit, layer).map_or(0, |(inputs, _)| inputs)));
    let widest = inputs.max().unwrap_or(0);
    let each = (vit.patches() + vit.prefix.len()).max(1);
    if images * each >= 2 * widest {
        return Ok(());
    }
    Err(Error::Unsuited(format!(
        "{} ({}) cannot tell what a projection needs that reads {widest} numbers: it takes at least twice as many tokens; give at least {}",
        counted(images, "calibration image"),
        counted(images * each, "token"),
        counted((2 * widest).div_ceil(each), "image")
    )))
}

struct Walk<'a> {
    vit: &'a VitSpec,
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
    /// The projection that wrote last.
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
        let vit = unshared(spec)?;
        let sliced = slice(spec, tensors, selection)?;
        Ok(Walk {
            vit,
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
        self.differ = self.kept.embed.len() < self.vit.embed_dim;
        Ok(())
    }

    fn small(&self) -> &VitSpec {
        match &self.sliced.spec.network {
            NetworkSpec::Vit(vit) => vit,
            // What was sliced from a vision transformer is one.
            _ => self.vit,
        }
    }

    fn block(&mut self, layer: usize) -> Result<()> {
        let to = self.kept.layers.binary_search(&layer).ok();
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
        let there = Half::BOTH.map(|half| half.of(self.vit, layer).is_some());
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
        let dense_inputs = half.of(self.vit, layer).map_or(0, |(inputs, _)| inputs);
        let (inputs, out_idx) = half
            .of(self.small(), to)
            .map_or((0, None), |(inputs, idx)| (inputs, idx.map(<[usize]>::to_vec)));
        let module = format!(
            "{}.{}",
            self.small().core_name(self.small().layers[to].core),
            half.projection()
        );
        self.differ |= inputs < dense_inputs;
        if self.differ {
            let channels: Vec<usize> = match &out_idx {
                Some(idx) => idx.iter().map(|&channel| self.kept.embed[channel]).collect(),
                None => self.kept.embed.clone(),
            };
            let mut moments = Moments::new(inputs, channels.len());
            let mut energy = 0.0;
            let sites = [half.sites()[0], half.stream()[0]].map(|site| (site, Some(to)));
            for batch in 0..targets.len() {
                let mut ctx = Ctx::tracing(Trace::pairs(sites));
                self.pruned.block(to, self.streams[1].get(batch)?, &mut ctx)?;
                let target = targets.get(batch)?;
                energy += spread(&target) / targets.tokens() as f64;
                if let [Some(x), Some(before)] = sites.map(|(site, to)| ctx.trace.tokens(site, to)) {
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
                module: self.source(half, layer),
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

    /// What a projection is called in the source.
    fn source(&self, half: Half, layer: usize) -> String {
        format!(
            "{}.{}",
            self.vit.core_name(self.vit.layers[layer].core),
            half.projection()
        )
    }

    /// The mean of what a half that is gone would have to add goes to what wrote the stream last.
    fn leave(
        &mut self,
        half: Half,
        (layer, to): (usize, Option<usize>),
        targets: &mut Streams,
    ) -> Result<()> {
        self.differ = true;
        // Where this block's own attention stays, the stream before the perceptron is inside the pruned block.
        let inside = to.filter(|_| self.last.as_ref().is_some_and(|last| last.layer == layer));
        let mut moments = Moments::new(self.kept.embed.len(), 0);
        let mut energy = 0.0;
        for batch in 0..targets.len() {
            let mut before = self.streams[1].get(batch)?;
            if let Some(to) = inside {
                let mut ctx = Ctx::tracing(Trace::pairs([(Site::Mid, Some(to))]));
                self.pruned.block(to, before.clone(), &mut ctx)?;
                before = ctx.trace.tokens(Site::Mid, Some(to)).unwrap_or(before);
            }
            let target = targets.get(batch)?;
            energy += spread(&target) / targets.tokens() as f64;
            moments.see(select(target, &self.kept.embed) - before);
        }
        let mut mean = moments.seen();
        let variance: f64 = moments.covariance().iter().step_by(mean.len() + 1).sum();
        let square = |mean: &[f64]| mean.iter().map(|mean| mean * mean).sum::<f64>();
        let whole = variance + square(&mean);
        match &self.last {
            // The norm after the embedding would change it.
            None if self.vit.pre_norm => mean.fill(0.0),
            Some(Written {
                out_idx: Some(idx), ..
            }) => {
                for (channel, mean) in mean.iter_mut().enumerate() {
                    if idx.binary_search(&channel).is_err() {
                        *mean = 0.0;
                    }
                }
            }
            _ => {}
        }
        self.fits.push(Fit {
            module: self.source(half, layer),
            cut: whole / energy.max(f64::MIN_POSITIVE),
            corrected: (whole - square(&mean)) / energy.max(f64::MIN_POSITIVE),
        });
        self.add_before(&mean)?;
        self.pruned = network(&self.sliced)?;
        if inside.is_none() {
            let added: Vec<f32> = mean.iter().map(|mean| *mean as f32).collect();
            let added = Tensor::<1>::from_data(added.as_slice(), &Device::flex()).reshape([1, 1, mean.len()]);
            for batch in 0..self.streams[1].len() {
                let x = self.streams[1].get(batch)? + added.clone();
                self.streams[1].put(batch, &x)?;
            }
        }
        Ok(())
    }

    /// Adds to the stream, for every token, before the next half.
    fn add_before(&mut self, mean: &[f64]) -> Result<()> {
        let tensors = &mut self.sliced.tensors;
        let Some(last) = &self.last else {
            let prefix = ["cls_token", "dist_token", "reg_token"];
            let names = prefix.into_iter().filter(|_| !self.vit.embed_prefix);
            for name in names.chain(["pos_embed"]) {
                add_to(tensors, name, mean)?;
            }
            return Ok(());
        };
        let written: Vec<f64> = match &last.out_idx {
            Some(idx) => idx.iter().map(|&channel| mean[channel]).collect(),
            None => mean.to_vec(),
        };
        add_to(tensors, &format!("{}.bias", last.module), &written)
    }

    /// Solves the queries of heads that lost dimensions of queries and keys: `A·q` in the place of `q`, with the least mean of
    /// `(q·k − (A·q)·k′)²` over the keys `k` there were and those `k′` that are left.
    fn queries(&mut self, layer: usize, to: usize) -> Result<()> {
        let core = self.vit.layers[layer].core;
        let kept = self.kept.cores.get(core).and_then(|core| core.attn.clone());
        let (Some(kept), Some(attn)) = (kept, self.vit.block(layer).and_then(|block| block.attn.as_ref()))
        else {
            return Ok(());
        };
        let starts = bounds(&attn.qk_dims);
        let whole = |queries: &[usize]| {
            let head = starts.partition_point(|start| *start <= queries[0]) - 1;
            (head, queries.len() == attn.qk_dims[head])
        };
        if kept.heads.iter().all(|head| whole(&head.qk).1) {
            return Ok(());
        }
        self.differ = true;
        let embed = self.kept.embed.len();
        let mut moments = Moments::new(embed, 0);
        for batch in 0..self.streams[1].len() {
            let mut ctx = Ctx::tracing(Trace::pairs([(Site::AttnIn, Some(to))]));
            self.pruned.block(to, self.streams[1].get(batch)?, &mut ctx)?;
            if let Some(x) = ctx.trace.tokens(Site::AttnIn, Some(to)) {
                moments.see(x);
            }
        }
        let solved = self.solve_queries(layer, attn, &kept, &moments.second(), |head| whole(head).0)?;
        let module = format!(
            "{}.attn.qkv",
            self.small().core_name(self.small().layers[to].core)
        );
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
        head_of: impl Fn(&[usize]) -> usize,
    ) -> Result<Vec<Vec<f64>>> {
        let module = format!("{}.attn.qkv", self.vit.core_name(self.vit.layers[layer].core));
        let dense = Map::of(self.tensors, &module)?;
        let dim = self.vit.embed_dim;
        // A row of the dense projection over the channels that are left, and its bias.
        let row = |row: usize| -> Vec<f64> {
            let weight = self
                .kept
                .embed
                .iter()
                .map(|channel| dense.weight[row * dim + channel]);
            weight.chain([dense.bias[row]]).collect()
        };
        let starts = bounds(&attn.qk_dims);
        let mut out = Vec::new();
        for head in &kept.heads {
            let all: Vec<usize> = {
                let head = head_of(&head.qk);
                (starts[head]..starts[head + 1]).collect()
            };
            let keys: Vec<Vec<f64>> = all.iter().map(|key| row(attn.qk_width() + key)).collect();
            let queries: Vec<Vec<f64>> = all.iter().map(|query| row(*query)).collect();
            let left: Vec<usize> = head.qk.iter().map(|query| query - all[0]).collect();
            out.extend(self.settings.queries(&queries, &keys, &left, second));
        }
        Ok(out)
    }
}

impl Settings {
    /// New queries for the keys `left` of a head: rows of `queries` and `keys` are maps `[dim + 1]`, bias last; `second` is the second
    /// moment `[dim + 1, dim + 1]` of what they read, 1 last.
    fn queries(
        self,
        queries: &[Vec<f64>],
        keys: &[Vec<f64>],
        left: &[usize],
        second: &[f64],
    ) -> Vec<Vec<f64>> {
        let width = keys.first().map_or(0, Vec::len).max(1);
        let seen: Vec<Vec<f64>> = keys
            .iter()
            .map(|key| second.chunks(width).map(|line| dot(line, key)).collect())
            .collect();
        let product = |a: usize, b: usize| dot(&keys[a], &seen[b]);
        let n = left.len();
        let mean = left.iter().map(|&key| product(key, key)).sum::<f64>() / n.max(1) as f64;
        let lambda = self.damping * mean;
        let mut among = vec![0.0; n * n];
        for (i, &a) in left.iter().enumerate() {
            for (j, &b) in left.iter().enumerate() {
                among[i * n + j] = product(a, b) + if i == j { lambda } else { 0.0 };
            }
        }
        let kept: Vec<Vec<f64>> = left.iter().map(|&query| queries[query].clone()).collect();
        let Some(cholesky) = Cholesky::new(among, n) else {
            return kept;
        };
        // Row by row of the dense head: what each old query gives to the new ones.
        let mut given: Vec<f64> = (0..keys.len())
            .flat_map(|old| left.iter().map(move |&new| (old, new)))
            .map(|(old, new)| product(new, old) + if old == new { lambda } else { 0.0 })
            .collect();
        cholesky.solve(&mut given);
        let mut out = vec![vec![0.0; width]; n];
        for (old, given) in queries.iter().zip(given.chunks(n.max(1))) {
            for (out, given) in out.iter_mut().zip(given) {
                add(out, *given, old);
            }
        }
        out
    }
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

/// Replaces a module's weight, and its bias if it has one.
fn store(tensors: &mut Tensors, module: &str, map: &Map) -> Result<()> {
    for (name, values) in [("weight", &map.weight), ("bias", &map.bias)] {
        let name = format!("{module}.{name}");
        if tensors.contains(&name) {
            let before = tensors.get(&name)?;
            let values = values.iter().map(|value| *value as f32).collect();
            let after = Stored::rounded(before.dtype(), before.shape(), values)?;
            tensors.insert(name, after);
        }
    }
    Ok(())
}

/// Adds to every row of a tensor, if there is one of this name.
fn add_to(tensors: &mut Tensors, name: &str, added: &[f64]) -> Result<()> {
    if !tensors.contains(name) {
        return Ok(());
    }
    let tensor = tensors.get(name)?;
    let mut values = tensor.to_f32().into_owned();
    for row in values.chunks_mut(added.len().max(1)) {
        row.iter_mut()
            .zip(added)
            .for_each(|(value, added)| *value = (f64::from(*value) + added) as f32);
    }
    let after = Stored::rounded(tensor.dtype(), tensor.shape(), values)?;
    tensors.insert(name, after);
    Ok(())
}
