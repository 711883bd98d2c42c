//! Layers that share their matrices: from a model to the same one with fewer cores.
//!
//! Paper: Zhang et al., *MiniViT: Compressing Vision Transformers with Weight Multiplexing*, CVPR 2022, section 3.1: layers that
//! follow each other have one core, which is executed once for each of them. Neither depth nor time becomes less, only what is stored.
//! Norms and ops stay each layer's own, unless [`NormsOf::Group`] shares the norms too, as before MiniViT.

use super::{BlockSpec, LayerSpec, ModelSpec, NetworkSpec, Sites};
use crate::{Error, Result};

/// Which layers share their matrices: always some that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// So many in each group; in a Swin, in each group of each stage.
    Of(usize),
    /// The size of each group, in the order of the forward pass.
    Sizes(Vec<usize>),
}

/// Whose norms the layers of a group have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormsOf {
    /// Each layer its own.
    Layer,
    /// All those of the first layer of their group.
    Group,
}

fn fail<T>(sentence: String) -> Result<T> {
    Err(Error::invalid_spec(sentence))
}

impl ModelSpec {
    /// The same model with one core for each group, that of its first layer; ops stay where they are.
    ///
    /// # Errors
    /// Groups that do not fit the layers, that reach from one stage into the next, or whose layers have matrices of different shapes;
    /// a network without blocks.
    pub fn share(&self, groups: &Groups, norms: NormsOf) -> Result<ModelSpec> {
        let mut shared = self.clone();
        let (stages, cores, layers) = match &mut shared.network {
            NetworkSpec::Vit(vit) => (vec![vit.layers.len()], &mut vit.cores, &mut vit.layers),
            NetworkSpec::Swin(swin) => (swin.depths.clone(), &mut swin.cores, &mut swin.layers),
            NetworkSpec::RegNet(_) => {
                return fail(format!(
                    "`{}` has no transformer blocks; only those can share their matrices",
                    self.architecture
                ));
            }
        };
        let sizes = groups.sizes(&stages)?;
        let (mut new_cores, mut new_layers) = (Vec::new(), Vec::new());
        for &size in &sizes {
            let first = new_layers.len();
            let core = block(cores, layers, first)?;
            for layer in first..first + size {
                if block(cores, layers, layer)? != core {
                    return fail(format!(
                        "layers {first} and {layer} cannot share their matrices, which differ in shape; put them into different groups"
                    ));
                }
                new_layers.push(LayerSpec {
                    core: new_cores.len(),
                    norms: (norms == NormsOf::Group && layer > first).then_some(first),
                });
            }
            new_cores.push(core.clone());
        }
        (*cores, *layers) = (new_cores, new_layers);
        shared.validate()?;
        Ok(shared)
    }

    /// The same function with a core for each layer: where layers share matrices, each has a copy. Norms that layers share stay shared.
    pub fn untie(&self) -> ModelSpec {
        let mut untied = self.clone();
        match &mut untied.network {
            NetworkSpec::Vit(vit) => own_cores(&mut vit.cores, &mut vit.layers),
            NetworkSpec::Swin(swin) => {
                swin.masked = (0..swin.layers.len())
                    .filter(|&layer| swin.has_mask(layer))
                    .collect();
                own_cores(&mut swin.cores, &mut swin.layers);
            }
            NetworkSpec::RegNet(_) => {}
        }
        untied
    }

    /// The layers that have the matrices of `layer`, that one included, in the order of the forward pass.
    pub fn group_of(&self, layer: usize) -> Vec<usize> {
        let layers = match &self.network {
            NetworkSpec::Vit(vit) => &vit.layers,
            NetworkSpec::Swin(swin) => &swin.layers,
            NetworkSpec::RegNet(_) => return Vec::new(),
        };
        let core = |layer: usize| layers.get(layer).map(|layer| layer.core);
        let all = 0..self.depth();
        all.filter(|&other| core(other) == core(layer)).collect()
    }
}

