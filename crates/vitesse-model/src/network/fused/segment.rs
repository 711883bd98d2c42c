//! What all segments share: the way from tensors to slices and back, and the place in the graph of gradients.
//!
//! Burn's dispatch is stepped around here: a tensor on the CPU is taken apart into its values and its node, the kernels
//! compute on slices, and the result is a tensor again, whose node knows how to compute the gradients of those inputs
//! that ask for one.

use std::array;
use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor, TensorData};

use crate::network::profile::{self, Cost};

/// A differentiable function of `N` tensors on slices. An input that is absent is empty.
pub(super) trait Segment<const N: usize>: Clone + Debug + Send + 'static {
    /// Of which inputs the backward pass needs the values.
    const KEEPS: [bool; N];
    /// Whether it needs the output's.
    const KEEPS_OUTPUT: bool = false;
    /// What else it needs.
    type Saved: Clone + Debug + Send + 'static;

    /// What profiles call it.
    fn name(&self) -> String;

    /// Operations in its products, of the forward pass or, where gradients are `wanted`, of the backward pass. The same
    /// inputs are there as in that pass.
    fn flops(&self, inputs: [&[f32]; N], wanted: Option<[bool; N]>) -> f64;

    /// The output's values.
    fn forward(&self, inputs: [&[f32]; N]) -> (Vec<f32>, Self::Saved);

    /// The gradients of the inputs that `wanted` names, from the output's. What is not kept is empty.
    fn backward(
        &self,
        inputs: [&[f32]; N],
        output: &[f32],
        saved: &Self::Saved,
        grad: &[f32],
        wanted: [bool; N],
    ) -> [Option<Gradient>; N];
}

/// The gradient of an input.
pub(super) enum Gradient {
    /// These values.
    Values(Vec<f32>),
    /// The output's own, for an input that was added to it.
    OfOutput,
}

/// A tensor as a segment takes it: its values in one piece, and its place in the graph if it has one.
pub(super) struct Input {
    values: FlexTensor,
    node: Option<NodeGuard>,
    tracked: bool,
}

impl Input {
    /// `None` for a tensor that is not in this machine's memory, or not in `f32`.
    pub(super) fn of<const D: usize>(x: &Tensor<D>) -> Option<Input> {
        if x.dtype() != DType::F32 {
            return None;
        }
        if !x.is_autodiff() {
            let values = x.clone().try_into_primitive::<Flex>().ok()?;
            return Some(Input {
                values: contiguous(values),
                node: None,
                tracked: false,
            });
        }
        let tensor = x.clone().try_into_primitive::<Autodiff<Flex>>().ok()?;
        let tracked = tensor.is_tracked();
        let (values, node) = tensor.into_parts();
        Some(Input {
            values: contiguous(values),
            node: Some(node),
            tracked,
        })
    }

    /// The same for an input that may be absent.
    pub(super) fn of_option<const D: usize>(x: Option<&Tensor<D>>) -> Option<Input> {
        match x {
            Some(x) => Input::of(x),
            None => Some(Input {
                values: absent(),
                node: None,
                tracked: false,
            }),
        }
    }
}

