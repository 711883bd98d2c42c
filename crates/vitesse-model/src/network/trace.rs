//! Traces: recording what passes chosen sites.

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor};

use crate::site::Site;

/// Which sites of which blocks to record, and what was recorded.
///
/// With [`Trace::with_gradients`] a zero leaf is added to every recorded value, so that the gradient of an
/// intermediate can be read after the backward pass.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    wanted: Wanted,
    gradients: bool,
    values: BTreeMap<(Site, Option<usize>), Value>,
    leaves: BTreeMap<(Site, Option<usize>), Value>,
}

#[derive(Debug, Clone, Default)]
enum Wanted {
    #[default]
    Nothing,
    Sites(Vec<Site>),
    Pairs(Vec<(Site, Option<usize>)>),
}

/// A recorded value.
#[derive(Debug, Clone)]
pub enum Value {
    /// `[batch, tokens, width]`
    Tokens(Tensor<3>),
    /// `[batch, heads, tokens, tokens]`
    Map(Tensor<4>),
}

impl Trace {
    /// Records the given sites in every block.
    pub fn sites(sites: impl Into<Vec<Site>>) -> Self {
        Trace {
            wanted: Wanted::Sites(sites.into()),
            ..Trace::default()
        }
    }

    /// Records the given sites of the given blocks.
    pub fn pairs(pairs: impl Into<Vec<(Site, Option<usize>)>>) -> Self {
        Trace {
            wanted: Wanted::Pairs(pairs.into()),
            ..Trace::default()
        }
    }

    /// Makes the gradients of the recorded values readable by [`Trace::gradient`]; needs an autodiff device.
    #[must_use]
    pub fn with_gradients(mut self) -> Self {
        self.gradients = true;
        self
    }

    /// Whether this site is recorded.
    pub fn wants(&self, site: Site, layer: Option<usize>) -> bool {
        match &self.wanted {
            Wanted::Nothing => false,
            Wanted::Sites(sites) => sites.contains(&site),
            Wanted::Pairs(pairs) => pairs.contains(&(site, layer)),
        }
    }

    /// Whether a site of this block is recorded.
    pub(super) fn wants_block(&self, layer: usize) -> bool {
        match &self.wanted {
            Wanted::Nothing => false,
            Wanted::Sites(sites) => sites.iter().any(|site| site.in_block()),
            Wanted::Pairs(pairs) => pairs.iter().any(|(_, at)| *at == Some(layer)),
        }
    }

    /// What passed `site` of `layer`.
    pub fn value(&self, site: Site, layer: Option<usize>) -> Option<&Value> {
        self.values.get(&(site, layer))
    }

    /// The token stream `[batch, tokens, width]` that passed `site` of `layer`.
    pub fn tokens(&self, site: Site, layer: Option<usize>) -> Option<Tensor<3>> {
        match self.values.get(&(site, layer))? {
            Value::Tokens(x) => Some(x.clone()),
            Value::Map(_) => None,
        }
    }

    /// The attention maps `[batch, heads, tokens, tokens]` that passed `site` of `layer`.
    pub fn map(&self, site: Site, layer: Option<usize>) -> Option<Tensor<4>> {
        match self.values.get(&(site, layer))? {
            Value::Map(x) => Some(x.clone()),
            Value::Tokens(_) => None,
        }
    }

    /// The gradient of the loss with respect to a recorded value, if it was recorded with gradients.
    pub fn gradient(&self, site: Site, layer: Option<usize>, gradients: &Gradients) -> Option<Value> {
        match self.leaves.get(&(site, layer))? {
            Value::Tokens(x) => x.grad(gradients).map(Value::Tokens),
            Value::Map(x) => x.grad(gradients).map(Value::Map),
        }
    }

    pub(super) fn record_tokens(&mut self, site: Site, layer: Option<usize>, x: Tensor<3>) -> Tensor<3> {
        if !self.wants(site, layer) {
            return x;
        }
        let (x, leaf) = self.tap(x);
        self.values.insert((site, layer), Value::Tokens(x.clone()));
        self.leaves
            .extend(leaf.map(|leaf| ((site, layer), Value::Tokens(leaf))));
        x
    }

    pub(super) fn record_map(&mut self, site: Site, layer: Option<usize>, x: Tensor<4>) -> Tensor<4> {
        if !self.wants(site, layer) {
            return x;
        }
        let (x, leaf) = self.tap(x);
        self.values.insert((site, layer), Value::Map(x.clone()));
        self.leaves
            .extend(leaf.map(|leaf| ((site, layer), Value::Map(leaf))));
        x
    }

    /// Adds a leaf of zeros when gradients are wanted: autodiff keeps gradients of leaves only.
    fn tap<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Option<Tensor<D>>) {
        if !self.gradients {
            return (x, None);
        }
        let leaf = x.zeros_like().detach().require_grad();
        (x + leaf.clone(), Some(leaf))
    }
}
