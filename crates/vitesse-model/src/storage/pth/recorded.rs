//! What a training program wrote down of itself, beside the weights.
//!
//! timm's and DeiT's put their arguments there, an `argparse.Namespace` under `args`, and timm the name of the architecture
//! under `arch`. Plain values are taken over as JSON, everything else is left out.

use serde_json::{Map, Value};

use super::object::{Id, Node, Pickle};

/// How deep lists of lists go, and how many values there are altogether. A pickle can put one list into a list twice, and
/// so on, which would make few objects endlessly many values.
const MAX_DEPTH: usize = 4;
const MAX_VALUES: usize = 4096;

/// The longest text that is kept, in bytes.
const MAX_TEXT: usize = 4096;

/// The keys that are kept.
const KEYS: [&str; 2] = ["arch", "args"];

/// `arch` and `args`, where they are there.
pub(super) fn read(pickle: &Pickle<'_>) -> Map<String, Value> {
    let mut left = MAX_VALUES;
    KEYS.iter()
        .filter_map(|key| {
            let value = plain(pickle, pickle.item(pickle.root, key)?, MAX_DEPTH, &mut left)?;
            Some(((*key).to_owned(), value))
        })
        .collect()
}

/// A value as JSON; `None` for what is no plain value.
fn plain(pickle: &Pickle<'_>, id: Id, depth: usize, left: &mut usize) -> Option<Value> {
    *left = left.checked_sub(1)?;
    let depth = depth.checked_sub(1)?;
    match pickle.node(id) {
        Node::Bool(value) => Some((*value).into()),
        Node::Int(value) => Some((*value).into()),
        Node::Float(value) => Some((*value).into()),
        Node::Str(value) if value.len() <= MAX_TEXT => Some((*value).into()),
        Node::Tuple(items) | Node::List(items) => items
            .iter()
            .map(|&item| plain(pickle, item, depth, left))
            .collect(),
        Node::Dict(items) => Some(Value::Object(
            items
                .iter()
                .filter_map(|&(key, value)| match pickle.node(key) {
                    Node::Str(name) if name.len() <= MAX_TEXT => {
                        Some(((*name).to_owned(), plain(pickle, value, depth, left)?))
                    }
                    _ => None,
                })
                .collect(),
        )),
        Node::Opaque(_, Some(state)) => plain(pickle, *state, depth, left),
        _ => None,
    }
}
