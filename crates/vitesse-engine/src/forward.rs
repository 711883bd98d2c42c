//! One image through the plan, by one thread or by several together.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use vitesse_kernels::{
    Attention, Barrier, Isa, Packed, Panels, Quantized, Real, Segment, layer_norm, linear, linear_add,
    linear_gelu, patches, quantize, scale_shift,
};
use vitesse_model::site::Site;
use vitesse_model::spec::Pool;

use crate::kept::{Scratch, Step};
use crate::plan::{AffineRows, AttentionCore, AttentionLayer, Matrix, MlpCore, MlpLayer, Plan};
use crate::profile::{Clock, Stage};

/// How many bytes the hidden rows of a perceptron may take: they should stay in the second cache with the weights'
/// panel that is being used.
const HIDDEN_BYTES: usize = 1024 << 10;

/// Keys and values that one thread computed, by head, packed for everyone to use.
#[derive(Debug)]
pub(crate) struct KeysValues<T: Real> {
    heads: Vec<(Packed<T>, Packed<T>)>,
}

/// What all threads see of one. Layers use the two in turn, so that one meeting a layer is enough: whoever writes the one
/// knows that everyone has done with it, because everyone has come to the meeting of the other since.
#[derive(Debug)]
pub(crate) struct Shared<T: Real> {
    turns: [RwLock<KeysValues<T>>; 2],
    /// The sum of its tokens, for models that classify the mean.
    sum: RwLock<Vec<f32>>,
}

impl<T: Real> Shared<T> {
    pub(crate) fn new(plan: &Plan<T>) -> Self {
        let heads = plan
            .cores
            .iter()
            .flat_map(|core| &core.attn)
            .map(|attn| attn.heads.len())
            .max();
        let room = || {
            RwLock::new(KeysValues {
                heads: (0..heads.unwrap_or(0))
                    .map(|_| (Packed::zeros(0, 0), Packed::zeros(0, 0)))
                    .collect(),
            })
        };
        Shared {
            turns: [room(), room()],
            sum: RwLock::new(vec![0.0; plan.dim]),
        }
    }
}

/// The threads that compute one image together, and which of them this is.
pub(crate) struct Team<'a, T: Real> {
    pub(crate) index: usize,
    pub(crate) members: &'a [Shared<T>],
    pub(crate) barrier: Option<&'a Barrier>,
}

