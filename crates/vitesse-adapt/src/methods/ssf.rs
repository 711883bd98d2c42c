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

use vitesse_model::ops::{OpKind, OpSpec, ScaleShift};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_rng::Key;
use vitesse_train::method::{Begun, Finished, Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{fold, insert, layers_with, op};

/// The name on the command line and in files.
pub const NAME: &str = "ssf";

/// The standard deviation with which scales start around 1 and shifts around 0.
const STD: f64 = 0.02;

/// The sites in a block, in the order of the forward pass.
const SITES: [Site; 7] = [
    Site::MergeIn,
    Site::AttnIn,
    Site::AttnQkv,
    Site::AttnOut,
    Site::MlpIn,
    Site::MlpFc1,
    Site::MlpOut,
];

settings! {
    /// SSF has nothing to set.
    pub struct Config {}
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The published rates lie between 1e-3 and 1e-2; a scale near 1 needs larger steps than a matrix near 0.
    fn recipe(&self) -> &'static [(&'static str, f64)] {
        &[("optim.lr", 5e-3), ("optim.weight_decay", 5e-5)]
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let kind = || OpKind::ScaleShift(ScaleShift { shift: true });
        let outside = |site| OpSpec {
            site,
            layer: None,
            kind: kind(),
        };
        let has = |site: &Site| spec.has(*site, None);
        let mut ops: Vec<OpSpec> = [Site::PatchOut, Site::PatchNorm]
            .into_iter()
            .filter(has)
            .map(outside)
            .collect();
        for site in SITES {
            ops.extend(layers_with(spec, site).map(|layer| op(site, layer, kind())));
        }
        ops.extend([Site::FinalNorm].into_iter().filter(has).map(outside));
        insert(NAME, spec, &SITES, ops)
    }

    fn begin(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Begun> {
        let mut begun = self.plan(spec)?.begin(tensors, seed)?;
        for name in &begun.trained.method {
            let mean = if name.ends_with(".scale") { 1.0 } else { 0.0 };
            let mut rng = Key::new(seed).with("ssf").with(name).rng();
            let shape = begun.tensors.get(name)?.shape().to_vec();
            let values = (0..shape.iter().product())
                .map(|_| (mean + STD * rng.normal()) as f32)
                .collect();
            begun.tensors.insert_f32(name, &shape, values)?;
        }
        Ok(begun)
    }

    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        fold(spec, tensors)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{begun, planned};
    use super::*;

    #[test]
    fn the_count_is_the_published_one() {
        assert_eq!(planned(NAME, &[]).trainable.method_param_count, 205_824);
    }

    #[test]
    fn scales_start_near_one_and_shifts_near_zero() {
        let begun = begun(NAME, &[]);
        for name in &begun.trained.method {
            let values = begun.tensors.get(name).unwrap().to_f32().into_owned();
            let mean = if name.ends_with("scale") { 1.0 } else { 0.0 };
            assert!(values.iter().all(|x| (x - mean).abs() < 0.15), "{name}");
            assert!(values.iter().any(|x| *x != mean), "{name}");
        }
    }
}
