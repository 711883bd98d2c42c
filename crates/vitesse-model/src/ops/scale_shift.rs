//! SCALE-SHIFT — `y = x · scale + shift`, by channel, after an operation.
//!
//! Paper: Lian et al., *Scaling & Shifting Your Features* (SSF), NeurIPS 2022, equation 3. With `shift` off it is the
//! multiplicative gate of width pruning. Linear and per token, so it folds into the projection before or after it.

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::{Init, TensorSpec};
use crate::{Error, Result};

/// A scale, and perhaps a shift, for each channel at a site. Starts as the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleShift {
    /// Whether there is a shift besides the scale.
    pub shift: bool,
}

impl ScaleShift {
    pub(super) fn validate(&self, index: usize, site: Site) -> Result<()> {
        let why = if site.is_map() {
            "where attention maps pass"
        } else if site.is_projection() {
            "which is a projection; name the site before or after it"
        } else {
            return Ok(());
        };
        Err(Error::invalid_spec(format!(
            "ops[{index}]: scale-shift acts on tokens and cannot stand at `{site}`, {why}"
        )))
    }

    pub(super) fn tensors(&self, prefix: &str, width: usize) -> Vec<TensorSpec> {
        let mut out = vec![TensorSpec::parameter(
            format!("{prefix}.scale"),
            &[width],
            Init::Ones,
        )];
        if self.shift {
            out.push(TensorSpec::parameter(
                format!("{prefix}.shift"),
                &[width],
                Init::Zeros,
            ));
        }
        out
    }
}

#[cfg(feature = "train")]
pub(super) use network::ScaleShiftOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::ScaleShift;
    use crate::Result;
    use crate::network::{Ctx, Parameters};
    use crate::ops::network::Act;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct ScaleShiftOp {
        scale: Param<Tensor<1>>,
        shift: Option<Param<Tensor<1>>>,
    }

    impl ScaleShiftOp {
        pub(in crate::ops) fn new(
            spec: &ScaleShift,
            prefix: &str,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            let shift = parameters.optional(spec.shift, &format!("{prefix}.shift"))?;
            Ok(ScaleShiftOp {
                scale: parameters.parameter(&format!("{prefix}.scale"))?,
                shift,
            })
        }
    }

    impl Act for ScaleShiftOp {
        fn tokens(&self, x: Tensor<3>, _ctx: &mut Ctx) -> Tensor<3> {
            let x = x * self.scale.val().unsqueeze();
            match &self.shift {
                Some(shift) => x + shift.val().unsqueeze(),
                None => x,
            }
        }
    }
}
