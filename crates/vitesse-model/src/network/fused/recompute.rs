//! Gradient checkpointing: a block keeps only its input, and is computed again in the backward pass.
//!
//! Method: Chen et al., *Training deep nets with sublinear memory cost*, 2016, with a block as the unit. The forward pass
//! runs outside the graph of gradients. In the backward pass the block is run once more on fresh leaves, in a graph of
//! its own, and what that graph finds is handed on: the input's gradient to the input's node, a parameter's to the
//! parameter's. Parameters are leaves, for which nobody waits, so they need not be parents of the step.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Shape, Tensor};

use super::segment::{contiguous, tensor, untracked};

/// `block(module, x)`, of which only `x` is kept for the backward pass, and what else it says the first time. `block` must
/// be a pure function of the two. Where nothing asks for a gradient, and on backends other than the CPU's, it is simply
/// computed.
pub(crate) fn recompute<M, S, F>(module: &M, x: Tensor<1>, block: F) -> (Tensor<1>, S)
where
    M: Module + Sync + 'static,
    F: Fn(&M, Tensor<1>) -> (Tensor<1>, S) + Send + Sync + 'static,
{
    let nodes = Nodes::of(module);
    let input = x
        .is_autodiff()
        .then(|| x.clone().try_into_primitive::<Autodiff<Flex>>().ok());
    let Some(input) = input.flatten() else {
        return block(module, x);
    };
    if !input.is_tracked() && nodes.any.is_none() {
        return block(module, x);
    }
    let module = module.valid();
    let (output, said) = block(&module, x.inner());
    let Ok(output) = output.try_into_primitive::<Flex>() else {
        // A block that begins on the CPU ends there.
        unreachable!("a block left its backend")
    };
    let (input, node) = input.into_parts();
    // The input may ask for no gradient while parameters do: then one of them keeps the step in the graph.
    let parents = [node, nodes.any.unwrap_or_else(untracked)];
    let kept = Kept {
        input,
        again: Again(Arc::new(move |call: Call<'_>| {
            gradients(module.clone(), |module, x| block(module, x).0, call)
        })),
        parameters: nodes.ids,
    };
    let output = match Step
        .prepare::<NoCheckpointing>(parents)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(step) => step.finish(kept, output),
        OpsKind::UnTracked(step) => step.finish(output),
    };
    (Tensor::from_primitive::<Autodiff<Flex>>(output), said)
}

/// What a second run of the block is given.
struct Call<'a> {
    input: FlexTensor,
    /// Whether the input's gradient is wanted.
    wanted: bool,
    /// The parameters whose gradients are.
    parameters: &'a HashMap<ParamId, NodeId>,
    /// The output's gradient.
    grad: FlexTensor,
}

/// What it finds.
struct Found {
    input: Option<FlexTensor>,
    parameters: Vec<(ParamId, FlexTensor)>,
}

/// Runs the block on fresh leaves and takes the output's gradient back through it.
fn gradients<M: Module>(module: M, block: impl Fn(&M, Tensor<1>) -> Tensor<1>, call: Call<'_>) -> Found {
    let module = module.map(&mut Leaves(call.parameters));
    let input = Tensor::<1>::from_primitive::<Flex>(call.input)
        .autodiff()
        .set_require_grad(call.wanted);
    let output = block(&module, input.clone());
    let mut found = seeded(output, call.grad).backward();
    let mut collect = Collect {
        gradients: &mut found,
        parameters: Vec::new(),
    };
    module.visit(&mut collect);
    let parameters = collect.parameters;
    Found {
        input: input.grad_remove(&mut found).and_then(primitive),
        parameters,
    }
}

/// A number whose gradient with respect to `output` is `grad`.
fn seeded(output: Tensor<1>, grad: FlexTensor) -> Tensor<1> {
    #[derive(Debug)]
    struct Seed;
    impl Backward<Flex, 1> for Seed {
        type State = FlexTensor;
        fn backward(self, ops: Ops<FlexTensor, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
            if let [Some(parent)] = ops.parents {
                gradients.register::<Flex>(parent.id, ops.state);
            }
        }
    }
    let Ok(output) = output.try_into_primitive::<Autodiff<Flex>>() else {
        unreachable!("a block left its backend")
    };
    let zero = tensor(vec![0.0], Shape::from([1]));
    let seed = match Seed
        .prepare::<NoCheckpointing>([output.node()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(step) => step.finish(grad, zero),
        OpsKind::UnTracked(step) => step.finish(zero),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(seed)
}

/// The step of a block in the backward pass; its parents are the input and, where there is one, a trained parameter.
#[derive(Debug)]
struct Step;

#[derive(Clone)]
struct Again(Arc<dyn Fn(Call<'_>) -> Found + Send + Sync>);

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block")
    }
}

#[derive(Debug, Clone)]
struct Kept {
    input: FlexTensor,
    again: Again,
    parameters: HashMap<ParamId, NodeId>,
}

impl Backward<Flex, 2> for Step {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [input, _] = ops.parents;
        let Kept {
            input: values,
            again: Again(again),
            parameters,
        } = ops.state;
        let found = again(Call {
            input: values,
            wanted: input.is_some(),
            parameters: &parameters,
            grad: contiguous(gradients.consume::<Flex>(&ops.node)),
        });
        if let (Some(input), Some(gradient)) = (input, found.input) {
            gradients.register::<Flex>(input.id, gradient);
        }
        for (id, gradient) in found.parameters {
            if let Some(node) = parameters.get(&id) {
                gradients.register::<Flex>(*node, gradient);
            }
        }
    }
}

/// The nodes of the parameters that ask for gradients.
#[derive(Default)]
struct Nodes {
    ids: HashMap<ParamId, NodeId>,
    any: Option<NodeGuard>,
}

impl Nodes {
    fn of<M: Module>(module: &M) -> Nodes {
        let mut nodes = Nodes::default();
        module.visit(&mut nodes);
        nodes
    }
}

impl ModuleVisitor for Nodes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if !value.is_tracked() {
            return;
        }
        if let Ok(value) = value.try_into_primitive::<Autodiff<Flex>>() {
            self.ids.insert(param.id, value.id());
            self.any.get_or_insert_with(|| value.node());
        }
    }
}

/// Puts every parameter at the root of a graph of its own; these ask for gradients.
struct Leaves<'a>(&'a HashMap<ParamId, NodeId>);

impl ModuleMapper for Leaves<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let wanted = self.0.contains_key(&param.id);
        param.map(|value| value.autodiff().set_require_grad(wanted))
    }
}

struct Collect<'a> {
    gradients: &'a mut burn::tensor::Gradients,
    parameters: Vec<(ParamId, FlexTensor)>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad_remove(self.gradients).and_then(primitive);
        self.parameters
            .extend(gradient.map(|gradient| (param.id, gradient)));
    }
}

fn primitive<const D: usize>(x: Tensor<D>) -> Option<FlexTensor> {
    x.try_into_primitive::<Flex>().ok()
}
