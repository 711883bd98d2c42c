//! PARTIAL — the last blocks, the final norm and the head.
//!
//! **Paper.** None of its own; "Partial-k" of the comparisons in *Visual Prompt Tuning* (VPT, ECCV 2022).
//!
//! **When.** Where the new images differ in kind, and memory for all gradients is short.
//!
//! **Changes** the values of the last `blocks` blocks and of the final norm.
//!
//! **Cost.** None.
//!
//! **Deviations.** None. Where earlier blocks share weights with the last it is refused, because they would change too.

use std::collections::HashSet;

use vitesse_model::{ModelSpec, Site, Sites, ops};
use vitesse_train::method::{Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{refuse, select};

/// The name on the command line and in files.
pub const NAME: &str = "partial";

settings! {
    /// How many blocks learn.
    pub struct Config {
        /// Blocks, counted from the last.
        pub blocks: usize = 1,
    }
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recipe(&self) -> &'static [(&'static str, f64)] {
        &[("optim.lr", 1e-4), ("optim.weight_decay", 1e-2)]
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let depth = spec.depth();
        if !(1..=depth).contains(&self.blocks) {
            return refuse(
                NAME,
                format!("`blocks` must be from 1 to {depth}, but is {}", self.blocks),
            );
        }
        let frozen = depth - self.blocks;
        let shared = |layer| {
            let modules = Site::PROJECTIONS.into_iter().chain([Site::AttnIn, Site::MlpIn]);
            let earlier = |site| {
                spec.sites()
                    .sharing(site, layer)
                    .first()
                    .is_some_and(|&first| first < frozen)
            };
            modules.into_iter().any(earlier)
        };
        if (frozen..depth).any(shared) {
            return refuse(
                NAME,
                "earlier blocks of this model share weights with the last, so the last cannot learn alone",
            );
        }
        // Ops that stand there belong to whoever put them there.
        let ops: HashSet<String> = ops::tensors(spec).into_iter().map(|tensor| tensor.name).collect();
        // Layer `l` has the depth `l + 1`, and what follows the layers has the next.
        select(NAME, spec, |tensor| {
            tensor.depth > frozen && !ops.contains(&tensor.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{planned, refusal};
    use super::*;

    #[test]
    fn the_last_blocks_learn() {
        let trainable = planned(NAME, &[("blocks", "2")]).trainable;
        let block = 4 * 768 + 3 * 768 * 769 + 768 * 769 + 2 * 4 * 768 * 768 + 5 * 768;
        assert_eq!(trainable.method_param_count, 2 * block + 2 * 768);
        let of_these = |name: &String| name.starts_with("blocks.1") || name.starts_with("norm.");
        assert!(trainable.method.iter().all(of_these));
        assert!(refusal(NAME, &[("blocks", "4")]).contains("from 1 to 3"));
    }
}