impl<T: Real> Team<'_, T> {
    fn wait(&self) {
        if let Some(barrier) = self.barrier {
            barrier.wait();
        }
    }

    fn own(&self) -> &Shared<T> {
        &self.members[self.index]
    }

    /// The tokens that this one computes.
    fn tokens(&self, tokens: usize) -> Range<usize> {
        let count = self.members.len();
        let at = |i: usize| i * (tokens / count) + i.min(tokens % count);
        at(self.index)..at(self.index + 1)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// The memory of one thread.
#[derive(Debug)]
pub(crate) struct Member<T: Real> {
    /// The residual stream of its tokens.
    x: Panels<f32>,
    /// Normed tokens, or heads' results, or patches: what goes into a product.
    input: Panels<T>,
    q: Panels<T>,
    kv: Panels<T>,
    hidden: Panels<T>,
    quantized: Quantized,
    scratch: Scratch<T>,
    attention: Attention<T>,
    logits: Panels<f32>,
    /// Which of the two places for keys and values is next.
    turn: usize,
    /// Results of the images it has finished, heads one after the other.
    pub(crate) results: Vec<f32>,
    pub(crate) clock: Clock,
}

impl<T: Real> Member<T> {
    pub(crate) fn new() -> Self {
        Member {
            x: Panels::zeros(0, 0),
            input: Panels::zeros(0, 0),
            q: Panels::zeros(0, 0),
            kv: Panels::zeros(0, 0),
            hidden: Panels::zeros(0, 0),
            quantized: Quantized::zeros(0, 0),
            scratch: Scratch::new(),
            attention: Attention::new(1),
            logits: Panels::zeros(0, 0),
            turn: 0,
            results: Vec::new(),
            clock: Clock::new(),
        }
    }

    /// Before a run of images of one team.
    pub(crate) fn begin(&mut self) {
        self.turn = 0;
    }

    /// This member's part of an image `[channels, height, width]`. The first member appends the result.
    pub(crate) fn forward(&mut self, isa: Isa, plan: &Plan<T>, team: &Team<'_, T>, image: &[f32]) {
        let tokens = team.tokens(plan.tokens);
        // How many of this member's tokens go on after the last keys and values.
        let read = plan.read.clamp(tokens.start, tokens.end) - tokens.start;
        self.embed(isa, plan, &tokens, image);
        self.clock.mark(0, Stage::Embed);
        let mut live = if plan.last_attention.is_none() {
            read
        } else {
            tokens.len()
        };
        for (i, layer) in plan.layers.iter().enumerate() {
            let core = &plan.cores[layer.core];
            if let Some(prompts) = &layer.prompts {
                self.replace_prompts(plan, &tokens, prompts);
            }
            if let Some((scale, shift)) = &layer.block_in {
                scale_shift(isa, &mut self.x, scale, shift);
            }
            if layer.holds[0] {
                self.scratch.hold(Site::BlockIn, &self.x);
            }
            if let (Some(layer), Some(core)) = (&layer.attn, &core.attn) {
                self.keys_values(isa, plan, team, layer, core);
                if plan.last_attention == Some(i) {
                    live = read;
                }
                self.queries(isa, layer, core, live);
                self.clock.mark(i, Stage::Qkv);
                team.wait();
                self.clock.mark(i, Stage::Wait);
                self.attend(isa, team, core, live);
                self.clock.mark(i, Stage::Attention);
                self.scratch.pass(isa, &layer.kept_heads, &mut self.input);
                self.scratch
                    .widen(isa, core.proj_beside.as_ref(), &mut self.input);
                let into = layer.into.as_deref();
                self.project(isa, &core.proj, &layer.proj, into, live, &layer.kept_out);
                self.clock.mark(i, Stage::Proj);
            }
            if let Some((scale, shift)) = &layer.mid {
                scale_shift(isa, &mut self.x, scale, shift);
            }
            if layer.holds[1] {
                self.scratch.hold(Site::Mid, &self.x);
            }
            if let (Some(layer), Some(core)) = (&layer.mlp, &core.mlp) {
                self.mlp(isa, i, layer, core, live);
            }
            if let Some((scale, shift)) = &layer.block_out {
                scale_shift(isa, &mut self.x, scale, shift);
            }
        }
        self.classify(isa, plan, team, &tokens, live);
        self.clock.mark(plan.layers.len(), Stage::Head);
    }

    fn embed(&mut self, isa: Isa, plan: &Plan<T>, tokens: &Range<usize>, image: &[f32]) {
        let panels = Panels::<f32>::needed(plan.dim);
        self.x.reshape(tokens.len(), panels);
        for panel in 0..panels {
            self.x
                .panel_mut(panel)
                .copy_from_slice(&plan.start.panel(panel)[tokens.clone()]);
        }
        let [channels, _, _] = plan.img_size;
        let columns = channels * plan.patch_size * plan.patch_size;
        let first = tokens.start.max(plan.prefix);
        // A few patches at a time, so that they never leave the cache.
        for part in parts(first..tokens.end, HIDDEN_BYTES / (columns * size_of::<T>())) {
            self.input.reshape(part.len(), Panels::<T>::needed(columns));
            let range = part.start - plan.prefix..part.end - plan.prefix;
            patches(isa, image, plan.img_size, plan.patch_size, range, &mut self.input);
            let at = part.start - tokens.start;
            linear_add(
                isa,
                &self.input,
                0..part.len(),
                plan.patch.linear(),
                None,
                &mut self.x,
                at,
            );
        }
    }

    /// Puts prompts in the place of the rows of those before, as far as they are this member's.
    fn replace_prompts(&mut self, plan: &Plan<T>, tokens: &Range<usize>, prompts: &Panels<f32>) {
        let first = plan.prefix - prompts.rows();
        for row in first.max(tokens.start)..plan.prefix.min(tokens.end) {
            for panel in 0..prompts.panels() {
                self.x.panel_mut(panel)[row - tokens.start] = prompts.panel(panel)[row - first];
            }
        }
    }

    fn keys_values(
        &mut self,
        isa: Isa,
        plan: &Plan<T>,
        team: &Team<'_, T>,
        layer: &AttentionLayer<T>,
        core: &AttentionCore<T>,
    ) {
        let rows = self.x.rows();
        self.input.reshape(rows, Panels::<T>::needed(plan.dim));
        layer_norm(isa, &self.x, 0..rows, layer.norm.norm(), &mut self.input);
        self.scratch.pass(isa, &layer.kept_in, &mut self.input);
        self.scratch.widen(isa, core.qkv_beside.as_ref(), &mut self.input);
        if let Matrix::Int8(_) = core.qkv {
            self.quantize(isa, 0..rows);
        }
        let panels = core.q_panels..core.qkv.panels();
        self.kv.reshape(rows, panels.len());
        match &core.qkv {
            Matrix::Real(w) => linear(isa, &self.input, 0..rows, layer.qkv.of(w), panels, &mut self.kv),
            Matrix::Int8(w) => linear(
                isa,
                &self.quantized,
                0..rows,
                layer.qkv.of(w),
                panels,
                &mut self.kv,
            ),
        }
        let mut place = team.own().turns[self.turn]
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for (head, (keys, values)) in core.heads.iter().zip(&mut place.heads) {
            T::pack_keys(isa, &self.kv, head.k_at, head.qk, keys);
            T::pack_values(&self.kv, head.v_at, head.v, values);
        }
    }

    fn queries(&mut self, isa: Isa, layer: &AttentionLayer<T>, core: &AttentionCore<T>, live: usize) {
        self.q.reshape(live, core.q_panels);
        let panels = 0..core.q_panels;
        match &core.qkv {
            Matrix::Real(w) => linear(isa, &self.input, 0..live, layer.qkv.of(w), panels, &mut self.q),
            Matrix::Int8(w) => linear(
                isa,
                &self.quantized,
                0..live,
                layer.qkv.of(w),
                panels,
                &mut self.q,
            ),
        }
    }

    /// The heads' results, into `input`.
    fn attend(&mut self, isa: Isa, team: &Team<'_, T>, core: &AttentionCore<T>, live: usize) {
        let turn = self.turn;
        self.turn ^= 1;
        self.input.reshape(live, core.v_panels);
        if live == 0 {
            return;
        }
        // All of them are only read between this meeting and the next.
        const MOST: usize = crate::engine::MOST_THREADS;
        let guards: [_; MOST] =
            std::array::from_fn(|i| team.members.get(i).map(|member| read(&member.turns[turn])));
        for (h, head) in core.heads.iter().enumerate() {
            let segments = |i: usize| -> Option<Segment<'_, T>> {
                let (keys, values) = &guards.get(i)?.as_ref()?.heads[h];
                Some(Segment { keys, values })
            };
            self.attention.head(
                isa,
                &self.q,
                head.q_at,
                0..live,
                &segments,
                &mut self.input,
                head.out_at,
            );
        }
    }

    /// Adds the product of the first `live` rows of `input` to the residual stream, changed by what stays behind it.
    fn project(
        &mut self,
        isa: Isa,
        matrix: &Matrix<T>,
        affine: &AffineRows,
        into: Option<&[usize]>,
        live: usize,
        kept: &[Step<T>],
    ) {
        if let Matrix::Int8(_) = matrix {
            self.quantize(isa, 0..live);
        }
        let to = if kept.is_empty() {
            &mut self.x
        } else {
            self.scratch.branch(live, self.x.panels())
        };
        match matrix {
            Matrix::Real(w) => linear_add(isa, &self.input, 0..live, affine.of(w), into, to, 0),
            Matrix::Int8(w) => linear_add(isa, &self.quantized, 0..live, affine.of(w), into, to, 0),
        }
        if !kept.is_empty() {
            self.scratch.run(isa, kept, 0);
            self.scratch.add_branch(&mut self.x, 0);
        }
    }

    fn quantize(&mut self, isa: Isa, rows: Range<usize>) {
        self.quantized
            .reshape(rows.len(), self.input.panels().div_ceil(2));
        quantize(isa, &self.input, rows, &mut self.quantized);
    }

    /// A few rows at a time, so that the hidden ones stay in the cache.
    fn mlp(&mut self, isa: Isa, i: usize, layer: &MlpLayer<T>, core: &MlpCore<T>, live: usize) {
        let hidden = core.fc1.panels();
        let after = layer
            .hidden
            .as_ref()
            .map(|(scale, shift)| (&scale[..], &shift[..]));
        for part in parts(0..live, HIDDEN_BYTES / (hidden * 32 * size_of::<T>())) {
            let rows = part.len();
            self.input.reshape(rows, self.x.panels());
            layer_norm(isa, &self.x, part.clone(), layer.norm.norm(), &mut self.input);
            self.scratch.pass(isa, &layer.kept_in, &mut self.input);
            self.scratch.widen(isa, core.fc1_beside.as_ref(), &mut self.input);
            self.hidden.reshape(rows, hidden);
            match &core.fc1 {
                Matrix::Real(w) => linear_gelu(
                    isa,
                    &self.input,
                    0..rows,
                    layer.fc1.of(w),
                    after,
                    &mut self.hidden,
                ),
                Matrix::Int8(w) => {
                    self.quantize(isa, 0..rows);
                    linear_gelu(
                        isa,
                        &self.quantized,
                        0..rows,
                        layer.fc1.of(w),
                        after,
                        &mut self.hidden,
                    );
                }
            }
            self.scratch.pass(isa, &layer.kept_hidden, &mut self.hidden);
            self.scratch
                .widen(isa, core.fc2_beside.as_ref(), &mut self.hidden);
            self.clock.mark(i, Stage::Fc1);
            if let Matrix::Int8(_) = core.fc2 {
                self.quantized.reshape(rows, self.hidden.panels().div_ceil(2));
                quantize(isa, &self.hidden, 0..rows, &mut self.quantized);
            }
            let (into, kept) = (layer.into.as_deref(), &layer.kept_out);
            let (to, at) = if kept.is_empty() {
                (&mut self.x, part.start)
            } else {
                (self.scratch.branch(rows, self.x.panels()), 0)
            };
            match &core.fc2 {
                Matrix::Real(w) => linear_add(isa, &self.hidden, 0..rows, layer.fc2.of(w), into, to, at),
                Matrix::Int8(w) => linear_add(isa, &self.quantized, 0..rows, layer.fc2.of(w), into, to, at),
            }
            if !kept.is_empty() {
                self.scratch.run(isa, kept, part.start);
                self.scratch.add_branch(&mut self.x, part.start);
            }
            self.clock.mark(i, Stage::Fc2);
        }
    }

    fn classify(&mut self, isa: Isa, plan: &Plan<T>, team: &Team<'_, T>, tokens: &Range<usize>, live: usize) {
        let panels = Panels::<f32>::needed(plan.dim);
        match plan.pool {
            Pool::Token => {
                if team.index > 0 {
                    return;
                }
                self.logits.reshape(live, panels);
                layer_norm(isa, &self.x, 0..live, plan.norm.norm(), &mut self.logits);
            }
            Pool::Avg | Pool::AvgThenNorm => {
                if plan.pool == Pool::Avg {
                    self.logits.reshape(live, panels);
                    layer_norm(isa, &self.x, 0..live, plan.norm.norm(), &mut self.logits);
                    std::mem::swap(&mut self.logits, &mut self.x);
                }
                self.sum_patches(plan, team, tokens);
                if plan.pool == Pool::Avg {
                    std::mem::swap(&mut self.logits, &mut self.x);
                }
                team.wait();
                if team.index == 0 {
                    self.mean(isa, plan, team, panels);
                }
                // No one begins the next image before the sums are read.
                team.wait();
                if team.index > 0 {
                    return;
                }
            }
        }
        // Now `logits` holds the features that the heads read, one row each.
        self.input.reshape(self.logits.rows(), panels);
        for panel in 0..panels {
            for (to, from) in self
                .input
                .panel_mut(panel)
                .iter_mut()
                .zip(self.logits.panel(panel))
            {
                for (to, &from) in to.as_mut().iter_mut().zip(from) {
                    *to = T::from_f32(from);
                }
            }
        }
        if plan.heads.is_empty() {
            let rows = self.logits.rows();
            for row in 0..rows {
                self.results
                    .extend((0..plan.dim).map(|channel| self.logits.at(row, channel)));
            }
            return;
        }
        for (row, head) in plan.heads.iter().enumerate() {
            self.logits.reshape(1, head.panels());
            linear(
                isa,
                &self.input,
                row..row + 1,
                head.linear(),
                0..head.panels(),
                &mut self.logits,
            );
            let rows = (0..head.panels()).flat_map(|panel| self.logits.panel(panel)[0]);
            self.results.extend(rows.take(plan.classes));
        }
    }

    fn sum_patches(&self, plan: &Plan<T>, team: &Team<'_, T>, tokens: &Range<usize>) {
        let mut sum = team.own().sum.write().unwrap_or_else(PoisonError::into_inner);
        for (panel, sums) in sum.chunks_mut(32).enumerate() {
            sums.fill(0.0);
            let skip = plan.prefix.saturating_sub(tokens.start).min(self.x.rows());
            for row in &self.x.panel(panel)[skip..] {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
    }

    /// The mean of all patches, normed where that comes after, into the one row of `logits`.
    fn mean(&mut self, isa: Isa, plan: &Plan<T>, team: &Team<'_, T>, panels: usize) {
        self.x.reshape(1, panels);
        let count = (plan.tokens - plan.prefix) as f32;
        for channel in 0..plan.dim {
            let sum: f32 = team.members.iter().map(|member| read(&member.sum)[channel]).sum();
            self.x.set(0, channel, sum / count);
        }
        self.logits.reshape(1, panels);
        if plan.pool == Pool::AvgThenNorm {
            layer_norm(isa, &self.x, 0..1, plan.norm.norm(), &mut self.logits);
        } else {
            for panel in 0..panels {
                self.logits.panel_mut(panel)[0] = self.x.panel(panel)[0];
            }
        }
    }
}

/// `range` in the fewest parts of at most `most` (and at least 12), as equal as can be.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(most.max(12)).max(1);
    let (start, len) = (range.start, range.len());
    (0..count)
        .map(move |i| start + i * len / count..start + (i + 1) * len / count)
        .filter(|part| !part.is_empty())
}
