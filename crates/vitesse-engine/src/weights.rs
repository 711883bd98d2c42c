//! The right operand of every product: packed weights in some number format, and what follows the product.
//!
//! [`Weights::prepare`] and [`Weights::multiply`] are the only places that know the formats. A new one is a variant here.

use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::{
    Gelu, Isa, Left, Linear, Norm, Packed, Panels, Quantized, Real, Weight, linear, linear_add, linear_gelu,
    quantize,
};

/// A vector in panels, zero past the last element of each.
pub(crate) type Rows = Vec<[f32; 32]>;

/// The values `f(n)` of the columns of each panel.
pub(crate) fn rows(columns: &[Range<usize>], f: impl Fn(usize) -> f32) -> Rows {
    columns
        .iter()
        .map(|columns| {
            let mut row = [0.0; 32];
            row.iter_mut().zip(columns.clone()).for_each(|(to, n)| *to = f(n));
            row
        })
        .collect()
}

/// In what numbers the weights of a projection are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Those of the activations: `f32` or bf16.
    Real,
    /// 8-bit integers, which are multiplied with rows rounded to 8 bits.
    Int8,
}

/// The weights `[outputs, inputs]` of a linear layer, packed.
#[derive(Debug)]
pub(crate) struct Weights<T: Real> {
    inputs: usize,
    /// Outputs of each panel.
    widths: Vec<usize>,
    bytes: usize,
    packed: Kind<T>,
}

#[derive(Debug)]
enum Kind<T: Real> {
    Real(Packed<T>),
    Int8(Packed<u8>),
}

/// What becomes of a product.
pub(crate) enum Then<'a, U: Real> {
    /// The outputs of these panels become the panels of a matrix from 0 on.
    Store(Range<usize>, &'a mut Panels<U>),
    /// The GELU of all outputs, then a scale and a shift where they are given.
    Gelu(Gelu, Option<&'a (Rows, Rows)>, &'a mut Panels<U>),
    /// All outputs are added to the rows of `x` from `first` on, where `into` is given to these of its channels.
    Add {
        into: Option<&'a [usize]>,
        x: &'a mut Panels<f32>,
        first: usize,
    },
}

impl<U: Real> Then<'_, U> {
    fn of<A: Left>(self, isa: Isa, a: &A, rows: Range<usize>, of: Linear<'_, A::Weight>) {
        match self {
            Then::Store(panels, out) => linear(isa, a, rows, of, panels, out),
            Then::Gelu(form, after, out) => {
                let after = after.map(|(scale, shift)| (&scale[..], &shift[..]));
                linear_gelu(isa, a, rows, of, (form, after), out);
            }
            Then::Add { into, x, first } => linear_add(isa, a, rows, of, into, x, first),
        }
    }
}

