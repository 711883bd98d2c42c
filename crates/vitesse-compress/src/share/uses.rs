//! What each layer contributes to the gradients of matrices that it shares.
//!
//! The gradient of a shared matrix is the sum over the layers that use it. The terms of this sum are the gradients of an *untied copy*: the same
//! function in which each layer has its matrices for itself. MiniViT's authors look at the norms of gradients layer by layer during training: with
//! plain sharing, they write, the norms are large and differ from layer to layer, with transformations they are small and even.

use std::collections::BTreeMap;

use vitesse_model::spec::Role;
use vitesse_model::{ModelSpec, Sites, Tensors};

use super::multiplex::{source, untied};
use crate::Result;

/// The untied copy of a model, and which of its tensors is a copy of which.
#[derive(Debug, Clone)]
pub struct Uses {
    model: ModelSpec,
    copy: ModelSpec,
    parameters: Vec<Parameter>,
}

/// A parameter of the copy.
#[derive(Debug, Clone)]
struct Parameter {
    name: String,
    /// Its name in the model.
    source: String,
    /// The layer whose matrices it belongs to, if it does.
    layer: Option<usize>,
}

/// Euclidean norms of gradients: of the matrices of each layer, biases and, in a Swin, the table of relative positions included.
#[derive(Debug, Clone, PartialEq)]
pub struct Norms {
    /// By layer, of what all layers that share its matrices contribute together; `None` for a layer without matrices.
    pub summed: Vec<Option<f64>>,
    /// By layer, of what this layer alone contributes; the same where it shares its matrices with none.
    pub per_use: Vec<Option<f64>>,
    /// Of all parameters of the model, by which gradients are clipped.
    pub all: f64,
}

impl Uses {
    /// # Errors
    /// A network without transformer blocks, whose layers share nothing.
    pub fn new(model: &ModelSpec) -> Result<Uses> {
        model.transformer()?;
        let copy = model.untie();
        let mut parameters = Vec::new();
        for tensor in copy.tensors()? {
            if tensor.role == Role::Parameter {
                let (layer, source) = source(&copy, model, &tensor.name)?;
                parameters.push(Parameter {
                    name: tensor.name,
                    source,
                    layer,
                });
            }
        }
        Ok(Uses {
            model: model.clone(),
            copy,
            parameters,
        })
    }

    /// The copy.
    pub fn spec(&self) -> &ModelSpec {
        &self.copy
    }

    /// The weights of the copy, of those of the model.
    ///
    /// # Errors
    /// Tensors that are not the model's.
    pub fn tensors(&self, tensors: &Tensors) -> Result<Tensors> {
        untied(&self.copy, &self.model, tensors)
    }

    /// The parameters of the copy, whose gradients [`Uses::norms`] and [`Uses::summed`] are given, in this order.
    pub fn names(&self) -> Vec<&str> {
        self.parameters.iter().map(|one| one.name.as_str()).collect()
    }

    /// The gradients of the model's parameters, by name: sums over the layers that use them. One that is absent is zero.
    pub fn summed(&self, gradients: &[Option<Vec<f32>>]) -> BTreeMap<&str, Vec<f64>> {
        let mut sums: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (parameter, gradient) in self.parameters.iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let sum = sums.entry(parameter.source.as_str()).or_default();
            sum.resize(gradient.len(), 0.0);
            for (sum, term) in sum.iter_mut().zip(gradient) {
                *sum += f64::from(*term);
            }
        }
        sums
    }

    /// The norms of the gradients of one batch.
    pub fn norms(&self, gradients: &[Option<Vec<f32>>]) -> Norms {
        let sums: BTreeMap<&str, f64> = self
            .summed(gradients)
            .into_iter()
            .map(|(name, sum)| (name, sum.iter().map(|x| x * x).sum()))
            .collect();
        let depth = self.copy.depth();
        let (mut summed, mut per_use) = (vec![None; depth], vec![None; depth]);
        for (parameter, gradient) in self.parameters.iter().zip(gradients) {
            let Some(layer) = parameter.layer else { continue };
            let own = gradient.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
            let all = sums.get(parameter.source.as_str()).copied().unwrap_or(0.0);
            for (norms, square) in [(&mut summed, all), (&mut per_use, own)] {
                if let Some(norm) = norms.get_mut(layer) {
                    *norm = Some(norm.unwrap_or(0.0) + square);
                }
            }
        }
        let roots = |squares: Vec<Option<f64>>| squares.into_iter().map(|one| one.map(f64::sqrt)).collect();
        Norms {
            summed: roots(summed),
            per_use: roots(per_use),
            all: sums.values().sum::<f64>().sqrt(),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "train")]
mod tests {
    use burn::tensor::Device;
    use vitesse_model::NetworkSpec;
    use vitesse_model::network::Network;
    use vitesse_model::ops::Transformation;
    use vitesse_model::spec::{Groups, NormsOf, PrefixToken, RegNetSpec, SwinSpec, VitSpec};
    use vitesse_rng::Key;
    use vitesse_train::gradients::{Of, Over, gradients};
    use vitesse_train::learner::Lesson;
    use vitesse_train::loss::{Distillation, target_rows};

    use super::*;

    const CLASSES: usize = 3;
    const SAMPLES: usize = 4;

    fn model(network: NetworkSpec) -> ModelSpec {
        ModelSpec {
            architecture: "a model".into(),
            num_classes: CLASSES,
            network,
            ops: Vec::new(),
        }
    }

