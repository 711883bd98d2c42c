//! Two heads, one prediction.

/// How two heads become one prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fusion {
    /// The mean of the logits: what the released DeiT code does, and what its published numbers need.
    #[default]
    LogitMean,
    /// The mean of the two softmax outputs, as the paper writes. The result is a probability.
    SoftmaxMean,
    /// The class head alone.
    Class,
    /// The distillation head alone (the class head where there is no other).
    Distillation,
}
