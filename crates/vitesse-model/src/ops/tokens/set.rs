//! STATIC TOKENS — a fixed set of patches stays, the same for every image.
//!
//! The baseline that every method must beat: with a set drawn at random, what is lost is what a choice could have saved. Nothing
//! is computed, and the tokens keep their positions.

use serde::{Deserialize, Serialize};

use super::Leaves;
use crate::spec::TokenSet;

/// Which patches stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticTokens {
    /// Their numbers among the patches that enter the layer, ascending.
    pub keep: Vec<usize>,
}

impl StaticTokens {
    pub(super) fn leaves(&self, set: TokenSet) -> Leaves {
        let Some(last) = self.keep.last() else {
            return Err("`keep` names no patch, which would leave only the tokens before the patches".into());
        };
        if let Some(pair) = self.keep.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(format!(
                "`keep` must be ascending, but {} stands before {}",
                pair[0], pair[1]
            ));
        }
        if *last >= set.patches {
            return Err(format!(
                "`keep` names patch {last}, but the patches that enter are 0 to {}",
                set.patches.saturating_sub(1)
            ));
        }
        Ok(set.with_patches(self.keep.len()))
    }
}

#[cfg(feature = "train")]
pub(in crate::ops) use network::StaticTokensOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;

    use super::StaticTokens;
    use crate::network::Ctx;
    use crate::ops::network::Act;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct StaticTokensOp {
        #[module(skip)]
        keep: Vec<usize>,
    }

    impl StaticTokensOp {
        pub(in crate::ops) fn new(spec: &StaticTokens) -> Self {
            StaticTokensOp {
                keep: spec.keep.clone(),
            }
        }
    }

    impl Act for StaticTokensOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let kept = vec![self.keep.clone(); x.dims()[0]];
            ctx.stream.keep(x, &kept)
        }
    }
}
