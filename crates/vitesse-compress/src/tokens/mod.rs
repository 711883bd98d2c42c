//! Fewer tokens from layer to layer: when, and how many.
//!
//! The ops that take tokens away or merge them stand in `vitesse-model` (`ops/tokens/`). Here stands what the papers say of where they
//! stand and how many tokens each leaves: a file a method.

pub mod evit;
pub mod tome;