/// The segment's output, of shape `shape`. Where no input asks for a gradient, nothing is kept.
pub(super) fn apply<S: Segment<N>, const N: usize, const D: usize>(
    segment: S,
    inputs: [Input; N],
    shape: [usize; D],
) -> Tensor<D> {
    #[cfg(test)]
    log::add(std::any::type_name::<S>());
    let values = inputs.each_ref().map(|input| slice(&input.values));
    let (output, saved) = profile::span(
        || segment.forward(values),
        |(output, _)| cost(&segment, values, None, output.len()),
    );
    let output = tensor(output, Shape::from(shape));
    if !inputs.iter().any(|input| input.tracked) {
        let in_graph = inputs.iter().any(|input| input.node.is_some());
        let output = Tensor::from_primitive::<Flex>(output);
        return if in_graph { output.autodiff() } else { output };
    }
    let kept = Kept {
        segment,
        shapes: inputs.each_ref().map(|input| input.values.shape()),
        inputs: array::from_fn(|i| {
            if S::KEEPS[i] {
                inputs[i].values.clone()
            } else {
                absent()
            }
        }),
        output: S::KEEPS_OUTPUT.then(|| output.clone()),
        saved,
    };
    let nodes = inputs.map(|input| input.node.unwrap_or_else(untracked));
    let output = match Step::<S>(PhantomData)
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(step) => step.finish(kept, output),
        OpsKind::UnTracked(step) => step.finish(output),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// A segment's step in the backward pass.
#[derive(Debug)]
struct Step<S>(PhantomData<S>);

/// What waits for it.
#[derive(Debug, Clone)]
struct Kept<S: Segment<N>, const N: usize> {
    segment: S,
    shapes: [Shape; N],
    inputs: [FlexTensor; N],
    output: Option<FlexTensor>,
    saved: S::Saved,
}

impl<S: Segment<N>, const N: usize> Backward<Flex, N> for Step<S> {
    type State = Kept<S, N>;

    fn backward(self, ops: Ops<Kept<S, N>, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let kept = ops.state;
        let grad = contiguous(gradients.consume::<Flex>(&ops.node));
        let inputs = kept.inputs.each_ref().map(slice);
        let output = kept.output.as_ref().map(slice).unwrap_or_default();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = profile::span(
            || {
                let Kept { segment, saved, .. } = &kept;
                segment.backward(inputs, output, saved, slice(&grad), wanted)
            },
            |found| {
                let gradients = found.iter().flatten().map(|found| match found {
                    Gradient::Values(values) => values.len(),
                    Gradient::OfOutput => 0,
                });
                let others = output.len() + slice(&grad).len() + gradients.sum::<usize>();
                cost(&kept.segment, inputs, Some(wanted), others)
            },
        );
        for ((parent, shape), found) in ops.parents.into_iter().zip(kept.shapes).zip(found) {
            if let (Some(parent), Some(found)) = (parent, found) {
                let found = match found {
                    Gradient::Values(values) => tensor(values, shape),
                    Gradient::OfOutput => grad.clone(),
                };
                gradients.register::<Flex>(parent.id, found);
            }
        }
    }
}

/// A segment in the profile; it reads its inputs, and reads or writes so many `other` numbers.
fn cost<S: Segment<N>, const N: usize>(
    segment: &S,
    inputs: [&[f32]; N],
    wanted: Option<[bool; N]>,
    others: usize,
) -> (String, Cost) {
    let numbers = others + inputs.iter().map(|input| input.len()).sum::<usize>();
    let cost = Cost {
        flops: segment.flops(inputs, wanted),
        bytes: (numbers * size_of::<f32>()) as f64,
    };
    (segment.name(), cost)
}

fn absent() -> FlexTensor {
    tensor(Vec::new(), Shape::from([0]))
}

/// A node that asks for no gradient, for inputs that have none of their own.
pub(super) fn untracked() -> NodeGuard {
    FloatTensor::<Autodiff<Flex>>::new(absent()).node()
}

/// A tensor that takes over `values`.
pub(super) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The same values in one piece, row by row.
pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() {
        x
    } else {
        x.to_contiguous()
    }
}

fn slice(x: &FlexTensor) -> &[f32] {
    // Every tensor here went through `contiguous` or `tensor`.
    x.as_slice().unwrap_or_default()
}

/// Which segments ran on this thread, so that tests can say where the network is fused.
#[cfg(test)]
pub(in crate::network) mod log {
    use std::cell::RefCell;

    thread_local! {
        static NAMES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn add(name: &str) {
        let name = name.rsplit("::").next().unwrap_or(name);
        NAMES.with_borrow_mut(|names| names.push(name.to_owned()));
    }

    /// The names since the last call, in order.
    pub(in crate::network) fn take() -> Vec<String> {
        NAMES.take()
    }
}