impl<T: Real> Weights<T> {
    /// Packs weights `[outputs, inputs]`: `columns` are the outputs of each panel, `depths` the inputs of each panel of the
    /// left operand.
    pub(crate) fn pack(
        format: Format,
        weights: &[f32],
        inputs: usize,
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Self {
        let row = |n: usize| &weights[n * inputs..(n + 1) * inputs];
        let (packed, bytes) = match format {
            Format::Real => {
                let packed = T::pack(&row, columns, depths);
                let bytes = packed.bytes();
                (Kind::Real(packed), bytes)
            }
            Format::Int8 => {
                let packed = u8::pack(&row, columns, depths);
                let bytes = packed.bytes();
                (Kind::Int8(packed), bytes)
            }
        };
        Weights {
            inputs,
            widths: columns.iter().map(Range::len).collect(),
            bytes,
            packed,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the left operand ready for [`Weights::multiply`]: all of its rows in 8 bits, where the weights are.
    fn prepare(&self, isa: Isa, operand: &Panels<T>, quantized: &mut Quantized) {
        if let Kind::Int8(_) = self.packed {
            quantized.reshape(operand.rows(), operand.panels().div_ceil(2));
            quantize(isa, operand, 0..operand.rows(), quantized);
        }
    }

    /// The product of some rows of a prepared operand with the weights, and what becomes of it.
    fn multiply<U: Real>(
        &self,
        isa: Isa,
        (operand, quantized): (&Panels<T>, &Quantized),
        rows: Range<usize>,
        outputs: &Outputs,
        then: Then<'_, U>,
    ) {
        match &self.packed {
            Kind::Real(packed) => then.of(isa, operand, rows, outputs.of(packed)),
            Kind::Int8(packed) => then.of(isa, quantized, rows, outputs.of(packed)),
        }
    }
}

/// What follows a product: a scale (`None` for 1) and a bias for each output.
#[derive(Debug)]
pub(crate) struct Outputs {
    scale: Option<Rows>,
    bias: Rows,
}

impl Outputs {
    /// For outputs that lie in panels as `columns` says.
    pub(crate) fn new(
        columns: &[Range<usize>],
        scale: impl Fn(usize) -> f32,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let scales = rows(columns, &scale);
        let ones = columns
            .iter()
            .all(|columns| columns.clone().all(|n| scale(n) == 1.0));
        Outputs {
            scale: (!ones).then_some(scales),
            bias: rows(columns, bias),
        }
    }

    fn of<'a, W: Weight>(&'a self, weights: &'a Packed<W>) -> Linear<'a, W> {
        Linear {
            weights,
            scale: self.scale.as_deref(),
            bias: &self.bias,
        }
    }
}

/// A linear layer. Layers that share their matrices share the weights; what follows them is each one's own.
#[derive(Debug)]
pub(crate) struct Product<T: Real> {
    pub(crate) weights: Arc<Weights<T>>,
    pub(crate) outputs: Outputs,
    /// What makes more inputs beside its own: `W x + s·B (A x) = [W | s·B] [x ; A x]`, so that one product, with whatever is
    /// fused to it, does both.
    pub(crate) beside: Option<Box<Product<T>>>,
}

/// The memory of one thread for the operands of products.
#[derive(Debug)]
pub(crate) struct Operands<T: Real> {
    quantized: Quantized,
    /// More inputs, and the input with these beside it.
    more: Panels<T>,
    beside: Panels<T>,
}

impl<T: Real> Operands<T> {
    pub(crate) fn new() -> Self {
        Operands {
            quantized: Quantized::zeros(0, 0),
            more: Panels::zeros(0, 0),
            beside: Panels::zeros(0, 0),
        }
    }
}

impl<T: Real> Product<T> {
    /// Panels of outputs.
    pub(crate) fn panels(&self) -> usize {
        self.weights.widths.len()
    }

    /// Makes an operand ready to be multiplied: with more inputs beside it, and in the weights' format.
    pub(crate) fn prepare(&self, isa: Isa, operand: &mut Panels<T>, room: &mut Operands<T>) {
        if let Some(down) = &self.beside {
            let (rows, panels) = (operand.rows(), operand.panels());
            room.more.reshape(rows, down.panels());
            let then = Then::Store(0..down.panels(), &mut room.more);
            let left = (&*operand, &room.quantized);
            down.weights.multiply(isa, left, 0..rows, &down.outputs, then);
            room.beside.reshape(rows, panels + down.panels());
            for panel in 0..panels {
                room.beside.panel_mut(panel).copy_from_slice(operand.panel(panel));
            }
            for panel in 0..down.panels() {
                let to = room.beside.panel_mut(panels + panel);
                to.copy_from_slice(room.more.panel(panel));
            }
            std::mem::swap(&mut room.beside, operand);
        }
        self.weights.prepare(isa, operand, &mut room.quantized);
    }

    /// The product of some rows of an operand, and what becomes of it. [`Product::prepare`] comes first; after that nothing
    /// else may be prepared until here.
    pub(crate) fn multiply<U: Real>(
        &self,
        isa: Isa,
        operand: &Panels<T>,
        room: &Operands<T>,
        rows: Range<usize>,
        then: Then<'_, U>,
    ) {
        let left = (operand, &room.quantized);
        self.weights.multiply(isa, left, rows, &self.outputs, then);
    }

    /// The packed weights, those of more inputs too.
    pub(crate) fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        let more = self.beside.iter().map(|down| &down.weights);
        std::iter::once(&self.weights).chain(more).collect()
    }

    /// Multiply-accumulates of one row for the outputs of some panels.
    pub(crate) fn macs(&self, panels: Range<usize>) -> usize {
        self.weights.inputs * self.weights.widths[panels].iter().sum::<usize>()
    }

    /// Multiply-accumulates of one row that is prepared.
    pub(crate) fn macs_beside(&self) -> usize {
        self.beside.as_ref().map_or(0, |down| down.macs(0..down.panels()))
    }

    /// All of it.
    pub(crate) fn macs_of_row(&self) -> usize {
        self.macs(0..self.panels()) + self.macs_beside()
    }

    /// How many outputs some panels have.
    pub(crate) fn columns(&self, panels: Range<usize>) -> usize {
        self.weights.widths[panels].iter().sum()
    }

    /// Its shape, and what is particular about it.
    pub(crate) fn describe(&self) -> String {
        let outputs = self.columns(0..self.panels());
        let mut text = format!("{} to {outputs}", self.weights.inputs);
        if let Kind::Int8(_) = self.weights.packed {
            text += ", int8";
        }
        if self.outputs.scale.is_some() {
            text += ", scaled";
        }
        if let Some(down) = &self.beside {
            text += &format!(", low-rank update of {}", down.columns(0..down.panels()));
        }
        text
    }
}

/// A layer norm's vectors.
#[derive(Debug)]
pub(crate) struct NormRows {
    pub(crate) gain: Rows,
    pub(crate) bias: Rows,
    pub(crate) eps: f32,
    pub(crate) dim: usize,
}

impl NormRows {
    pub(crate) fn norm(&self) -> Norm<'_> {
        Norm {
            gain: &self.gain,
            bias: &self.bias,
            eps: self.eps,
            dim: self.dim,
        }
    }
}
