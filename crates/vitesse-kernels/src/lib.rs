//! The arithmetic of inference, and with the feature `train` that of training.
//!
//! Everything works on matrices in [`Panels`]; weights are [`Packed`] once. Each kernel is one function, generic over
//! vectors, compiled for every [`Isa`] and called with the one to use. This is the one crate of the house with `unsafe`
//! code in it: its functions check shapes once and then compute without looking.
//!
//! What is unsafe is instructions (`simd`, `tile`, `peak`, and the calls to them in `isa`), the casts of buffers in
//! `panels`, and the pointer to a pool's work; the portable path contains only the last two. Its tests would run under
//! Miri, which finds undefined behaviour: [`Isa::detect`] answers `scalar` there, and packing starts no threads. But Miri
//! needs a nightly compiler, and the house is built and checked with the stable one, so such runs are not part of CI.
//! There the tests compare every instruction set with references in `f64`, and do so in the dev profile, whose checks of
//! overflow and of debug assertions are on.

mod attention;
mod depthwise;
mod embed;
mod isa;
mod math;
mod mixed;
mod norm;
mod packed;
mod panels;
mod peak;
mod pool;
mod product;
mod real;
mod simd;
mod tile;
#[cfg(feature = "train")]
pub mod train;

pub use attention::{Attention, Between, Bias, Plain, Segment};
pub use depthwise::{Depthwise, depthwise};
pub use embed::patches;
pub use isa::Isa;
pub use math::Gelu;
pub use mixed::{Columns, MOST_BUCKETS, Mixed, MixedAttention, PairBuckets, Positions, Tables};
pub use norm::{Norm, layer_norm, quantize, scale_shift};
pub use packed::{Packed, Weight, panels_of};
pub use panels::{Bf16, Element, Panels};
pub use peak::{Arithmetic, peak};
pub use pool::{Barrier, Pool};
pub use product::{Left, Linear, Quantized, linear, linear_add, linear_gelu};
pub use real::Real;