    fn vit() -> ModelSpec {
        let prefix = vec![PrefixToken::Class];
        model(NetworkSpec::Vit(VitSpec::plain(8, 4, 8, 4, 2, prefix)))
    }

    fn swin() -> ModelSpec {
        model(NetworkSpec::Swin(SwinSpec::plain(32, 4, 2, 8, &[2, 2], &[2, 4])))
    }

    fn shared(base: &ModelSpec, norms: NormsOf, transformations: &[Transformation]) -> ModelSpec {
        let mut spec = base.share(&Groups::Of(2), norms).unwrap();
        spec.ops = spec.transformed_by(transformations);
        spec
    }

    fn of(spec: &ModelSpec, tensors: &Tensors, names: &[&str]) -> Vec<Option<Vec<f32>>> {
        let [channels, height, width] = spec.input_size();
        let mut rng = Key::new(9).rng();
        let shape = [SAMPLES, channels, height, width];
        let images = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        let labels: Vec<usize> = (0..SAMPLES).map(|sample| sample % CLASSES).collect();
        let targets = target_rows(&labels, CLASSES, 0.0).unwrap();
        let lesson = Lesson::new(images, shape, targets, CLASSES, &Device::flex()).unwrap();
        let network = Network::new(spec, tensors, "test", &Device::flex().autodiff()).unwrap();
        let of = Of {
            network: &network,
            names,
            objective: &Distillation::default(),
            teacher: None,
        };
        gradients(of, &lesson, Over::Mean).unwrap()
    }

    /// Weights of which none is zero or one: so each layer does something else with the matrices that it shares.
    fn weights(spec: &ModelSpec) -> Tensors {
        let mut tensors = Tensors::new();
        for (number, one) in spec.tensors().unwrap().into_iter().enumerate() {
            let mut rng = Key::new(5).at(number as u64).rng();
            let values = (0..one.numel()).map(|_| 0.3 * rng.normal() as f32).collect();
            tensors.insert_f32(one.name, &one.shape, values).unwrap();
        }
        tensors
    }

    #[test]
    fn a_shared_gradient_is_the_sum_over_its_uses_element_by_element() {
        let mut mini_swin = shared(
            &swin(),
            NormsOf::Layer,
            &[Transformation::Mixing, Transformation::Local],
        );
        if let NetworkSpec::Swin(swin) = &mut mini_swin.network {
            swin.mask_unshifted = true;
        }
        for (model, several) in [
            (vit(), false),
            (shared(&vit(), NormsOf::Group, &[]), true),
            (
                shared(
                    &vit(),
                    NormsOf::Layer,
                    &[Transformation::Positions, Transformation::Mixing],
                ),
                true,
            ),
            (shared(&swin(), NormsOf::Layer, &[]), true),
            (mini_swin, true),
        ] {
            let tensors = weights(&model);
            let uses = Uses::new(&model).unwrap();
            let by_use = of(uses.spec(), &uses.tensors(&tensors).unwrap(), &uses.names());
            let sums = uses.summed(&by_use);
            let names: Vec<&str> = sums.keys().copied().collect();
            let parameters = model.tensors().unwrap();
            assert_eq!(names.len(), parameters.len());
            for (name, expected) in names.iter().zip(of(&model, &tensors, &names)) {
                let expected = expected.unwrap();
                let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                assert_eq!(sums[name].len(), expected.len(), "{name}");
                for (sum, expected) in sums[name].iter().zip(&expected) {
                    let far = (sum - f64::from(*expected)).abs();
                    assert!(far <= 1e-4 * f64::from(most) + 1e-7, "{name}: {sum} {expected}");
                }
            }
            let norms = uses.norms(&by_use);
            let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
            let all: Vec<f64> = sums.values().flatten().copied().collect();
            assert!((norms.all - norm(&all)).abs() < 1e-12 * norms.all);
            for layer in 0..4 {
                let (summed, own) = (norms.summed[layer].unwrap(), norms.per_use[layer].unwrap());
                assert!(own > 0.0 && (summed == own) != several, "{layer}: {summed} {own}");
                let group = model.group_of(layer);
                assert!(group.iter().all(|&other| norms.summed[other] == Some(summed)));
                // A sum is no longer than its terms together.
                let terms: f64 = group.iter().map(|&other| norms.per_use[other].unwrap()).sum();
                assert!(summed <= terms * (1.0 + 1e-9), "{layer}: {summed} {terms}");
            }
        }
    }

    #[test]
    fn layers_without_matrices_have_no_norm_and_networks_without_layers_are_refused() {
        let mut pruned = vit();
        if let NetworkSpec::Vit(vit) = &mut pruned.network {
            (vit.cores[1].attn, vit.cores[1].mlp) = (None, None);
        }
        let tensors = weights(&pruned);
        let uses = Uses::new(&pruned).unwrap();
        let norms = uses.norms(&of(uses.spec(), &uses.tensors(&tensors).unwrap(), &uses.names()));
        assert_eq!((norms.summed[1], norms.per_use[1]), (None, None));
        assert!(norms.summed[2].is_some_and(|norm| norm > 0.0));
        let regnet = RegNetSpec {
            img_size: [8, 8],
            in_chans: 3,
            stem_width: 4,
            stem_stride: 1,
            stages: Vec::new(),
            se_ratio: 0.25,
            bn_eps: 1e-5,
        };
        let error = Uses::new(&model(NetworkSpec::RegNet(regnet))).unwrap_err();
        assert!(
            error.to_string().contains("is a convolutional network"),
            "{error}"
        );
    }
}
