//! Blocks: attention and the perceptron as steps.

use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::{Panels, Real, panels_of};
use vitesse_model::site::Site;
use vitesse_model::spec::{AttentionSpec, MlpSpec, Windows};

use super::Compiler;
use super::ops::folded;
use super::projection::Shape;
use crate::Result;
use crate::member::Operand;
use crate::profile::Stage;
use crate::steps::{
    Add, Attend, AttendInWindows, Blank, ByRows, HIDDEN_BYTES, Head, Hidden, KeysValues, Meet, Norm, Queries,
    gelu,
};
use crate::weights::{Outputs, rows};

impl<T: Real> Compiler<'_, T> {
    /// A layer, which attends in `windows` where there are some; after the keys and values of the last one with attention,
    /// only as many tokens go on as are `read`.
    pub(super) fn block(
        &mut self,
        layer: usize,
        read: Option<usize>,
        windows: Option<&Windows>,
    ) -> Result<()> {
        let Some(block) = self.body.block(layer) else {
            return Ok(());
        };
        self.scaled(Stage::Qkv, Site::BlockIn, layer)?;
        self.fewer(Site::BlockIn, layer, None)?;
        self.hold(Stage::Qkv, Site::BlockIn, layer);
        let mut all = None;
        if let Some(attn) = &block.attn {
            all = Some(self.attention(layer, attn, read, windows)?);
        }
        self.scaled(Stage::Fc1, Site::Mid, layer)?;
        self.fewer(Site::Mid, layer, all.as_ref())?;
        self.local(layer, windows)?;
        self.hold(Stage::Fc1, Site::Mid, layer);
        if let Some(mlp) = &block.mlp {
            self.mlp(layer, mlp)?;
        }
        self.station(Stage::Fc2, Site::BlockOut, layer)
    }

    /// The attention of a layer; where its heads' columns lie.
    fn attention(
        &mut self,
        layer: usize,
        spec: &AttentionSpec,
        read: Option<usize>,
        windows: Option<&Windows>,
    ) -> Result<Arc<[Head]>> {
        let stream = panels_of([self.body.dim(layer)]);
        let norm = self.norm_at(Site::AttnIn, Some(layer))?;
        self.push(Stage::Qkv, Norm(norm));
        self.kept(Stage::Qkv, (Site::AttnIn, layer), Some(Operand::Input), &stream)?;
        if let Some(windows) = windows.filter(|windows| windows.pads()) {
            let tokens = windows.tokens().into_iter().enumerate();
            let tokens = tokens
                .filter(|(_, token)| token.is_none())
                .map(|(row, _)| row)
                .collect();
            self.push(Stage::Qkv, Blank { tokens });
        }

        let columns = qkv_columns(spec);
        let outputs = self.qkv_outputs(layer, spec, &columns)?;
        let shape = Shape {
            columns: &columns,
            depths: &stream,
            rows: None,
        };
        let qkv = Arc::new(self.projection(Site::Qkv, layer, &shape, outputs)?);
        let (heads, q_panels, v_panels) = heads::<T>(spec);
        self.push(
            Stage::Qkv,
            KeysValues {
                qkv: Arc::clone(&qkv),
                heads: Arc::clone(&heads),
                q_panels,
                area: windows.map_or(usize::MAX, Windows::area),
            },
        );
        if let Some(read) = read {
            self.cut(Stage::Qkv, read);
        }
        let panels = q_panels;
        self.push(Stage::Qkv, Queries { qkv, panels });
        self.show_class(layer, &heads);
        self.push(Stage::Wait, Meet);
        self.attentions(layer, &heads)?;
        let (panels, all) = (v_panels, Arc::clone(&heads));
        match windows {
            _ if self.changes_maps(layer) => {
                let attend = self.mixed(layer, spec, windows, (heads, panels))?;
                self.push(Stage::Attention, attend);
            }
            None => {
                let by_size = self.counts_by_size;
                let attend = Attend {
                    heads,
                    panels,
                    by_size,
                };
                self.push(Stage::Attention, attend);
            }
            Some(windows) => {
                let bias = self.window_bias(layer, windows, spec.num_heads())?;
                self.push(Stage::Attention, AttendInWindows { heads, panels, bias });
            }
        }

        let depths = panels_of(spec.v_dims.iter().copied());
        let input = Operand::Input;
        self.kept(Stage::Proj, (Site::AttnHeads, layer), Some(input), &depths)?;
        let out_idx = spec.out_idx.as_deref();
        let (proj, out) = (Site::Proj, Site::AttnOut);
        let add = self.branch(layer, (proj, out), input, &depths, out_idx)?;
        self.push(Stage::Proj, add);
        self.kept(Stage::Proj, (out, layer), None, &stream)?;
        Ok(all)
    }

    /// What follows the product with the queries', keys' and values' weights.
    fn qkv_outputs(
        &mut self,
        layer: usize,
        spec: &AttentionSpec,
        columns: &[Range<usize>],
    ) -> Result<Outputs> {
        let (qk, at) = (spec.qk_width(), Some(layer));
        let after = self.fold(Site::AttnQkv, at)?;
        let (scale, shift) = folded(after.as_ref());
        // Probabilities sum to 1, so what scales and shifts a head's result can as well do so to its values. Where something changes
        // them they do not, and it stays behind.
        let heads = match self.changes_maps(layer) {
            true => None,
            false => self.fold(Site::AttnHeads, at)?,
        };
        let (heads_scale, heads_shift) = folded(heads.as_ref());
        let factor = |n: usize| match n {
            n if n < qk => spec.scale as f32,
            n if n < 2 * qk => 1.0,
            n => heads_scale(n - 2 * qk),
        };
        let extra = |n: usize| if n < 2 * qk { 0.0 } else { heads_shift(n - 2 * qk) };
        let bias = self.bias(&self.name(Site::Qkv, layer)?)?;
        Ok(Outputs::new(
            columns,
            |n| scale(n) * factor(n),
            |n| (bias(n) * scale(n) + shift(n)) * factor(n) + extra(n),
        ))
    }

    fn mlp(&mut self, layer: usize, spec: &MlpSpec) -> Result<()> {
        let at = Some(layer);
        let outside = std::mem::take(&mut self.steps);
        let (stream, hidden) = (panels_of([self.body.dim(layer)]), panels_of([spec.hidden]));
        let norm = self.norm_at(Site::MlpIn, at)?;
        self.push(Stage::Fc1, Norm(norm));
        self.kept(Stage::Fc1, (Site::MlpIn, layer), Some(Operand::Input), &stream)?;

        let op = self.fold(Site::MlpFc1, at)?;
        let (scale, shift) = folded(op.as_ref());
        let bias = self.bias(&self.name(Site::Fc1, layer)?)?;
        let outputs = Outputs::new(&hidden, &scale, |n| bias(n) * scale(n) + shift(n));
        let activation = self.sites.activation(layer);
        // Only a GELU is fused to the product with what follows it.
        let after = match gelu(activation) {
            Some(_) => self.fold(Site::MlpHidden, at)?,
            None => None,
        };
        let after = after.map(|op| {
            let (scale, shift) = folded(Some(&op));
            (rows(&hidden, scale), rows(&hidden, shift))
        });
        let shape = Shape {
            columns: &hidden,
            depths: &stream,
            rows: None,
        };
        let product = self.projection(Site::Fc1, layer, &shape, outputs)?;
        self.push(
            Stage::Fc1,
            Hidden {
                product,
                activation,
                after,
            },
        );
        let operand = Operand::Hidden;
        self.kept(Stage::Fc1, (Site::MlpHidden, layer), Some(operand), &hidden)?;

        let out_idx = spec.out_idx.as_deref();
        let (fc2, out) = (Site::Fc2, Site::MlpOut);
        let add = self.branch(layer, (fc2, out), operand, &hidden, out_idx)?;
        self.push(Stage::Fc2, add);
        self.kept(Stage::Fc2, (out, layer), None, &stream)?;
        let steps = std::mem::replace(&mut self.steps, outside);
        let most = HIDDEN_BYTES / (hidden.len() * 32 * size_of::<T>());
        self.push(Stage::Fc2, ByRows { most, steps });
        Ok(())
    }

    /// The projection at the sites' first into the residual stream, with what is folded at the second after it.
    fn branch(
        &mut self,
        layer: usize,
        (projection, out): (Site, Site),
        operand: Operand,
        depths: &[Range<usize>],
        out_idx: Option<&[usize]>,
    ) -> Result<Add<T>> {
        let dim = self.body.dim(layer);
        let apart = self.keeps(out, layer);
        let all = out_idx.is_some() && self.shifts_all(layer, out)?;
        let op = self.fold(out, Some(layer))?;
        let (scale, shift) = folded(op.as_ref());
        let bias = self.bias(&self.name(projection, layer)?)?;
        let (columns, outputs, into) = match out_idx {
            None => {
                let columns = panels_of([dim]);
                let outputs = Outputs::new(&columns, &scale, |n| bias(n) * scale(n) + shift(n));
                (columns, outputs, None)
            }
            Some(idx) if all => {
                let columns = panels_of([dim]);
                let own = |n: usize| idx.binary_search(&n).map_or(0.0, &bias);
                let outputs = Outputs::new(&columns, &scale, |n| own(n) * scale(n) + shift(n));
                (columns, outputs, None)
            }
            Some(idx) => {
                let columns = panels_of([idx.len()]);
                let own = |n: usize| bias(n) * scale(idx[n]) + shift(idx[n]);
                let outputs = Outputs::new(&columns, |n| scale(idx[n]), own);
                (columns, outputs, Some(idx.to_vec()))
            }
        };
        let shape = Shape {
            columns: &columns,
            depths,
            rows: out_idx.filter(|_| all).map(|idx| (idx, dim)),
        };
        Ok(Add {
            name: projection.name(),
            operand,
            product: self.projection(projection, layer, &shape, outputs)?,
            into,
            apart,
        })
    }

    /// Whether, in any layer that shares this one's core, the op after a branch that writes only some channels adds something
    /// to the others too, so that the branch must write them all.
    fn shifts_all(&self, layer: usize, site: Site) -> Result<bool> {
        let core = self.body.core(layer);
        for i in 0..self.sites.depth() {
            if self.body.core(i) == core
                && let Some((op, _)) = self.leading(site, Some(i))?
                && op.shift.iter().any(|&shift| shift != 0.0)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The panels of queries, keys and values: every head begins new ones.
fn qkv_columns(spec: &AttentionSpec) -> Vec<Range<usize>> {
    let widths = spec.qk_dims.iter().chain(&spec.qk_dims).chain(&spec.v_dims);
    panels_of(widths.copied())
}

/// Where the heads' columns lie, and how many panels queries and results have.
fn heads<T: Real>(spec: &AttentionSpec) -> (Arc<[Head]>, usize, usize) {
    let panels = |widths: &[usize]| -> usize { widths.iter().map(|&width| Panels::<T>::needed(width)).sum() };
    let (q_panels, v_panels) = (panels(&spec.qk_dims), panels(&spec.v_dims));
    let (mut q_at, mut v_at) = (0, 0);
    let heads = spec.qk_dims.iter().zip(&spec.v_dims).map(|(&qk, &v)| {
        let head = Head {
            qk,
            v,
            q_at,
            k_at: q_at,
            v_at: q_panels + v_at,
            out_at: v_at,
        };
        q_at += Panels::<T>::needed(qk);
        v_at += Panels::<T>::needed(v);
        head
    });
    (heads.collect(), q_panels, v_panels)
}
