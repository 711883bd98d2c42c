//! SSF — a scale and a shift after every operation.
//!
//! **Paper.** D. Lian, D. Zhou, J. Feng, X. Wang, *Scaling & Shifting Your Features*, NeurIPS 2022, equation 3:
//! `y = γ ⊙ x + β` after the patch embedding, both norms, `qkv`, `proj`, `fc1` and `fc2` of every block, and the final norm.
//!
//! **When.** The fewest settings to choose; folds without a trace.
//!
//! **Changes** ops `scale-shift` at all these sites; after merging, only the values of the weights and biases before them.
//!
//! **Cost.** One multiply-add for each value until merged, nothing after.
//!
//! **Deviations.** None in what is computed. A model whose norm follows pooling has no site after it, and none stands there.

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{OpKind, OpSpec, ScaleShift};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_rng::Key;

use super::{Adapted, insert, layers_with, op};
use crate::Result;

const NAME: &str = "ssf";

/// The standard deviation with which scales start around 1 and shifts around 0.
const STD: f64 = 0.02;

/// The sites in a block, in the order of the forward pass.
const SITES: [Site; 6] = [
    Site::AttnIn,
    Site::AttnQkv,
    Site::AttnOut,
    Site::MlpIn,
    Site::MlpFc1,
    Site::MlpOut,
];

/// SSF has nothing to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
        let kind = || OpKind::ScaleShift(ScaleShift { shift: true });
        let outside = |site| OpSpec {
            site,
            layer: None,
            kind: kind(),
        };
        let mut ops = vec![outside(Site::PatchOut)];
        for site in SITES {
            ops.extend(layers_with(spec, site).map(|layer| op(site, layer, kind())));
        }
        if spec.has(Site::FinalNorm, None) {
            ops.push(outside(Site::FinalNorm));
        }
        let mut adapted = insert(NAME, spec, tensors, ops, seed)?;
        for name in &adapted.trainable.method {
            let mean = if name.ends_with(".scale") { 1.0 } else { 0.0 };
            let mut rng = Key::new(seed).with("ssf").with(name).rng();
            let shape = adapted.tensors.get(name)?.shape().to_vec();
            let values = (0..shape.iter().product())
                .map(|_| (mean + STD * rng.normal()) as f32)
                .collect();
            adapted.tensors.insert_f32(name, &shape, values)?;
        }
        Ok(adapted)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{applied, counted};
    use super::*;

    #[test]
    fn the_count_is_the_published_one() {
        assert_eq!(counted(NAME, &[]).trainable.method_parameters, 205_824);
    }

    #[test]
    fn scales_start_near_one_and_shifts_near_zero() {
        let adapted = applied(NAME, &[]);
        for name in &adapted.trainable.method {
            let values = adapted.tensors.get(name).unwrap().to_f32().into_owned();
            let mean = if name.ends_with("scale") { 1.0 } else { 0.0 };
            assert!(values.iter().all(|x| (x - mean).abs() < 0.15), "{name}");
            assert!(values.iter().any(|x| *x != mean), "{name}");
        }
    }
}
