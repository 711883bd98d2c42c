//! Ops in the network: what each kind does in a forward pass.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::bottleneck::BottleneckOp;
use super::head_mixing::HeadMixingOp;
use super::local_convolution::LocalConvolutionOp;
use super::low_rank::LowRankOp;
use super::prompts::PromptsOp;
use super::relative_positions::RelativePositionsOp;
use super::scale_shift::ScaleShiftOp;
use super::tokens::{
    AttentiveTokensOp, BipartiteMatchingOp, GridMergingOp, StaticTokensOp, TokenPredictorOp, TokenSelectorOp,
};
use super::{OpKind, OpSpec};
use crate::network::{Ctx, MapChange, Parameters};
use crate::site::Site;
use crate::spec::Sites;
use crate::{Result, Tensors};

/// An op in the network, or by itself.
#[derive(Module, Debug)]
pub struct Op {
    kind: Kind,
    #[module(skip)]
    site: Site,
}

// A model has a few dozen ops: what the smaller variants waste does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
enum Kind {
    ScaleShift(ScaleShiftOp),
    LowRank(LowRankOp),
    Bottleneck(BottleneckOp),
    Prompts(PromptsOp),
    HeadMixing(HeadMixingOp),
    RelativePositions(RelativePositionsOp),
    LocalConvolution(LocalConvolutionOp),
    BipartiteMatching(BipartiteMatchingOp),
    AttentiveTokens(AttentiveTokensOp),
    TokenPredictor(TokenPredictorOp),
    TokenSelector(TokenSelectorOp),
    GridMerging(GridMergingOp),
    StaticTokens(StaticTokensOp),
    #[cfg(test)]
    Probe(Probe),
}

/// What an op does. A kind says only where it acts: the spec was validated, so that it stands only there.
pub(super) trait Act {
    /// The value `[batch, tokens, width]` at the op's site, changed.
    fn tokens(&self, x: Tensor<3>, _ctx: &mut Ctx) -> Tensor<3> {
        x
    }

    /// The attention maps `[batch, heads, tokens, tokens]` at the op's site, changed.
    fn map(&self, x: Tensor<4>, _ctx: &mut Ctx) -> Tensor<4> {
        x
    }

    /// What [`Act::map`] does, where it is something that a fused attention can do in its place.
    fn map_change(&self, _ctx: &Ctx) -> Option<MapChange> {
        None
    }

    /// What a projection makes, `y` `[batch, tokens, out]`, of `x` `[batch, tokens, in]`, changed by an op on it.
    fn projection(&self, _x: &Tensor<3>, y: Tensor<3>, _ctx: &mut Ctx) -> Tensor<3> {
        y
    }

    /// The weight `[out, in]` of the projection that the op stands on, changed.
    fn weight(&self, weight: Tensor<2>, _ctx: &Ctx) -> Tensor<2> {
        weight
    }

    /// Whether an op on a projection does no more than [`Act::weight`]. Then the projection stays part of its segment.
    fn weight_alone(&self) -> bool {
        false
    }

    /// The earlier site of the same block whose value the op needs, if it needs one.
    fn reads(&self) -> Option<Site> {
        None
    }

    /// What the op reads of its block's attention (`Ctx::attention`), if it reads any of it after the maps. At the maps it
    /// is there without that.
    fn reads_attention(&self) -> Option<AttentionPart> {
        None
    }
}

/// What an op reads of its block's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionPart {
    /// Queries, keys or values. The maps need not exist.
    Qkv,
    /// The maps, and queries, keys or values.
    Probs,
}

impl Op {
    /// Op number `index` of a model with these sites by itself, with its tensors among `tensors`.
    ///
    /// # Errors
    /// An op that cannot stand there, tensors that are missing or of another rank.
    pub fn alone(
        spec: &OpSpec,
        index: usize,
        sites: &dyn Sites,
        tensors: &Tensors,
        device: &Device,
    ) -> Result<Self> {
        spec.validate(index, sites)?;
        for tensor in spec.tensors(index, sites) {
            tensors.get_shaped(&tensor.name, &tensor.shape)?;
        }
        Op::new(spec, index, sites, &Parameters::new(tensors, device))
    }

    pub(crate) fn new(
        spec: &OpSpec,
        index: usize,
        sites: &dyn Sites,
        parameters: &Parameters<'_>,
    ) -> Result<Self> {
        let prefix = spec.prefix(index);
        let kind = match &spec.kind {
            OpKind::ScaleShift(op) => Kind::ScaleShift(ScaleShiftOp::new(op, &prefix, parameters)?),
            OpKind::LowRank(op) => {
                let layer = spec.layer.unwrap_or(0);
                Kind::LowRank(LowRankOp::new(op, &prefix, spec.site, layer, sites, parameters)?)
            }
            OpKind::Bottleneck(op) => Kind::Bottleneck(BottleneckOp::new(op, &prefix, parameters)?),
            OpKind::Prompts(op) => Kind::Prompts(PromptsOp::new(op, index, &prefix, sites, parameters)?),
            OpKind::HeadMixing(op) => Kind::HeadMixing(HeadMixingOp::new(op, &prefix, parameters)?),
            OpKind::RelativePositions(op) => {
                let layer = spec.layer.unwrap_or(0);
                let op = RelativePositionsOp::new(op, &prefix, layer, sites, parameters)?;
                Kind::RelativePositions(op)
            }
            OpKind::LocalConvolution(op) => {
                Kind::LocalConvolution(LocalConvolutionOp::new(op, &prefix, parameters)?)
            }
            OpKind::BipartiteMatching(op) => Kind::BipartiteMatching(BipartiteMatchingOp::new(op, &prefix)),
            OpKind::AttentiveTokens(op) => Kind::AttentiveTokens(AttentiveTokensOp::new(op, &prefix)),
            OpKind::TokenPredictor(op) => {
                let layer = spec.layer.unwrap_or(0);
                Kind::TokenPredictor(TokenPredictorOp::new(op, &prefix, layer, sites, parameters)?)
            }
            OpKind::TokenSelector(op) => {
                let layer = spec.layer.unwrap_or(0);
                Kind::TokenSelector(TokenSelectorOp::new(op, &prefix, layer, sites, parameters)?)
            }
            OpKind::GridMerging(op) => Kind::GridMerging(GridMergingOp::new(op)),
            OpKind::StaticTokens(op) => Kind::StaticTokens(StaticTokensOp::new(op)),
        };
        Ok(Op {
            kind,
            site: spec.site,
        })
    }

