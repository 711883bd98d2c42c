//! Tokens brought into another order: some may be left out, and rows of zeros put between them.
//!
//! That is all that windows and patch merging do to a stream. As a segment it copies rows, forward and backward.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use vitesse_kernels::train;

use super::Compute;
use super::segment::{Gradient, Input, Segment, apply};

/// For each token that is wanted the one that it is, of those that are there; `None` for zeros.
pub(crate) type Order = Arc<[Option<usize>]>;

/// `x` `[batch, tokens, dim]` to `[batch, order, dim]`.
pub(crate) fn arrange(x: Tensor<3>, order: &Order, compute: Compute) -> Tensor<3> {
    let [batch, tokens, dim] = x.dims();
    let input = if compute.fused { Input::of(&x) } else { None };
    let Some(input) = input else {
        return composed(x, order);
    };
    let segment = Arrange {
        order: Arc::clone(order),
        tokens,
        dim,
    };
    apply(segment, [input], [batch, order.len(), dim])
}

fn composed(x: Tensor<3>, order: &Order) -> Tensor<3> {
    let [batch, tokens, dim] = x.dims();
    let device = x.device();
    // What is no token is the one after the last, which is zero.
    let indices: Vec<i64> = order.iter().map(|token| token.unwrap_or(tokens) as i64).collect();
    let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [order.len()]), &device);
    let x = if order.iter().any(Option::is_none) {
        Tensor::cat(vec![x, Tensor::zeros([batch, 1, dim], &device)], 1)
    } else {
        x
    };
    x.select(1, indices)
}

#[derive(Debug, Clone)]
struct Arrange {
    order: Order,
    tokens: usize,
    dim: usize,
}

impl Segment<1> for Arrange {
    const KEEPS: [bool; 1] = [false];
    type Saved = ();

    fn name(&self) -> String {
        "tokens in another order".into()
    }

    fn flops(&self, _: [&[f32]; 1], _: Option<[bool; 1]>) -> f64 {
        0.0
    }

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        (train::arrange(x, self.tokens, self.dim, &self.order), ())
    }

    fn backward(
        &self,
        _: [&[f32]; 1],
        _: &[f32],
        (): &(),
        grad: &[f32],
        [wanted]: [bool; 1],
    ) -> [Option<Gradient>; 1] {
        let found = || train::arrange_backward(grad, self.tokens, self.dim, &self.order);
        [wanted.then(|| Gradient::Values(found()))]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn rows_are_copied_and_their_gradients_come_back() {
        let order: Order = [Some(2), None, Some(0), Some(2)].into();
        let device = Device::flex().autodiff();
        for fused in [true, false] {
            let compute = Compute {
                fused,
                ..Compute::default()
            };
            let x = Tensor::<3>::from_data([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]], &device)
                .require_grad();
            let y = arrange(x.clone(), &order, compute);
            let values = |x: &Tensor<3>| x.clone().try_to_vec_as::<f32>().unwrap();
            assert_eq!(values(&y), [3.0, 0.0, 1.0, 3.0, 6.0, 0.0, 4.0, 6.0]);
            let weights = Tensor::<3>::from_data([[[1.0], [1.0], [10.0], [100.0]]], &device);
            let gradients = (y * weights).sum().backward();
            let grad = x.grad(&gradients).unwrap();
            assert_eq!(values(&grad), [10.0, 0.0, 101.0, 10.0, 0.0, 101.0]);
        }
    }
}
