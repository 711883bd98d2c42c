//! What stands in the folder of a run of training, as far as readers of models know it.

/// The recipe, by which such a folder is known.
pub const RECIPE: &str = "recipe.toml";
/// The checkpoint with the best validation accuracy.
pub const BEST: &str = "best";
/// The checkpoint after the last step.
pub const FINAL: &str = "final";
/// What was learned by a method, where the run had one.
pub const ADAPTER: &str = "adapter";
