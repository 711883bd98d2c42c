//! What passes in and out of a block that is computed again, as one tensor.
//!
//! Such a block is a function of one tensor ([`recompute`](super::fused::recompute)). Mostly that is the value at the
//! stream's site alone, and nothing is copied. Where the stream holds tensors, or an op left outputs, these are joined to it,
//! so that their gradients flow as well.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::ctx::Ctx;
use super::stream::Stream;

/// How to take a packed tensor apart.
#[derive(Debug, Clone)]
pub(super) struct Form {
    x: [usize; 3],
    /// The stream without its tensors.
    stream: Stream,
    prompt_map: Option<[usize; 2]>,
    policy: Option<[usize; 2]>,
    sizes: Option<[usize; 2]>,
    outputs: Vec<(String, [usize; 2])>,
}

/// `x` `[batch, tokens, dim]`, the tensors of the stream and the outputs, as one.
pub(super) fn pack(
    x: Tensor<3>,
    stream: &Stream,
    outputs: &BTreeMap<String, Tensor<2>>,
) -> (Tensor<1>, Form) {
    let form = Form {
        x: x.dims(),
        stream: Stream {
            prompt_map: None,
            policy: None,
            sizes: None,
            ..stream.clone()
        },
        prompt_map: stream.prompt_map.as_ref().map(Tensor::dims),
        policy: stream.policy.as_ref().map(Tensor::dims),
        sizes: stream.sizes.as_ref().map(Tensor::dims),
        outputs: outputs.iter().map(|(name, x)| (name.clone(), x.dims())).collect(),
    };
    let mut parts = vec![flat(x)];
    let of_stream = [&stream.prompt_map, &stream.policy, &stream.sizes];
    let beside = of_stream.into_iter().flatten().chain(outputs.values());
    parts.extend(beside.cloned().map(flat));
    if parts.len() == 1 {
        (parts.remove(0), form)
    } else {
        if parts[0].is_autodiff() {
            parts = parts.into_iter().map(Tensor::autodiff).collect();
        }
        (Tensor::cat(parts, 0), form)
    }
}

impl Form {
    /// The value at the stream's site, `[batch, tokens, dim]`; the context receives the stream and the outputs.
    pub(super) fn unpack(&self, packed: Tensor<1>, ctx: &mut Ctx) -> Tensor<3> {
        let mut parts = Parts { packed, at: 0 };
        let x = parts.next(self.x);
        let prompt_map = self.prompt_map.map(|shape| parts.next(shape));
        let policy = self.policy.map(|shape| parts.next(shape));
        let sizes = self.sizes.map(|shape| parts.next(shape));
        ctx.stream = Stream {
            prompt_map,
            policy,
            sizes,
            ..self.stream.clone()
        };
        for (name, shape) in &self.outputs {
            ctx.outputs.insert(name.clone(), parts.next(*shape));
        }
        x
    }
}

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let len: usize = x.dims().iter().product();
    x.reshape([len])
}

struct Parts {
    packed: Tensor<1>,
    at: usize,
}

impl Parts {
    fn next<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let (from, len) = (self.at, shape.iter().product::<usize>());
        self.at += len;
        if len == self.packed.dims()[0] {
            return self.packed.clone().reshape(shape);
        }
        self.packed.clone().narrow(0, from, len).reshape(shape)
    }
}
