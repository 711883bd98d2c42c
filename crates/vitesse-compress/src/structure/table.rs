//! The table of what is cut from which tensor, and what the smaller model's tensors are called: the one place that knows.

use std::collections::BTreeMap;

use vitesse_model::ModelSpec;
use vitesse_model::spec::VitSpec;

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
    let (vit, smaller) = (prunable(spec)?, prunable(after)?);
    let shapes = spec.tensors()?.into_iter();
    let mut table = Table {
        axes: shapes.map(|tensor| (tensor.name, tensor.shape.len())).collect(),
        pieces: Vec::new(),
    };
    let embed = kept.embed.as_slice();
    for name in ["cls_token", "reg_token", "pos_embed", "dist_token"] {
        let last = table.axes.get(name).map_or(0, |axes| axes - 1);
        table.add(name, name, &[(last, embed)]);
    }
    if let Some(stem) = spec.sites().embedding() {
        table.module(&stem.name, &stem.name, &[(0, embed)]);
    }
    for name in ["norm_pre", vit.final_norm_name()] {
        table.module(name, name, &[(0, embed)]);
    }
    for (to, from) in cores(vit, &kept.layers).into_iter().enumerate() {
        if let Some(core) = kept.cores.get(from) {
            let names = (vit.core_name(from), smaller.core_name(to));
            table.core(vit, from, core, embed, (&names.0, &names.1));
        }
    }
    for (to, &from) in kept.layers.iter().enumerate() {
        let owns = smaller.layers.get(to).is_some_and(|layer| layer.norms.is_none());
        let block = smaller.block(to);
        let has = [
            block.is_some_and(|block| block.attn.is_some()),
            block.is_some_and(|block| block.mlp.is_some()),
        ];
        for (norm, has) in [1, 2].into_iter().zip(has) {
            if owns && has {
                let (from, to) = (vit.norm_name(from, norm), smaller.norm_name(to, norm));
                table.module(&from, &to, &[(0, embed)]);
            }
        }
    }
    for head in spec.classifiers() {
        table.add(
            &format!("{head}.weight"),
            &format!("{head}.weight"),
            &[(1, embed)],
        );
        table.add(&format!("{head}.bias"), &format!("{head}.bias"), &[]);
    }
    Ok(table.pieces)
}

/// The cores that these layers use, in their old order.
pub(super) fn cores(vit: &VitSpec, layers: &[usize]) -> Vec<usize> {
    let used = |core: &usize| {
        let mut layers = layers.iter().filter_map(|&layer| vit.layers.get(layer));
        layers.any(|layer| layer.core == *core)
    };
    (0..vit.cores.len()).filter(used).collect()
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

    fn core(&mut self, vit: &VitSpec, core: usize, kept: &KeptCore, embed: &[usize], names: (&str, &str)) {
        let mut pair = |module: &str, rows: &[usize], columns: &[usize]| {
            let (from, to) = (format!("{}.{module}", names.0), format!("{}.{module}", names.1));
            self.module(&from, &to, &[(0, rows), (1, columns)]);
        };
        let block = vit.cores.get(core);
        if let (Some(attn), Some(spec)) = (&kept.attn, block.and_then(|block| block.attn.as_ref())) {
            pair("attn.qkv", &attn.rows(spec.qk_width()), embed);
            pair("attn.proj", &attn.out, &attn.values());
        }
        if let Some(mlp) = &kept.mlp {
            pair("mlp.fc1", &mlp.hidden, embed);
            pair("mlp.fc2", &mlp.out, &mlp.hidden);
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
