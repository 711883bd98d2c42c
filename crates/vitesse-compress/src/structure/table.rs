//! The table of what is cut from which tensor, and what the smaller model's tensors are called: the one place that knows.

use std::collections::BTreeMap;

use vitesse_model::ModelSpec;
use vitesse_model::spec::{Transformer, VitSpec};

use super::cut::Cut;
use super::kept::{Kept, KeptAttention, KeptCore};
use super::units::prunable;
use crate::Result;

/// One tensor of the smaller model.
#[derive(Debug)]
pub(super) struct Piece {
    /// Its name before.
    pub(super) from: String,
    /// Its name after: blocks are counted anew.
    pub(super) to: String,
    /// What is kept of it, axis by axis.
    pub(super) cuts: Vec<Cut>,
}

/// The tensors of what is left of `spec`, whose description is `after`.
pub(super) fn pieces(spec: &ModelSpec, after: &ModelSpec, kept: &Kept) -> Result<Vec<Piece>> {
    let (body, smaller) = (prunable(spec)?, prunable(after)?);
    let shapes = spec.tensors()?.into_iter();
    let mut table = Table {
        axes: shapes.map(|tensor| (tensor.name, tensor.shape.len())).collect(),
        pieces: Vec::new(),
    };
    match body {
        Transformer::Vit(vit) => table.around_vit(spec, vit, &kept.stream(vit.embed_dim)),
        Transformer::Swin(_) => table.around_swin(body),
    }
    for (to, from) in cores(body, &kept.layers).into_iter().enumerate() {
        if let Some(core) = kept.cores.get(from) {
            table.core(
                (body, from),
                core,
                &kept.stream(body.core_dim(from)),
                (smaller, to),
            );
        }
    }
    for (to, &from) in kept.layers.iter().enumerate() {
        let owns = smaller
            .layers()
            .get(to)
            .is_some_and(|layer| layer.norms.is_none());
        let block = smaller.block(to);
        let has = [
            block.is_some_and(|block| block.attn.is_some()),
            block.is_some_and(|block| block.mlp.is_some()),
        ];
        for (norm, has) in [1, 2].into_iter().zip(has) {
            if owns && has {
                let stream = kept.stream(body.dim(from));
                let (from, to) = (body.norm_name(from, norm), smaller.norm_name(to, norm));
                table.module(&from, &to, &[(0, &stream)]);
            }
        }
    }
    Ok(table.pieces)
}

/// The cores that these layers use, in their old order.
pub(super) fn cores(body: Transformer<'_>, layers: &[usize]) -> Vec<usize> {
    let used = |core: &usize| layers.iter().any(|&layer| body.core(layer) == Some(*core));
    (0..body.cores().len()).filter(used).collect()
}

struct Table {
    /// Number of axes of every tensor there is.
    axes: BTreeMap<String, usize>,
    pieces: Vec<Piece>,
}

impl Table {
    /// Adds a tensor, if the model has it.
    fn add(&mut self, from: &str, to: &str, cuts: &[(usize, &[usize])]) {
        if self.axes.contains_key(from) {
            let cut = |&(axis, kept): &(usize, &[usize])| Cut {
                axis,
                kept: kept.to_vec(),
            };
            self.pieces.push(Piece {
                from: from.to_owned(),
                to: to.to_owned(),
                cuts: cuts.iter().map(cut).collect(),
            });
        }
    }

    /// Adds weight and bias of a module; the bias has only the first axis.
    fn module(&mut self, from: &str, to: &str, cuts: &[(usize, &[usize])]) {
        self.add(&format!("{from}.weight"), &format!("{to}.weight"), cuts);
        let rows: Vec<_> = cuts.iter().copied().filter(|(axis, _)| *axis == 0).collect();
        self.add(&format!("{from}.bias"), &format!("{to}.bias"), &rows);
    }

    /// What stands around the blocks of a ViT, whose stream keeps these channels.
    fn around_vit(&mut self, spec: &ModelSpec, vit: &VitSpec, embed: &[usize]) {
        for name in ["cls_token", "reg_token", "pos_embed", "dist_token"] {
            let last = self.axes.get(name).map_or(0, |axes| axes - 1);
            self.add(name, name, &[(last, embed)]);
        }
        if let Some(stem) = spec.sites().embedding() {
            self.module(&stem.name, &stem.name, &[(0, embed)]);
        }
        for name in ["norm_pre", vit.final_norm_name()] {
            self.module(name, name, &[(0, embed)]);
        }
        for head in spec.classifiers() {
            let [weight, bias] = ["weight", "bias"].map(|part| format!("{head}.{part}"));
            self.add(&weight, &weight, &[(1, embed)]);
            self.add(&bias, &bias, &[]);
        }
    }

    /// What stands around the blocks of a Swin: it stays as it is.
    fn around_swin(&mut self, body: Transformer<'_>) {
        let cores = (0..body.cores().len()).map(|core| body.core_name(core));
        let layers = 0..body.layers().len();
        let norms = layers.flat_map(|layer| [1, 2].map(|norm| body.norm_name(layer, norm)));
        let inside: Vec<String> = cores.chain(norms).map(|name| name + ".").collect();
        let names: Vec<String> = self.axes.keys().cloned().collect();
        for name in names {
            if !inside.iter().any(|prefix| name.starts_with(prefix)) {
                self.add(&name, &name, &[]);
            }
        }
    }

    /// A core of the source, whose stream keeps the channels `embed`, as one of the smaller model.
    fn core(
        &mut self,
        (body, core): (Transformer<'_>, usize),
        kept: &KeptCore,
        embed: &[usize],
        (smaller, to): (Transformer<'_>, usize),
    ) {
        let names = (body.core_name(core), smaller.core_name(to));
        let mut pair = |module: &str, rows: &[usize], columns: &[usize]| {
            let (from, to) = (format!("{}.{module}", names.0), format!("{}.{module}", names.1));
            self.module(&from, &to, &[(0, rows), (1, columns)]);
        };
        let block = body.cores().get(core);
        if let Some(mlp) = &kept.mlp {
            pair("mlp.fc1", &mlp.hidden, embed);
            pair("mlp.fc2", &mlp.out, &mlp.hidden);
        }
        if let (Some(attn), Some(spec)) = (&kept.attn, block.and_then(|block| block.attn.as_ref())) {
            pair("attn.qkv", &attn.rows(spec.qk_width()), embed);
            pair("attn.proj", &attn.out, &attn.values());
            if let (Some(from), Some(to)) = (body.bias_table(core), smaller.bias_table(to)) {
                let heads: Vec<usize> = attn.heads.iter().map(|head| head.index).collect();
                self.add(&from, &to, &[(1, &heads)]);
            }
        }
    }
}

impl KeptAttention {
    /// Kept values of all heads: columns of `proj`.
    fn values(&self) -> Vec<usize> {
        self.heads
            .iter()
            .flat_map(|head| head.v.iter().copied())
            .collect()
    }

    /// Kept rows of `qkv`, of whose queries there were `width`.
    fn rows(&self, width: usize) -> Vec<usize> {
        let qk = || self.heads.iter().flat_map(|head| head.qk.iter().copied());
        let values = self.values().into_iter().map(|row| 2 * width + row);
        qk().chain(qk().map(|row| width + row)).chain(values).collect()
    }
}
