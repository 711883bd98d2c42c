//! The two halves of a block: attention and the perceptron, each of which ends in a projection that adds to the stream.

use burn::tensor::{Int, Tensor, TensorData};
use vitesse_model::Site;
use vitesse_model::network::Ctx;
use vitesse_model::spec::Transformer;

/// The two halves of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Attn,
    Mlp,
}

impl Half {
    pub(super) const BOTH: [Half; 2] = [Half::Attn, Half::Mlp];

    /// The stream before the half and after it.
    pub(super) fn stream(self) -> [Site; 2] {
        match self {
            Half::Attn => [Site::BlockIn, Site::Mid],
            Half::Mlp => [Site::Mid, Site::BlockOut],
        }
    }

    /// What its projection reads, and what the half adds to the stream.
    pub(super) fn sites(self) -> [Site; 2] {
        match self {
            Half::Attn => [Site::AttnHeads, Site::AttnOut],
            Half::Mlp => [Site::MlpHidden, Site::MlpOut],
        }
    }

    pub(super) fn projection(self) -> &'static str {
        match self {
            Half::Attn => "attn.proj",
            Half::Mlp => "mlp.fc2",
        }
    }

    /// What its projection read of the tokens in a layer that `ctx` has traced, `[batch, tokens, inputs]` in the order of the stream.
    pub(super) fn read(self, body: Transformer<'_>, layer: usize, ctx: &Ctx) -> Option<Tensor<3>> {
        let [site, _] = self.sites();
        let read = ctx.trace.tokens(site, Some(layer))?;
        Some(match self {
            Half::Attn => unite(read, body, layer),
            Half::Mlp => read,
        })
    }

    /// Of a layer that has this half: the inputs of its projection, and the channels that it writes.
    pub(super) fn of(self, body: Transformer<'_>, layer: usize) -> Option<(usize, Option<&[usize]>)> {
        let block = body.block(layer)?;
        match self {
            Half::Attn => block
                .attn
                .as_ref()
                .map(|attn| (attn.v_width(), attn.out_idx.as_deref())),
            Half::Mlp => block.mlp.as_ref().map(|mlp| (mlp.hidden, mlp.out_idx.as_deref())),
        }
    }
}

/// What passes the heads of a layer, `[batch · windows, tokens of a window, inputs]`, as `[batch, tokens, inputs]` in the order of the stream,
/// without the tokens with which the map was filled up; the same where there are no windows.
fn unite(heads: Tensor<3>, body: Transformer<'_>, layer: usize) -> Tensor<3> {
    let Some(windows) = body.windows(layer) else {
        return heads;
    };
    let [all, area, width] = heads.dims();
    let count = windows.count().max(1);
    let places: Vec<i64> = windows.windowed().into_iter().map(|place| place as i64).collect();
    let tokens = places.len();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [tokens]), &heads.device());
    heads
        .reshape([all / count, count * area, width])
        .select(1, places)
}
