//! What a pickle builds: objects in one flat arena, which refer to one another by number.
//!
//! A pickle's memo lets two containers hold the same object, or one hold itself. Numbers express that without shared
//! pointers, and neither depth nor cycles can exhaust the call stack, not even when the objects are dropped.

use crate::tensors::DType;

/// The number of an object in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(pub(super) usize);

/// An object.
#[derive(Debug)]
pub(super) enum Node<'a> {
    /// `None`, a float or an enormous integer: kept as a place in its container.
    Other,
    Bool(bool),
    Int(i64),
    Str(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(View<'a>),
}

/// The Python objects a file may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(DType),
}

/// A run of numbers that tensors are views of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub(super) dtype: DType,
    pub(super) key: &'a str,
    /// Numbers in it.
    pub(super) len: usize,
}

/// A tensor as a view of a storage; offset and strides count numbers.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// What a pickle builds.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    /// The object it leaves.
    pub(super) root: Id,
    /// The bytes it took.
    pub(super) len: usize,
}

impl<'a> Pickle<'a> {
    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id.0).unwrap_or(&Node::Other)
    }

    /// The items of a dict, and none of anything else.
    pub(super) fn dict(&self, id: Id) -> &[(Id, Id)] {
        match self.node(id) {
            Node::Dict(items) => items,
            _ => &[],
        }
    }

    /// The strings of a list, and none of anything else.
    pub(super) fn strings(&self, id: Id) -> Vec<&'a str> {
        let Node::List(items) = self.node(id) else {
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|&item| {
                if let Node::Str(s) = self.node(item) {
                    Some(*s)
                } else {
                    None
                }
            })
            .collect()
    }

    /// Every storage that is mentioned.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.nodes.iter().filter_map(|node| {
            if let Node::Storage(storage) = node {
                Some(storage)
            } else {
                None
            }
        })
    }

    /// A dict's key for people.
    pub(super) fn key(&self, id: Id) -> String {
        match self.node(id) {
            Node::Str(s) => (*s).to_owned(),
            Node::Int(i) => i.to_string(),
            _ => "?".to_owned(),
        }
    }
}