    /// An op of a test's own.
    #[cfg(test)]
    pub(crate) fn probe(site: Site, probe: Probe) -> Self {
        Op {
            kind: Kind::Probe(probe),
            site,
        }
    }

    fn act(&self) -> &dyn Act {
        match &self.kind {
            Kind::ScaleShift(op) => op,
            Kind::LowRank(op) => op,
            Kind::Bottleneck(op) => op,
            Kind::Prompts(op) => op,
            Kind::HeadMixing(op) => op,
            Kind::RelativePositions(op) => op,
            Kind::LocalConvolution(op) => op,
            Kind::BipartiteMatching(op) => op,
            Kind::AttentiveTokens(op) => op,
            Kind::TokenPredictor(op) => op,
            Kind::TokenSelector(op) => op,
            Kind::GridMerging(op) => op,
            Kind::StaticTokens(op) => op,
            #[cfg(test)]
            Kind::Probe(op) => op,
        }
    }

    pub(crate) fn site(&self) -> Site {
        self.site
    }

    /// See [`Act::reads`].
    pub(crate) fn reads(&self) -> Option<Site> {
        self.act().reads()
    }

    /// See [`Act::reads_attention`].
    pub(crate) fn reads_attention(&self) -> Option<AttentionPart> {
        self.act().reads_attention()
    }

    /// See [`Act::weight_alone`].
    pub(crate) fn weight_alone(&self) -> bool {
        self.act().weight_alone()
    }

    /// The value `[batch, tokens, width]` at the op's site, changed.
    pub fn forward(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        self.act().tokens(x, ctx)
    }

    /// What a projection makes, `y` `[batch, tokens, out]`, of `x` `[batch, tokens, in]`, changed by an op on it.
    pub fn forward_projection(&self, x: &Tensor<3>, y: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        self.act().projection(x, y, ctx)
    }

    /// The attention maps `[batch, heads, tokens, tokens]` at the op's site, changed.
    pub fn forward_map(&self, x: Tensor<4>, ctx: &mut Ctx) -> Tensor<4> {
        self.act().map(x, ctx)
    }

    /// See [`Act::map_change`].
    pub(crate) fn map_change(&self, ctx: &Ctx) -> Option<MapChange> {
        self.act().map_change(ctx)
    }

    /// The weight `[out, in]` of the projection that the op stands on, changed.
    pub(crate) fn weight(&self, weight: Tensor<2>, ctx: &Ctx) -> Tensor<2> {
        self.act().weight(weight, ctx)
    }
}

#[cfg(test)]
pub(crate) use probe::Probe;

/// An op that does what a test says: it proves the places that no kind uses yet.
#[cfg(test)]
mod probe {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::{Act, AttentionPart};
    use crate::network::{Ctx, param_id};
    use crate::site::Site;

    type Tokens = fn(&Tensor<1>, Tensor<3>, &mut Ctx) -> Tensor<3>;
    type Map = fn(&Tensor<1>, Tensor<4>, &mut Ctx) -> Tensor<4>;
    type Weight = fn(&Tensor<1>, Tensor<2>) -> Tensor<2>;

    #[derive(Module, Debug)]
    pub(crate) struct Probe {
        /// What it learns; each of its functions is called with it.
        pub(crate) learned: Param<Tensor<1>>,
        #[module(skip)]
        pub(crate) tokens: Option<Tokens>,
        #[module(skip)]
        pub(crate) map: Option<Map>,
        #[module(skip)]
        pub(crate) weight: Option<Weight>,
        #[module(skip)]
        pub(crate) reads: Option<Site>,
        #[module(skip)]
        pub(crate) reads_attention: Option<AttentionPart>,
    }

    impl Probe {
        /// `name` is that of the tensor it learns.
        pub(crate) fn new(name: &str, learned: Tensor<1>) -> Self {
            let asks = learned.is_autodiff();
            Probe {
                learned: Param::initialized(param_id(name), learned.set_require_grad(asks)),
                tokens: None,
                map: None,
                weight: None,
                reads: None,
                reads_attention: None,
            }
        }
    }

    impl Act for Probe {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            match self.tokens {
                Some(act) => act(&self.learned.val(), x, ctx),
                None => x,
            }
        }

        fn map(&self, x: Tensor<4>, ctx: &mut Ctx) -> Tensor<4> {
            match self.map {
                Some(act) => act(&self.learned.val(), x, ctx),
                None => x,
            }
        }

        fn weight(&self, weight: Tensor<2>, _ctx: &Ctx) -> Tensor<2> {
            match self.weight {
                Some(act) => act(&self.learned.val(), weight),
                None => weight,
            }
        }

        fn weight_alone(&self) -> bool {
            self.weight.is_some()
        }

        fn reads(&self) -> Option<Site> {
            self.reads
        }

        fn reads_attention(&self) -> Option<AttentionPart> {
            self.reads_attention
        }
    }
}
