//! The description of a model: plain data, no tensors.
//!
//! A [`ModelSpec`] says everything about a model but its weights: per-block shapes, which blocks share their
//! matrices, which ops stand where. From it alone follow the names and shapes of all tensors
//! ([`ModelSpec::tensors`]), fresh weights ([`ModelSpec::init`]), parameters and multiply-accumulates
//! ([`ModelSpec::costs`]). Nothing is inferred from tensor shapes when the spec says it.

mod activation;
mod block;
mod cost;
mod family;
pub(crate) mod limits;
mod maps;
pub(crate) mod regnet;
mod share;
mod sites;
pub(crate) mod swin;
mod tokens;
mod transformer;
mod vit;

pub use activation::Activation;
pub use block::{AttentionSpec, BlockSpec, LayerSpec, MlpSpec};
pub use cost::{Cost, LayerCost};
pub use maps::FeatureMap;
pub use regnet::{RegNetSpec, RegNetStage};
pub use share::{Groups, NormsOf};
pub use sites::{Projection, Sites};
pub use swin::{SwinSpec, WindowRule, Windows};
pub use tokens::{LayerTokens, TokenSet};
pub use transformer::Transformer;
pub use vit::{Pool, PrefixToken, VitSpec};

use serde::{Deserialize, Serialize};

pub(crate) use family::Family;
pub(crate) use maps::FeatureMaps;

use crate::ops::{self, OpSpec};
use crate::site::Site;
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
    /// What stands at which site, in the order in which ops at one site are applied.
    #[serde(default)]
    pub ops: Vec<OpSpec>,
}

/// The families of networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkSpec {
    /// Vision transformers with one width: ViT, DeiT.
    Vit(VitSpec),
    /// RegNetY, the convolutional teachers of DeiT.
    RegNet(RegNetSpec),
    /// Swin: attention in windows, in stages.
    Swin(SwinSpec),
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
    /// Where it stands on the way from the images to the heads: 0 for the embedding, `l + 1` for layer `l`, and one more
    /// than the last layer for what follows. What several layers share stands where it is used first.
    pub depth: usize,
    /// Whether weight decay applies to it, as the reference program has it: to all matrices but a few.
    pub decays: bool,
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
    /// A trained tensor of depth 0, which decays if it has more than one dimension.
    pub(crate) fn parameter(name: impl Into<String>, shape: &[usize], init: Init) -> Self {
        TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            init,
            role: Role::Parameter,
            depth: 0,
            decays: shape.len() > 1,
        }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

