//! What a pickle builds: objects in one flat arena, which refer to one another by number.
//!
//! A pickle's memo lets two containers hold the same object, or one hold itself. Numbers express that without shared
//! pointers, and neither depth nor cycles can exhaust the call stack, not even when the objects are dropped.

use std::fmt;

use crate::tensors::DType;

/// The number of an object in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(pub(super) usize);

/// An object.
#[derive(Debug)]
pub(super) enum Node<'a> {
    /// `None`, bytes, a set or an enormous integer: kept as a place in its container.
    Other,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global<'a>),
    Storage(Storage<'a>),
    Tensor(View<'a>),
    /// An instance of a class that nothing here knows, or what calling a strange function would have given: a closed box
    /// with the name on it. Of what was put into it only the attributes are kept, as data.
    Opaque(Class<'a>, Option<Id>),
}

/// The Python objects a file may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global<'a> {
    /// `OrderedDict` or `defaultdict`.
    Dict,
    RebuildTensor,
    RebuildParameter,
    /// A tensor with a type of its own or with attributes.
    RebuildTyped,
    Storage(DType),
    /// Anything else. It is never looked up, imported or called.
    Foreign(Class<'a>),
}

/// The name of a Python class or function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class<'a> {
    pub(super) module: &'a str,
    pub(super) name: &'a str,
}

impl Class<'_> {
    /// Whether what it makes is a tensor of some other kind, or the numbers of one: sparse, quantised, complex.
    pub(super) fn is_tensor(self) -> bool {
        let named = self.name.starts_with("_rebuild")
            || self.name.ends_with("Storage")
            || self.name.ends_with("Tensor");
        named && self.module.starts_with("torch")
    }
}

/// Escaped and cut: this text comes from the file and goes to a terminal.
impl fmt::Display for Class<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.module.chars().chain(".".chars()).chain(self.name.chars());
        let escaped: String = text.flat_map(char::escape_default).take(100).collect();
        f.write_str(&escaped)
    }
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

    /// What stands under a string in a dict; the last of equal keys wins, as in Python.
    pub(super) fn item(&self, dict: Id, name: &str) -> Option<Id> {
        let named = |&&(key, _): &&(Id, Id)| matches!(self.node(key), Node::Str(s) if *s == name);
        self.dict(dict).iter().rev().find(named).map(|&(_, value)| value)
    }

    /// The dicts that stand under a string in a dict.
    pub(super) fn dicts(&self, dict: Id) -> impl Iterator<Item = (&'a str, Id)> {
        self.dict(dict)
            .iter()
            .filter_map(|&(key, value)| match (self.node(key), self.node(value)) {
                (Node::Str(name), Node::Dict(_)) => Some((*name, value)),
                _ => None,
            })
    }

    /// How many tensors with a name stand in a dict.
    pub(super) fn count_tensors(&self, dict: Id) -> usize {
        let is_named_tensor = |&&(key, value): &&(Id, Id)| {
            matches!(
                (self.node(key), self.node(value)),
                (Node::Str(_), Node::Tensor(_))
            )
        };
        self.dict(dict).iter().filter(is_named_tensor).count()
    }

    /// A dict's key for people.
    pub(super) fn key(&self, id: Id) -> String {
        match self.node(id) {
            Node::Str(s) => s.escape_default().take(100).collect(),
            Node::Int(i) => i.to_string(),
            _ => "?".to_owned(),
        }
    }

    /// A dict's item for people: its key and, of a closed box, what is written on it.
    pub(super) fn label(&self, key: Id, value: Id) -> String {
        match self.node(value) {
            Node::Opaque(class, _) | Node::Global(Global::Foreign(class)) => {
                format!("`{}` (Python's `{class}`)", self.key(key))
            }
            _ => format!("`{}`", self.key(key)),
        }
    }
}