/// Gives each layer a core like the one that it names.
fn own_cores(cores: &mut Vec<BlockSpec>, layers: &mut [LayerSpec]) {
    let copies = layers.iter().filter_map(|layer| cores.get(layer.core).cloned());
    *cores = copies.collect();
    for (core, layer) in layers.iter_mut().enumerate() {
        layer.core = core;
    }
}

/// The matrices of a layer.
fn block<'a>(cores: &'a [BlockSpec], layers: &[LayerSpec], layer: usize) -> Result<&'a BlockSpec> {
    let core = layers.get(layer).and_then(|layer| cores.get(layer.core));
    core.ok_or_else(|| Error::invalid_spec(format!("layer {layer} has no matrices")))
}

impl Groups {
    /// The size of each group of a network with stages of so many layers.
    fn sizes(&self, stages: &[usize]) -> Result<Vec<usize>> {
        match self {
            Groups::Of(size) => self.equal(*size, stages),
            Groups::Sizes(sizes) => {
                check(sizes, stages)?;
                Ok(sizes.clone())
            }
        }
    }

    fn equal(&self, size: usize, stages: &[usize]) -> Result<Vec<usize>> {
        let mut sizes = Vec::new();
        for (stage, &depth) in stages.iter().enumerate() {
            if size == 0 || depth % size != 0 {
                let what = match stages.len() {
                    1 => format!("the {depth} layers"),
                    _ => format!("the {depth} layers of `layers.{stage}`"),
                };
                let divisors: Vec<String> = (1..=depth)
                    .filter(|divisor| stages.iter().all(|depth| depth % divisor == 0))
                    .map(|divisor| divisor.to_string())
                    .collect();
                return fail(format!(
                    "groups of {size} do not divide {what}; choose {}, or list the size of each group",
                    divisors.join(" or ")
                ));
            }
            sizes.extend(std::iter::repeat_n(size, depth / size));
        }
        Ok(sizes)
    }
}

