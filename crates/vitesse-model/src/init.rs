//! Fresh weights: `(spec, seed) → Tensors`.
//!
//! Every tensor is drawn from a key made of the seed and its name, so a tensor's values depend neither on the other
//! tensors nor on the order in which they are drawn.

use vitesse_rng::Key;

use crate::Result;
use crate::spec::{Init, ModelSpec, Role, TensorSpec};
use crate::tensors::{DType, Tensor, Tensors};

/// The bound at which the reference cuts off its truncated normals, an absolute value.
const TRUNCATION: f64 = 2.0;

impl ModelSpec {
    /// Fresh weights of the whole model.
    pub fn init(&self, seed: u64) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        for spec in self.tensors()? {
            tensors.insert(spec.name.clone(), spec.init(seed)?);
        }
        Ok(tensors)
    }
}

impl TensorSpec {
    /// A fresh tensor.
    pub fn init(&self, seed: u64) -> Result<Tensor> {
        if self.role == Role::Counter {
            return Tensor::from_bytes(DType::I64, &self.shape, vec![0; 8 * self.numel()]);
        }
        let mut rng = Key::new(seed).with("init").with(&self.name).rng();
        let mut draw = || match self.init {
            Init::Zeros => 0.0,
            Init::Ones => 1.0,
            Init::TruncatedNormal { std } => rng.truncated_normal(std, TRUNCATION),
            Init::Normal { std } => std * rng.normal(),
            Init::Uniform { bound } => rng.uniform_in(-bound, bound),
        };
        let values: Vec<f32> = (0..self.numel()).map(|_| draw() as f32).collect();
        Tensor::from_f32(&self.shape, values)
    }
}