impl ModelSpec {
    /// Every tensor of the model, in timm's order, ops last. Refuses a spec that describes no possible model.
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        let mut tensors = self.family().tensors(self.num_classes);
        tensors.extend(ops::tensors(self));
        Ok(tensors)
    }

    /// Checks that sizes are believable and that the parts fit each other.
    pub fn validate(&self) -> Result<()> {
        limits::within("the number of classes", self.num_classes, limits::CLASSES)?;
        self.family().validate()?;
        ops::validate(self)
    }

    /// Parameters and multiply-accumulates by layer, for one image.
    pub fn costs(&self) -> Result<Cost> {
        self.validate()?;
        let (family, width) = (self.family(), self.num_features());
        let mut cost = family.costs(&self.token_counts());
        ops::costs(self, &mut cost);
        if self.num_classes > 0 {
            for head in family.classifiers() {
                cost.push(head, self.num_classes * (width + 1), self.num_classes * width);
            }
        }
        Ok(cost)
    }

    /// Channels, height and width of the images the model takes.
    pub fn input_size(&self) -> [usize; 3] {
        self.family().input_size()
    }

    /// Rows and columns of the windows in which a Swin attends, where its maps are larger; others have none.
    pub fn window_size(&self) -> Option<[usize; 2]> {
        match &self.network {
            NetworkSpec::Swin(swin) => Some(swin.window_size),
            NetworkSpec::Vit(_) | NetworkSpec::RegNet(_) => None,
        }
    }

    /// Width of the features that the heads see.
    pub fn num_features(&self) -> usize {
        self.family().num_features()
    }

    /// The names of the modules that classify, such as `head` and `head_dist`.
    pub fn classifiers(&self) -> Vec<&'static str> {
        self.family().classifiers()
    }

    fn family(&self) -> &dyn Family {
        match &self.network {
            NetworkSpec::Vit(vit) => vit,
            NetworkSpec::RegNet(regnet) => regnet,
            NetworkSpec::Swin(swin) => swin,
        }
    }

    /// Whether an op makes tokens fewer on the way.
    pub fn reduces_tokens(&self) -> bool {
        self.ops.iter().any(|op| op.kind.reduces_tokens())
    }

    /// The model's sites, with what stands there.
    pub fn sites(&self) -> &dyn Sites {
        self
    }

    /// The ops at `site` of `layer` (`None` for the sites outside blocks), with their index in [`ModelSpec::ops`].
    pub fn ops_at(&self, site: Site, layer: Option<usize>) -> impl Iterator<Item = (usize, &OpSpec)> {
        self.sites().ops_at(site, layer)
    }

    /// The op to which a tensor belongs, and its index in [`ModelSpec::ops`]; `None` for a tensor of no op.
    pub fn op_of(&self, tensor: &str) -> Option<(usize, &OpSpec)> {
        let (number, _) = tensor.strip_prefix("ops.")?.split_once('.')?;
        let number = number.parse().ok()?;
        Some((number, self.ops.get(number)?))
    }

    /// Says whether the projections to queries, keys and values of all blocks have a bias.
    pub fn set_qkv_bias(&mut self, bias: bool) {
        let cores = match &mut self.network {
            NetworkSpec::Vit(vit) => &mut vit.cores,
            NetworkSpec::Swin(swin) => &mut swin.cores,
            NetworkSpec::RegNet(_) => return,
        };
        let attns = cores.iter_mut().filter_map(|core| core.attn.as_mut());
        attns.for_each(|attn| attn.qkv_bias = bias);
    }

    /// Says whether the patch embedding has a bias.
    pub fn set_patch_bias(&mut self, bias: bool) {
        if let NetworkSpec::Vit(vit) = &mut self.network {
            vit.patch_bias = bias;
        }
    }

    /// Whether it consists of transformer blocks: these the engine runs.
    pub fn is_transformer(&self) -> bool {
        !matches!(self.network, NetworkSpec::RegNet(_))
    }

    /// The ViT inside, for what only transformers of one width can do.
    pub fn vit(&self) -> Result<&VitSpec> {
        match &self.network {
            NetworkSpec::Vit(vit) => Ok(vit),
            NetworkSpec::Swin(_) => Err(Error::invalid_spec(format!(
                "`{}` is a Swin, whose stages differ in width; this needs a vision transformer of one width, ViT or DeiT",
                self.architecture
            ))),
            NetworkSpec::RegNet(_) => Err(Error::invalid_spec(format!(
                "`{}` is a convolutional network; this needs a vision transformer, ViT or DeiT",
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
                        "floating-point numbers",
                        tensor.dtype(),
                    ));
                }
                Ok(tensor) if spec.role == Role::Counter && tensor.dtype() != DType::I64 => {
                    return Err(Error::dtype(
                        source,
                        &spec.name,
                        "whole numbers of type I64",
                        tensor.dtype(),
                    ));
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

impl Sites for ModelSpec {
    fn depth(&self) -> usize {
        self.family().depth()
    }

    fn tokens_at(&self, layer: usize) -> usize {
        if !self.reduces_tokens() {
            return self.family().tokens_at(layer) + self.sites().prompts();
        }
        let counts = self.token_counts();
        match (counts.get(layer), counts.last()) {
            (Some(of), _) => of.entering.count(),
            (None, Some(last)) => last.perceptron.count(),
            (None, None) => 0,
        }
    }

    fn token_counts(&self) -> Vec<LayerTokens> {
        tokens::with_ops(self.family(), self.sites().prompts(), &self.ops)
    }

    fn width_at(&self, site: Site, layer: Option<usize>) -> Option<usize> {
        self.family().width_at(site, layer)
    }

    fn projection(&self, site: Site, layer: usize) -> Option<Projection> {
        self.family().projection(site, layer)
    }

    fn norm(&self, site: Site, layer: Option<usize>) -> Option<String> {
        self.family().norm(site, layer)
    }

    fn embedding(&self) -> Option<Projection> {
        self.family().embedding()
    }

    fn activation(&self, layer: usize) -> Activation {
        self.family().activation(layer)
    }

    fn fills_up(&self, layer: usize) -> bool {
        self.family().fills_up(layer)
    }

    fn grid_at(&self, layer: usize) -> Option<[usize; 2]> {
        if !self.reduces_tokens() {
            return self.family().grid_at(layer);
        }
        self.token_counts().get(layer)?.perceptron.grid
    }

    fn attention(&self, layer: usize) -> Option<&AttentionSpec> {
        self.family().attention(layer)
    }

    fn pairs_at(&self, layer: usize) -> usize {
        if self.sites().prompts() == 0 && !self.reduces_tokens() {
            return self.family().pairs_at(layer);
        }
        let tokens = self.sites().tokens_passing(Site::AttnLogits, layer);
        tokens * tokens
    }

    fn fixed_tokens(&self) -> Option<&'static str> {
        self.family().fixed_tokens()
    }

    fn has_class_token(&self) -> bool {
        self.family().has_class_token()
    }

    fn ops(&self) -> &[OpSpec] {
        &self.ops
    }
}
