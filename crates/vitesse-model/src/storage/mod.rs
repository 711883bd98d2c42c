//! How tensors lie on disk.
//!
//! | file | what |
//! | --- | --- |
//! | [`safetensors`] | read and write safetensors, the format of every checkpoint folder |
//! | [`streamed`] | write safetensors that grow row by row, larger than memory |
//! | [`pth`] | read PyTorch's `.pth`, which is a program, without running it |
//! | [`shards`] | read the index of a checkpoint in several files |
//! | [`atomic`] | write files and folders that are whole or absent |
//! | `map` | a file as a slice of memory |
//!
//! Reading allocates nothing in proportion to what a file *claims*: claims are checked against the file's length
//! first, and the tensors stay in the memory map.

pub mod atomic;
mod map;
pub mod pth;
pub mod safetensors;
pub mod shards;
pub mod streamed;

pub use atomic::{AtomicDir, atomic_write};
