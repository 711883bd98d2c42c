//! How a model learns: losses, distillation, optimiser groups, schedules, the loop, resume and metrics.

pub mod adamw;
mod error;
pub mod evaluate;
pub mod groups;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod prepare;
pub mod recipe;
pub mod run;
pub mod schedule;
mod start;
pub mod state;
pub mod teacher;
pub mod tokens;
pub mod trainer;
pub mod weights;

pub use error::{Error, Result};
pub use recipe::Recipe;
pub use start::run;
