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
//! **Deviations.** None. A model whose blocks share matrices is refused, because earlier blocks would change with the last.

use vitesse_model::ModelSpec;
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
        let vit = spec.vit()?;
        if vit.is_shared() {
            return refuse(
                NAME,
                "blocks of this model share matrices, so the last cannot learn alone",
            );
        }
        let depth = vit.layers.len();
        if !(1..=depth).contains(&self.blocks) {
            return refuse(
                NAME,
                format!("`blocks` must be from 1 to {depth}, but is {}", self.blocks),
            );
        }
        let prefixes: Vec<String> = vit
            .layers
            .iter()
            .skip(depth - self.blocks)
            .map(|layer| vit.core_name(layer.core))
            .chain([vit.final_norm_name().to_owned()])
            .map(|prefix| format!("{prefix}."))
            .collect();
        select(NAME, spec, |name| {
            prefixes.iter().any(|prefix| name.starts_with(prefix))
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
        assert_eq!(trainable.method_parameters, 2 * block + 2 * 768);
        let of_these = |name: &String| name.starts_with("blocks.1") || name.starts_with("norm.");
        assert!(trainable.method.iter().all(of_these));
        assert!(refusal(NAME, &[("blocks", "4")]).contains("from 1 to 3"));
    }
}
