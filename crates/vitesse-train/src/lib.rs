//! How a model learns: losses, distillation, optimiser groups, schedules, the loop, resume and metrics.
