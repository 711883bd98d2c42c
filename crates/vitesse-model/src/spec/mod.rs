//! The description of a model: plain data, no tensors.
//!
//! A [`ModelSpec`] says everything about a model but its weights: per-block shapes, which blocks share their
//! matrices, which ops stand where. From it alone follow the names and shapes of all tensors
//! ([`ModelSpec::tensors`]), fresh weights ([`ModelSpec::init`]), parameters and multiply-accumulates
//! ([`ModelSpec::costs`]). Nothing is inferred from tensor shapes when the spec says it.

mod cost;
pub(crate) mod limits;
pub(crate) mod regnet;
mod vit;

pub use cost::{Cost, LayerCost};
pub use regnet::{RegNetSpec, RegNetStage};
pub use vit::{AttentionSpec, BlockSpec, LayerSpec, MlpSpec, Pool, PrefixToken, Projection, VitSpec};

use serde::{Deserialize, Serialize};

use crate::tensors::{DType, Tensors};
use crate::{Error, Result};

/// The description of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// timm's architecture name, such as `deit_tiny_patch16_224`, or one of our own.
    pub architecture: String,
    /// Number of classes of every head; 0 means that there is no head and the model returns features.
    pub num_classes: usize,
    /// The body.
    pub network: NetworkSpec,
}

/// The families of networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkSpec {
    /// Vision transformers with one width: ViT, DeiT.
    Vit(VitSpec),
    /// RegNetY, the convolutional teachers of DeiT.
    RegNet(RegNetSpec),
}

/// One tensor that a model consists of.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name in the checkpoint, timm's.
    pub name: String,
    /// Shape in the checkpoint, timm's: linear weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// How a fresh one is drawn.
    pub init: Init,
    /// Whether gradients train it.
    pub role: Role,
}

/// What a tensor is to training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained by gradients; counted as parameters.
    Parameter,
    /// Running statistics of batch norms, `f32`; not counted as parameters.
    Buffer,
    /// A batch norm's `num_batches_tracked`: one `i64` that only the file format asks for.
    Counter,
}

/// The distribution a fresh tensor is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal, mean 0, cut off at the absolute values ±2 (the reference's habit, so in practice not cut).
    TruncatedNormal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal, mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `±bound`.
    Uniform {
        /// Largest absolute value.
        bound: f64,
    },
}

impl TensorSpec {
    /// A trained tensor.
    pub(crate) fn parameter(name: impl Into<String>, shape: &[usize], init: Init) -> Self {
        TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            init,
            role: Role::Parameter,
        }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

impl ModelSpec {
    /// Every tensor of the model, in timm's order. Refuses a spec that describes no possible model.
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        Ok(match &self.network {
            NetworkSpec::Vit(vit) => vit.tensors(self.num_classes),
            NetworkSpec::RegNet(regnet) => regnet.tensors(self.num_classes),
        })
    }

    /// Checks that sizes are believable and that the parts fit each other.
    pub fn validate(&self) -> Result<()> {
        limits::check(self)?;
        match &self.network {
            NetworkSpec::Vit(vit) => vit.validate(),
            NetworkSpec::RegNet(regnet) => regnet.validate(),
        }
    }

    /// Parameters and multiply-accumulates by layer, for one image.
    pub fn costs(&self) -> Result<Cost> {
        self.validate()?;
        Ok(match &self.network {
            NetworkSpec::Vit(vit) => vit.costs(self.num_classes),
            NetworkSpec::RegNet(regnet) => regnet.costs(self.num_classes),
        })
    }

    /// Channels, height and width of the images the model takes.
    pub fn input_size(&self) -> [usize; 3] {
        match &self.network {
            NetworkSpec::Vit(vit) => [vit.in_chans, vit.img_size[0], vit.img_size[1]],
            NetworkSpec::RegNet(regnet) => [regnet.in_chans, regnet.img_size[0], regnet.img_size[1]],
        }
    }

    /// Width of the features that the heads see.
    pub fn num_features(&self) -> usize {
        match &self.network {
            NetworkSpec::Vit(vit) => vit.embed_dim,
            NetworkSpec::RegNet(regnet) => regnet.num_features(),
        }
    }

    /// The names of the modules that classify, such as `head` and `head_dist`.
    pub fn classifiers(&self) -> Vec<&'static str> {
        match &self.network {
            NetworkSpec::Vit(vit) if vit.is_distilled() => vec!["head", "head_dist"],
            NetworkSpec::Vit(_) => vec!["head"],
            NetworkSpec::RegNet(_) => vec!["head.fc"],
        }
    }

    /// The ViT inside, for what only transformers can do.
    pub fn vit(&self) -> Result<&VitSpec> {
        match &self.network {
            NetworkSpec::Vit(vit) => Ok(vit),
            NetworkSpec::RegNet(_) => Err(Error::invalid_spec(format!(
                "`{}` is a convolutional network; this needs a vision transformer",
                self.architecture
            ))),
        }
    }

    /// Strict check of `tensors` against the spec: every tensor there, none besides, every shape right.
    /// `source` names the file in the error, which lists all differences by tensor name.
    pub fn check(&self, tensors: &Tensors, source: &str) -> Result<()> {
        let mut missing = Vec::new();
        let mut misshaped = Vec::new();
        let specs = self.tensors()?;
        for spec in &specs {
            match tensors.get(&spec.name) {
                Err(_) => missing.push(spec.name.clone()),
                Ok(tensor) if tensor.shape() != spec.shape => {
                    misshaped.push((spec.name.clone(), spec.shape.clone(), tensor.shape().to_vec()));
                }
                Ok(tensor) if spec.role == Role::Parameter && !tensor.dtype().is_float() => {
                    return Err(Error::dtype(
                        source,
                        &spec.name,
                        "a floating-point type",
                        tensor.dtype(),
                    ));
                }
                Ok(tensor) if spec.role == Role::Counter && tensor.dtype() != DType::I64 => {
                    return Err(Error::dtype(source, &spec.name, "I64", tensor.dtype()));
                }
                Ok(_) => {}
            }
        }
        let known: std::collections::HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let unexpected: Vec<String> = tensors
            .names()
            .filter(|name| !known.contains(*name))
            .map(str::to_owned)
            .collect();
        if missing.is_empty() && misshaped.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        Err(Error::mismatch(
            source,
            &self.architecture,
            missing,
            unexpected,
            misshaped,
        ))
    }
}
