//! What each half of a block loses by every width it may be cut to, measured on images without labels: the sweep of optimal brain surgery, over
//! all halves of the dense model.

use burn::tensor::{Device, Tensor};
use vitesse_model::network::{Ctx, Network, Trace};
use vitesse_model::{ModelSpec, Site, Tensors};

use super::budget::Elimination;
use super::correct::{enough, spread};
use super::eliminate::{Sweep, sweep};
use super::halves::Half;
use super::moments::{Map, Moments};
use super::streams::Streams;
use super::units::{Axis, Group, Kind, unshared};
use crate::{Error, Result};

/// The elimination of every one of `groups`, whose units are what `proj` or `fc2` reads: heads, dimensions of values, hidden units. Damage is
/// what the corrected half writes is off by, as a share of the mean square of the stream that it is added to. `damping` is a share of the mean variance of an input; `between` is told which block is next.
///
/// # Errors
/// Other units; blocks that share matrices; images that do not fit the model; what `images` and `between` say.
pub fn eliminations<E: From<Error>>(
    spec: &ModelSpec,
    tensors: &Tensors,
    groups: &[&Group],
    damping: f64,
    images: impl IntoIterator<Item = std::result::Result<Tensor<4>, E>>,
    mut between: impl FnMut(usize) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<Elimination>, E> {
    let body = unshared(spec)?;
    let network = Network::new(spec, tensors, "the model", &Device::flex()).map_err(Error::from)?;
    let mut streams = Streams::new()?;
    for images in images {
        let x = network.embed(images?, &mut Ctx::eval()).map_err(Error::from)?;
        streams.push(&x)?;
    }
    enough(spec, streams.images())?;
    let mut out = Vec::new();
    for layer in 0..body.layers().len() {
        between(layer)?;
        let found = walk(&network, layer, &mut streams)?;
        for group in groups.iter().filter(|group| group.id.core == Some(layer)) {
            out.push(eliminate(tensors, group, &found, damping)?);
        }
    }
    Ok(out)
}

/// What a half of a block saw.
struct Seen {
    moments: Moments,
    /// The mean square of the stream that it adds to, around each token's mean: what the next norm divides by.
    stream: f64,
}

/// Takes all streams through a block, and looks at both halves.
fn walk(network: &Network, layer: usize, streams: &mut Streams) -> Result<[Option<Seen>; 2]> {
    let body = network.spec().transformer()?;
    let mut seen = Half::BOTH.map(|half| {
        let (inputs, _) = half.of(body, layer)?;
        Some(Seen {
            moments: Moments::new(inputs, body.dim(layer)),
            stream: 0.0,
        })
    });
    let wanted: Vec<_> = [Site::BlockIn]
        .into_iter()
        .chain(Half::BOTH.iter().flat_map(|half| half.sites()))
        .map(|site| (site, Some(layer)))
        .collect();
    for batch in 0..streams.len() {
        let mut ctx = Ctx::tracing(Trace::pairs(wanted.clone()));
        let after = network.block(layer, streams.get(batch)?, &mut ctx)?;
        // A stage of a Swin begins by merging patches, so that this is not what entered.
        let mut stream = ctx.trace.tokens(Site::BlockIn, Some(layer));
        for (half, seen) in Half::BOTH.into_iter().zip(&mut seen) {
            let [_, written] = half.sites();
            let (Some(seen), Some(x), Some(y)) = (
                seen,
                half.read(body, layer, &ctx),
                ctx.trace.tokens(written, Some(layer)),
            ) else {
                continue;
            };
            seen.moments.add(x, y.clone());
            stream = stream.map(|stream| stream + y);
            seen.stream += stream.as_ref().map_or(0.0, spread);
        }
        streams.put(batch, &after)?;
    }
    let tokens = streams.tokens() as f64;
    seen.iter_mut().flatten().for_each(|seen| seen.stream /= tokens);
    Ok(seen)
}

fn eliminate(
    tensors: &Tensors,
    group: &Group,
    seen: &[Option<Seen>; 2],
    damping: f64,
) -> Result<Elimination> {
    let refused = || {
        Error::Unsuited(format!(
            "units of `{}` are not what `proj` or `fc2` reads, so nothing makes good for them; choose heads, dimensions of values or \
             hidden units",
            group.id
        ))
    };
    if group.id.kind == Kind::Embed {
        return Err(refused());
    }
    let member = group
        .members
        .iter()
        .find(|member| member.axis == Axis::In)
        .ok_or_else(refused)?;
    let mut halves = Half::BOTH.into_iter().zip(seen);
    let (_, seen) = halves
        .find(|(half, _)| member.module.ends_with(half.projection()))
        .ok_or_else(refused)?;
    let seen = seen.as_ref().ok_or_else(refused)?;
    let weight = Map::of(tensors, &member.module)?.weight;
    seen.moments.check(&member.module)?;
    let found = sweep(&seen.moments, &weight, &member.places, damping);
    // Inputs that never move are worth nothing, in any order.
    let Sweep { order, damage } = found.unwrap_or_else(|| Sweep {
        order: (0..group.units).collect(),
        damage: vec![0.0; group.units + 1],
    });
    let share = |damage: f64| damage / seen.stream.max(f64::MIN_POSITIVE);
    Ok(Elimination {
        group: group.id,
        order,
        damage: damage.into_iter().map(share).collect(),
    })
}
