//! What is done besides following gradients: masks, schedules, multipliers, tensors that wait.
//!
//! [`Hooks`] are called at fixed moments of a step and have no state: what they must remember from one step to the next
//! stands in the state's `method`, tensors that are saved and loaded with it as `method.NAME`. So a run with hooks
//! resumes with the same bits as any other. Of several hooks each is called in the order of the list.
//!
//! | moment | may change |
//! | --- | --- |
//! | [`begin_epoch`](Hooks::begin_epoch), [`begin_step`](Hooks::begin_step) | what is remembered |
//! | [`gradients`](Hooks::gradients), summed over parts and processes, before they are clipped | gradients |
//! | [`rate`](Hooks::rate) | the learning rate of a tensor |
//! | [`updated`](Hooks::updated) | weights and moments of what is trained |
//!
//! Several processes call the same hooks with the same numbers.

use std::fmt::Debug;

use vitesse_model::Tensors;

use crate::Result;
use crate::adamw::Slot;
use crate::learner::Taken;
use crate::objective::At;
use crate::weights::Gradients;

/// Is called in the course of a run. Every method does nothing unless it is written. An error ends the run; its state on
/// disk is that of the last save.
pub trait Hooks: Debug + Send + Sync {
    /// Before the first step of an epoch.
    ///
    /// # Errors
    /// Whatever keeps the run from going on.
    fn begin_epoch(&self, _: At, _slots: &[Slot], _method: &mut Tensors) -> Result<()> {
        Ok(())
    }

    /// Before a step. What is remembered may not be there yet in the first one.
    ///
    /// # Errors
    /// Whatever keeps the run from going on.
    fn begin_step(&self, _: At, _slots: &[Slot], _method: &mut Tensors) -> Result<()> {
        Ok(())
    }

    /// On the gradients of the whole batch, one for each slot, before they are clipped. A tensor whose gradient is made
    /// `None` is left as it is, its moments too.
    ///
    /// # Errors
    /// Whatever keeps the run from going on.
    fn gradients(
        &self,
        _: At,
        _slots: &[Slot],
        _gradients: &mut Gradients,
        _method: &mut Tensors,
    ) -> Result<()> {
        Ok(())
    }

    /// The learning rate of a tensor in a step, which would be `rate` (schedule and layer-wise decay).
    fn rate(&self, _: At, _slot: &Slot, rate: f64, _method: &Tensors) -> f64 {
        rate
    }

    /// After the update, with what the step found.
    ///
    /// # Errors
    /// Whatever keeps the run from going on.
    fn updated(&self, _: At, _slots: &mut [Slot], _: &Taken, _method: &mut Tensors) -> Result<()> {
        Ok(())
    }
}