/// Refuses groups that do not fill the stages, or reach from one into the next.
fn check(sizes: &[usize], stages: &[usize]) -> Result<()> {
    let depth: usize = stages.iter().sum();
    let total = sizes.iter().fold(0, |sum: usize, size| sum.saturating_add(*size));
    if total != depth {
        return fail(format!(
            "the groups have {total} layers together, but the model has {depth}"
        ));
    }
    if let Some(group) = sizes.iter().position(|&size| size == 0) {
        return fail(format!("group {group} has no layer; leave it out"));
    }
    let mut ends = stages.iter().scan(0, |end, depth| {
        *end += depth;
        Some(*end)
    });
    let (mut first, mut end) = (0, ends.next().unwrap_or(0));
    for &size in sizes {
        while first == end && first < depth {
            end = ends.next().unwrap_or(depth);
        }
        if first + size > end {
            return fail(format!(
                "the group of layers {first} to {} reaches across stages, whose matrices differ in width; a stage ends before layer {end}",
                first + size - 1
            ));
        }
        first += size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{PrefixToken, SwinSpec, VitSpec};

    fn vit(depth: usize) -> ModelSpec {
        ModelSpec {
            architecture: "a ViT".into(),
            num_classes: 3,
            network: NetworkSpec::Vit(VitSpec::plain(8, 4, 4, depth, 2, vec![PrefixToken::Class])),
            ops: Vec::new(),
        }
    }

    fn swin() -> ModelSpec {
        ModelSpec {
            network: NetworkSpec::Swin(SwinSpec::plain(32, 4, 2, 4, &[2, 4], &[1, 2])),
            ..vit(1)
        }
    }

    fn cores(spec: &ModelSpec) -> Vec<usize> {
        match &spec.network {
            NetworkSpec::Vit(vit) => vit.layers.iter().map(|layer| layer.core).collect(),
            NetworkSpec::Swin(swin) => swin.layers.iter().map(|layer| layer.core).collect(),
            NetworkSpec::RegNet(_) => Vec::new(),
        }
    }

    #[test]
    fn layers_that_follow_each_other_share_a_core() {
        let share = |spec: ModelSpec, groups, norms| spec.share(&groups, norms).unwrap();
        let pairs = share(vit(6), Groups::Of(2), NormsOf::Layer);
        assert_eq!(cores(&pairs), [0, 0, 1, 1, 2, 2]);
        assert_eq!(pairs.group_of(3), [2, 3]);
        let odd = share(vit(5), Groups::Sizes(vec![2, 2, 1]), NormsOf::Layer);
        assert_eq!(cores(&odd), [0, 0, 1, 1, 2]);
        assert_eq!(share(vit(3), Groups::Of(1), NormsOf::Layer), vit(3));
        let stages = share(swin(), Groups::Sizes(vec![2, 4]), NormsOf::Layer);
        assert_eq!(cores(&stages), [0, 0, 1, 1, 1, 1]);
        // What is shared is stored once: of the second layer only two norms are left, or nothing.
        let count = |spec: &ModelSpec| spec.tensors().unwrap().len();
        assert_eq!(
            count(&vit(4)) - count(&share(vit(4), Groups::Of(4), NormsOf::Layer)),
            3 * 8
        );
        assert_eq!(
            count(&vit(4)) - count(&share(vit(4), Groups::Of(4), NormsOf::Group)),
            3 * 12
        );
    }

    #[test]
    fn an_untied_copy_has_a_core_a_layer_and_the_same_masks() {
        let shared = vit(4).share(&Groups::Of(2), NormsOf::Group).unwrap();
        let untied = shared.untie();
        assert_eq!(cores(&untied), [0, 1, 2, 3]);
        // Norms stay the group's.
        assert!(
            !untied
                .tensors()
                .unwrap()
                .iter()
                .any(|one| one.name == "blocks.1.norm1.weight")
        );
        assert_eq!(vit(4).untie(), vit(4));
        for masks in [false, true] {
            let mut shared = swin()
                .share(&Groups::Sizes(vec![1, 1, 2, 2]), NormsOf::Layer)
                .unwrap();
            if let NetworkSpec::Swin(swin) = &mut shared.network {
                swin.mask_unshifted = masks;
            }
            let untied = shared.untie();
            assert_eq!(cores(&untied), [0, 1, 2, 3, 4, 5]);
            let windows = |spec: &ModelSpec| match &spec.network {
                NetworkSpec::Swin(swin) => (0..6).map(|layer| swin.windows(layer)).collect(),
                _ => Vec::new(),
            };
            assert_eq!(windows(&untied), windows(&shared));
            let unlike = windows(&untied) != windows(&swin());
            assert_eq!(unlike, masks);
        }
    }

    #[test]
    fn groups_that_do_not_fit_are_refused_with_what_would() {
        let refused = |spec: ModelSpec, groups| {
            let error = spec.share(&groups, NormsOf::Layer).unwrap_err();
            error.to_string()
        };
        for (found, expected) in [
            (
                refused(vit(12), Groups::Of(5)),
                "choose 1 or 2 or 3 or 4 or 6 or 12",
            ),
            (refused(vit(12), Groups::Of(0)), "groups of 0"),
            (refused(swin(), Groups::Of(4)), "the 2 layers of `layers.0`"),
            (
                refused(swin(), Groups::Sizes(vec![3, 3])),
                "layers 0 to 2 reaches across stages",
            ),
            (
                refused(swin(), Groups::Sizes(vec![2, 2])),
                "4 layers together, but the model has 6",
            ),
            (
                refused(swin(), Groups::Sizes(vec![2, 0, 4])),
                "group 1 has no layer",
            ),
        ] {
            assert!(found.contains(expected), "{found}");
        }
        let mut pruned = vit(2);
        if let NetworkSpec::Vit(vit) = &mut pruned.network {
            vit.cores[1].mlp = None;
        }
        let found = refused(pruned, Groups::Of(2));
        assert!(found.contains("layers 0 and 1 cannot share"), "{found}");
    }
}
