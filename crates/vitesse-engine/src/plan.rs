//! A model ready to run: a list of steps.
//!
//! Each step runs itself, describes itself, and counts its multiply-accumulates and its packed weights. The forward pass,
//! the outline, the profile and all counting walk the same list. A step is as large as what runs fused; a group of steps
//! that a few rows at a time pass is a step too ([`ByRows`](crate::steps::ByRows)).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use vitesse_kernels::Real;

use crate::member::Member;
use crate::profile::Stage;
use crate::team::Run;
use crate::weights::Weights;

/// One step of the forward pass of an image.
pub(crate) trait Step<T: Real>: fmt::Debug + Send + Sync {
    /// Does one thread's part of it.
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>);

    /// What it does, with its shapes.
    fn describe(&self) -> String;

    /// Its multiply-accumulates for one image, of which `counts` tells how many rows there are; a step that changes their
    /// number says so there. What rows and columns are filled up with is not counted.
    fn macs(&self, _counts: &mut Counts) -> usize {
        0
    }

    /// The packed weights that it reads.
    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        Vec::new()
    }

    /// The steps inside it.
    fn inner(&self) -> &[Placed<T>] {
        &[]
    }
}

/// How many rows of an image there are, followed from step to step.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Tokens in the stream.
    pub(crate) tokens: usize,
    /// Keys and values that are known.
    pub(crate) keys: usize,
}

/// A step and where it belongs.
#[derive(Debug)]
pub(crate) struct Placed<T: Real> {
    /// `None` before the first layer and after the last.
    pub(crate) layer: Option<usize>,
    pub(crate) stage: Stage,
    pub(crate) step: Box<dyn Step<T>>,
}

impl<T: Real> Placed<T> {
    pub(crate) fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        self.step.run(on, run);
        on.clock.mark(self.layer, self.stage);
    }
}

/// A model ready to run. Activations between layers are of type `T`; the residual stream is always `f32`.
#[derive(Debug)]
pub(crate) struct Plan<T: Real> {
    pub(crate) steps: Vec<Placed<T>>,
    /// Numbers of an image.
    pub(crate) pixels: usize,
    /// Tokens that the patches and what stands before them become.
    pub(crate) tokens: usize,
    /// Layers, of which each has its line in a profile.
    pub(crate) layers: usize,
    /// Vectors that an image becomes, and their width; its maps are one.
    pub(crate) answers: [usize; 2],
}

impl<T: Real> Plan<T> {
    /// One thread's part of an image. The first thread appends the result.
    pub(crate) fn forward(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        for step in &self.steps {
            step.run(on, run);
        }
    }

    /// Every step, also those inside others.
    fn walk(&self) -> impl Iterator<Item = &Placed<T>> {
        self.steps
            .iter()
            .flat_map(|placed| std::iter::once(placed).chain(placed.step.inner()))
    }

    /// What is done for an image, a line a step.
    pub(crate) fn outline(&self) -> Vec<String> {
        let line = |placed: &Placed<T>| {
            let text = placed.step.describe();
            match placed.layer {
                Some(layer) => format!("block {layer}: {text}"),
                None => text,
            }
        };
        self.walk().map(line).collect()
    }

    /// Multiply-accumulates for one image.
    pub(crate) fn macs(&self) -> u64 {
        let mut counts = Counts::default();
        let each = self.walk().map(|placed| placed.step.macs(&mut counts) as u64);
        each.sum()
    }

    /// Bytes of packed weights; those that several steps read count once.
    pub(crate) fn bytes(&self) -> usize {
        let mut seen = HashSet::new();
        let all = self.walk().flat_map(|placed| placed.step.weights());
        let once = all.filter(|weights| seen.insert(Arc::as_ptr(weights)));
        once.map(|weights| weights.bytes()).sum()
    }
}
