//! A stack machine that can build tensors and plain containers, and nothing else.
//!
//! The instructions are those that Python writes in protocols 2 to 5. Of the names of classes and functions it knows the
//! few that tensors are made of; what a file makes with any other is a closed box ([`Node::Opaque`]): instructions pop
//! and push as they must, and nothing is imported, constructed or called.

use std::collections::HashMap;
use std::path::Path;

use super::object::{Class, Global, Id, Node, Pickle, Storage, View};
use crate::error::{Error, Result};
use crate::tensors::DType;

/// More objects than the largest checkpoints with optimiser state have, by a factor of some ten.
const MAX_OBJECTS: usize = 1 << 20;

/// The largest pickle, in bytes; those of whole training states take one or two megabytes.
const MAX_BYTES: usize = 16 << 20;

/// Dimensions of a tensor; weights have at most five.
const MAX_DIMS: usize = 8;

/// The longest module or function name, in bytes.
const MAX_NAME: usize = 256;

/// PyTorch's own types of tensors, which are read as tensors whatever attributes they have.
const PLAIN_TENSORS: [(&str, &str); 3] = [
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn.parameter", "Buffer"),
];

/// What a name stands for.
fn global<'a>(module: &'a str, name: &'a str) -> Global<'a> {
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Global::Dict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildTyped,
        ("torch", "DoubleStorage") => Global::Storage(DType::F64),
        ("torch", "FloatStorage") => Global::Storage(DType::F32),
        ("torch", "HalfStorage") => Global::Storage(DType::F16),
        ("torch", "BFloat16Storage") => Global::Storage(DType::BF16),
        ("torch", "LongStorage") => Global::Storage(DType::I64),
        ("torch", "IntStorage") => Global::Storage(DType::I32),
        ("torch", "ShortStorage") => Global::Storage(DType::I16),
        ("torch", "CharStorage") => Global::Storage(DType::I8),
        ("torch", "ByteStorage") => Global::Storage(DType::U8),
        ("torch", "BoolStorage") => Global::Storage(DType::Bool),
        _ => Global::Foreign(Class { module, name }),
    }
}

/// Runs the pickle at the beginning of `bytes`; `path` is for errors.
pub(super) fn load<'a>(path: &Path, bytes: &'a [u8]) -> Result<Pickle<'a>> {
    let mut machine = Machine {
        path,
        bytes,
        at: 0,
        opcode_at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = machine.run()?;
    Ok(Pickle {
        nodes: machine.nodes,
        root,
        len: machine.at,
    })
}

struct Machine<'a, 'p> {
    path: &'p Path,
    bytes: &'a [u8],
    at: usize,
    /// Where the instruction being executed began.
    opcode_at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which MARKs stand.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Pairs that were copied from lists into dicts. A pickle can have one list copied again and again.
    copied: usize,
}

impl<'a> Machine<'a, '_> {
    fn run(&mut self) -> Result<Id> {
        loop {
            self.opcode_at = self.at;
            match self.byte()? {
                // PROTO and FRAME: the instructions decide, not the number, nor how many bytes a reader should fetch.
                0x80 => drop(self.byte()?),
                0x95 => drop(self.array::<8>()?),
                // STOP
                b'.' => return self.pop(),
                // Constants: NONE, NEWTRUE, NEWFALSE, BINFLOAT, BININT, BININT1, BININT2, LONG1, LONG4.
                b'N' => self.push(Node::Other)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => {
                    let value = self.long()?;
                    self.push(value)?;
                }
                0x8b => {
                    self.counted::<4>()?;
                    self.push(Node::Other)?;
                }
                // Text: SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
                0x8c => {
                    let bytes = self.counted::<1>()?;
                    self.text(bytes)?;
                }
                b'X' => {
                    let bytes = self.counted::<4>()?;
                    self.text(bytes)?;
                }
                0x8d => {
                    let bytes = self.counted::<8>()?;
                    self.text(bytes)?;
                }
                // Python 2's strings, which are text or bytes: SHORT_BINSTRING, BINSTRING.
                b'U' => {
                    let bytes = self.counted::<1>()?;
                    self.push(std::str::from_utf8(bytes).map_or(Node::Other, Node::Str))?;
                }
                b'T' => {
                    let bytes = self.counted::<4>()?;
                    self.push(std::str::from_utf8(bytes).map_or(Node::Other, Node::Str))?;
                }
                // Bytes: SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8.
                b'C' => {
                    self.counted::<1>()?;
                    self.push(Node::Other)?;
                }
                b'B' => {
                    self.counted::<4>()?;
                    self.push(Node::Other)?;
                }
                0x8e | 0x96 => {
                    self.counted::<8>()?;
                    self.push(Node::Other)?;
                }
                // Containers: EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, MARK, TUPLE, TUPLE1, TUPLE2, TUPLE3.
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b']' => self.push(Node::List(Vec::new()))?,
                b')' => self.push(Node::Tuple(Vec::new()))?,
                b'(' => {
                    self.limit("marks", self.marks.len())?;
                    self.marks.push(self.stack.len());
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                // Sets: EMPTY_SET, ADDITEMS, FROZENSET.
                0x8f => self.push(Node::Other)?,
                0x90 => {
                    self.pop_to_mark()?;
                    self.top()?;
                }
                0x91 => {
                    self.pop_to_mark()?;
                    self.push(Node::Other)?;
                }
                // Filling them: APPEND, APPENDS, SETITEM, SETITEMS.
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                // Tuples that hold themselves are dropped again: POP, POP_MARK.
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                // Memo: MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET.
                0x94 => {
                    let key = self.memo.len() as u32;
                    self.remember(key)?;
                }
                b'q' => {
                    let key = self.byte()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                b'h' => {
                    let key = self.byte()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                // Objects: GLOBAL, STACK_GLOBAL, BINPERSID, REDUCE, NEWOBJ, NEWOBJ_EX, OBJ, BUILD.
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Node::Global(global(module, name)))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Some(Node::Str(module)), Some(Node::Str(name))) =
                        (self.nodes.get(module.0), self.nodes.get(name.0))
                    else {
                        return Err(self.broken("the name of a class or function is not text"));
                    };
                    self.push(Node::Global(global(module, name)))?;
                }
                b'Q' => self.persistent()?,
                b'R' | 0x81 => {
                    let (args, callee) = (self.pop()?, self.pop()?);
                    self.call(callee, args)?;
                }
                0x92 => {
                    let (_keywords, _args, class) = (self.pop()?, self.pop()?, self.pop()?);
                    self.unknown(class)?;
                }
                b'o' => {
                    let items = self.pop_to_mark()?;
                    let class = items.first().copied();
                    self.unknown(class.ok_or_else(|| self.broken("an object has no class"))?)?;
                }
                b'b' => self.build()?,
                opcode => {
                    return Err(Error::PickleOpcode {
                        path: self.path.to_owned(),
                        at: self.opcode_at,
                        opcode,
                    });
                }
            }
        }
    }

    // The bytes.

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if self.at.saturating_add(len) > MAX_BYTES {
            return Err(Error::PickleLimit {
                path: self.path.to_owned(),
                what: "bytes",
                limit: MAX_BYTES,
            });
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest
            .get(..len)
            .ok_or_else(|| self.broken("it ends in the middle of an instruction"))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| self.broken("it ends in the middle of an instruction"))
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Bytes behind their number, which is one of `N` bytes.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8]> {
        let mut wide = [0; 8];
        wide.iter_mut()
            .zip(self.array::<N>()?)
            .for_each(|(wide, byte)| *wide = byte);
        // A number that no memory can hold is more than the limit, which `take` reports.
        self.take(usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX))
    }

    fn text(&mut self, bytes: &'a [u8]) -> Result<()> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.broken("a string is not UTF-8"))?;
        self.push(Node::Str(text))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().take(MAX_NAME).position(|&b| b == b'\n');
        let len = end.ok_or_else(|| self.broken("a name does not end"))?;
        let line = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| self.broken("a name is not UTF-8"))
    }

    /// An integer of any length in two's complement; one that exceeds 64 bits is no size of ours.
    fn long(&mut self) -> Result<Node<'a>> {
        let len = self.byte()?;
        let bytes = self.take(len.into())?;
        if bytes.len() > 8 {
            return Ok(Node::Other);
        }
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide.iter_mut().zip(bytes).for_each(|(w, &b)| *w = b);
        Ok(Node::Int(i64::from_le_bytes(wide)))
    }

    // The stack.

    fn push(&mut self, node: Node<'a>) -> Result<()> {
        self.limit("objects", self.nodes.len())?;
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
        Ok(())
    }

    /// Takes the top of the stack, but nothing from below the last MARK.
    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = if self.stack.len() > floor {
            self.stack.pop()
        } else {
            None
        };
        top.ok_or_else(|| self.broken("its stack is empty"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| self.broken("it refers to a mark that is not there"))?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Node<'a>> {
        let id = self.pop()?;
        self.stack.push(id);
        let broken = self.broken("its stack is empty");
        self.nodes.get_mut(id.0).ok_or(broken)
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Tuple(items))
    }

    fn append(&mut self, new: Vec<Id>) -> Result<()> {
        let broken = self.broken("it appends to something that is not a list");
        match self.top()? {
            Node::List(items) => items.extend(new),
            Node::Opaque(..) => {}
            _ => return Err(broken),
        }
        Ok(())
    }

    fn set_items(&mut self, flat: &[Id]) -> Result<()> {
        let broken = self.broken("it sets items of something that is not a dict");
        let (pairs, rest) = flat.as_chunks::<2>();
        match self.top()? {
            Node::Dict(items) if rest.is_empty() => {
                items.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            Node::Opaque(..) => Ok(()),
            _ => Err(broken),
        }
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        self.limit("memo entries", self.memo.len())?;
        let id = self.pop()?;
        self.stack.push(id);
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        self.limit("objects on its stack", self.stack.len())?;
        let id = *self
            .memo
            .get(&key)
            .ok_or_else(|| self.broken("it recalls what it never stored"))?;
        self.stack.push(id);
        Ok(())
    }

    // Objects.

    /// What stands outside the pickle: `('storage', type, key, device, length)`, and in old files a view that must be None,
    /// or `('module', class, file, text)`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let node = match self.tuple_nodes(id)?.as_slice() {
            [
                Node::Str("storage"),
                Node::Global(kind),
                Node::Str(key),
                Node::Str(_),
                Node::Int(len),
            ]
            | [
                Node::Str("storage"),
                Node::Global(kind),
                Node::Str(key),
                Node::Str(_),
                Node::Int(len),
                Node::Other,
            ] => match kind {
                Global::Storage(dtype) => Node::Storage(Storage {
                    dtype: *dtype,
                    key,
                    len: usize::try_from(*len).map_err(|_| self.broken("a storage has a negative length"))?,
                }),
                Global::Foreign(class) => Node::Opaque(*class, None),
                _ => return Err(self.broken("a storage is of a type that is none")),
            },
            [Node::Str("module"), Node::Global(Global::Foreign(class)), ..] => Node::Opaque(*class, None),
            _ => return Err(self.broken("it refers to something outside that is not a storage")),
        };
        self.push(node)
    }

    /// A call that makes a dict or a tensor, or else a closed box.
    fn call(&mut self, callee: Id, args: Id) -> Result<()> {
        let Some(&Node::Global(global)) = self.nodes.get(callee.0) else {
            return self.unknown(callee);
        };
        let node = match global {
            Global::Dict => {
                let pairs = self.pairs(args)?;
                self.copied += pairs.len();
                self.limit("pairs in dicts made of lists", self.copied)?;
                Node::Dict(pairs)
            }
            Global::RebuildTensor => self.tensor(args)?,
            // (tensor, requires_grad, hooks) or (tensor, requires_grad, hooks, state) is the tensor.
            Global::RebuildParameter => match self.tuple_nodes(args)?.as_slice() {
                [Node::Tensor(view), _, _] | [Node::Tensor(view), _, _, _] => Node::Tensor(view.clone()),
                [Node::Opaque(class, _), ..] => Node::Opaque(*class, None),
                _ => return Err(self.broken("a parameter is made of something other than a tensor")),
            },
            // (function, type, arguments, state): of PyTorch's own types the state is nothing that weights need.
            Global::RebuildTyped => match self.tuple_items(args)? {
                &[function, class, inner, _state] => {
                    match (self.nodes.get(function.0), self.nodes.get(class.0)) {
                        (
                            Some(Node::Global(Global::RebuildTensor)),
                            Some(Node::Global(Global::Foreign(class))),
                        ) if PLAIN_TENSORS.contains(&(class.module, class.name)) => self.tensor(inner)?,
                        (_, Some(Node::Global(Global::Foreign(class)))) => Node::Opaque(*class, None),
                        _ => return Err(self.broken("a tensor's type is none")),
                    }
                }
                _ => {
                    return Err(self.broken(
                        "a tensor is made of something other than a function, a type and arguments",
                    ));
                }
            },
            Global::Storage(_) => return Err(self.broken("it calls a storage type")),
            Global::Foreign(class) => Node::Opaque(class, None),
        };
        self.push(node)
    }

    /// What an unknown class or function makes.
    fn unknown(&mut self, class: Id) -> Result<()> {
        match self.nodes.get(class.0) {
            Some(Node::Global(Global::Foreign(class)) | Node::Opaque(class, _)) => {
                self.push(Node::Opaque(*class, None))
            }
            _ => Err(self.broken("it calls something that is not a function")),
        }
    }

    /// The items of a dict that is made from a list of pairs, as Python 2 wrote it, or from nothing or the function for
    /// items that are missing.
    fn pairs(&self, args: Id) -> Result<Vec<(Id, Id)>> {
        let refuse = || self.broken("it makes a dict of something other than pairs");
        match self.tuple_nodes(args)?.as_slice() {
            [] | [Node::Global(_) | Node::Other] => Ok(Vec::new()),
            [Node::List(items)] => items
                .iter()
                .map(|item| match self.nodes.get(item.0) {
                    Some(Node::List(pair) | Node::Tuple(pair)) => match pair.as_slice() {
                        &[key, value] => Ok((key, value)),
                        _ => Err(refuse()),
                    },
                    _ => Err(refuse()),
                })
                .collect(),
            _ => Err(refuse()),
        }
    }

    /// A tensor, or a closed box where its numbers are of a type that is not read.
    fn tensor(&self, args: Id) -> Result<Node<'a>> {
        match self.tuple_nodes(args)?.as_slice() {
            [Node::Opaque(class, _), ..] => Ok(Node::Opaque(*class, None)),
            parts => self.view(parts).map(Node::Tensor),
        }
    }

    /// `(storage, offset, shape, strides)`, since PyTorch 0.4 with `requires_grad` and `hooks`, and maybe metadata.
    fn view(&self, parts: &[&Node<'a>]) -> Result<View<'a>> {
        let [
            Node::Storage(storage),
            Node::Int(offset),
            Node::Tuple(shape),
            Node::Tuple(strides),
            ..,
        ] = parts
        else {
            return Err(self
                .broken("a tensor is made of something other than a storage, an offset, sizes and strides"));
        };
        let sizes = |ids: &[Id]| -> Option<Vec<usize>> {
            ids.iter()
                .map(|id| match self.nodes.get(id.0) {
                    Some(Node::Int(size)) => usize::try_from(*size).ok(),
                    _ => None,
                })
                .collect()
        };
        if shape.len() != strides.len() || shape.len() > MAX_DIMS {
            return Err(self.broken("a tensor does not have one stride for each of at most 8 dimensions"));
        }
        match (usize::try_from(*offset), sizes(shape), sizes(strides)) {
            (Ok(offset), Some(shape), Some(strides)) => Ok(View {
                storage: *storage,
                offset,
                shape,
                strides,
            }),
            _ => Err(self.broken("a tensor has a negative offset, size or stride")),
        }
    }

    /// The state of an object. PyTorch gives its OrderedDicts one, with module versions, which weights do not need.
    fn build(&mut self) -> Result<()> {
        let given = self.pop()?;
        let broken = self.broken("it sets the state of something that has none");
        match self.top()? {
            Node::Dict(_) | Node::Tensor(_) => {}
            Node::Opaque(_, state) => *state = Some(given),
            _ => return Err(broken),
        }
        Ok(())
    }

    /// The arguments of a call that is known.
    fn tuple_items(&self, id: Id) -> Result<&[Id]> {
        match self.nodes.get(id.0) {
            // None of them has more than seven.
            Some(Node::Tuple(items)) if items.len() <= 7 => Ok(items),
            _ => Err(self.broken("arguments are not a tuple, or there are too many")),
        }
    }

    fn tuple_nodes(&self, id: Id) -> Result<Vec<&Node<'a>>> {
        let items = self.tuple_items(id)?;
        Ok(items.iter().filter_map(|item| self.nodes.get(item.0)).collect())
    }

    fn limit(&self, what: &'static str, have: usize) -> Result<()> {
        if have >= MAX_OBJECTS {
            return Err(Error::PickleLimit {
                path: self.path.to_owned(),
                what,
                limit: MAX_OBJECTS,
            });
        }
        Ok(())
    }

    fn broken(&self, detail: &'static str) -> Error {
        Error::PickleSyntax {
            path: self.path.to_owned(),
            at: self.opcode_at,
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(bytes: &[u8]) -> Result<Pickle<'_>> {
        super::load(Path::new("x.pth"), bytes)
    }

    fn refused(bytes: &[u8]) -> String {
        load(bytes).unwrap_err().to_string()
    }

    #[test]
    fn plain_containers_are_built() {
        let pickle =
            load(b"\x80\x02}q\0(X\x01\0\0\0aK\x07K\x01]q\x01(K\x02NG\0\0\0\0\0\0\0\0eX\x01\0\0\0bh\x01u.")
                .unwrap();
        let items = pickle.dict(pickle.root);
        assert_eq!(
            items.iter().map(|&(key, _)| pickle.key(key)).collect::<Vec<_>>(),
            ["a", "1", "b"]
        );
        assert!(matches!(pickle.node(items[0].1), Node::Int(7)));
        assert_eq!(
            items[1].1, items[2].1,
            "the memo gives the same object, not a copy"
        );
        assert!(matches!(pickle.node(items[1].1), Node::List(list) if list.len() == 3));
    }

    #[test]
    fn integers_have_any_length() {
        let int = |bytes: &[u8]| {
            let pickle = load(bytes).unwrap();
            if let Node::Int(i) = pickle.node(pickle.root) {
                Some(*i)
            } else {
                None
            }
        };
        assert_eq!(int(b"J\xfe\xff\xff\xff."), Some(-2));
        assert_eq!(int(b"\x8a\x00."), Some(0));
        assert_eq!(int(b"\x8a\x01\xff."), Some(-1));
        assert_eq!(int(b"\x8a\x02\xff\x00."), Some(255));
        assert_eq!(int(b"\x8a\x09\0\0\0\0\0\0\0\0\x01."), None);
    }

    #[test]
    fn names_outside_the_list_become_closed_boxes() {
        for (program, shown) in [
            (&b"cos\nsystem\nX\x02\0\0\0ls\x85R."[..], "os.system"),
            (
                b"\x80\x04\x8c\x08builtins\x94\x8c\x04eval\x94\x93\x94)R.",
                "builtins.eval",
            ),
            (
                b"cargparse\nNamespace\n)\x81}X\x01\0\0\0aK\x01sb.",
                "argparse.Namespace",
            ),
            (b"cmodels\nNet\n)}\x92.", "models.Net"),
            (b"(cmodels\nOld\nK\x01o.", "models.Old"),
            (
                b"cbuiltins\ngetattr\nX\x01\0\0\0aX\x01\0\0\0b\x86R)R.",
                "builtins.getattr",
            ),
            (
                b"ceasydict\nEasyDict\n)\x81X\x01\0\0\0aK\x01s.",
                "easydict.EasyDict",
            ),
            (b"cmine\nList\n)\x81(K\x01K\x02e.", "mine.List"),
            (b"c\x1b[31m\nx\n)R.", "\\u{1b}[31m.x"),
        ] {
            let pickle = load(program).unwrap();
            let Node::Opaque(class, _) = pickle.node(pickle.root) else {
                panic!("{shown}: {:?}", pickle.node(pickle.root));
            };
            assert_eq!(class.to_string(), shown);
        }
        // The attributes of one are kept as data.
        let pickle = load(b"cargparse\nNamespace\n)\x81}X\x01\0\0\0aK\x01sb.").unwrap();
        let Node::Opaque(_, Some(state)) = pickle.node(pickle.root) else {
            panic!("{:?}", pickle.node(pickle.root));
        };
        assert!(matches!(
            pickle.item(*state, "a").map(|id| pickle.node(id)),
            Some(Node::Int(1))
        ));
        // A name by itself, such as a function's or a number type's, is one too.
        assert!(load(b"ctorch\nfloat32\n.").is_ok());
    }

    /// What Python writes in its newer protocols, and what Python 2 wrote.
    #[test]
    fn every_protocol_says_the_same() {
        let ints = |program: &[u8]| {
            let pickle = load(program).unwrap();
            let item = pickle.item(pickle.root, "a").unwrap();
            let Node::Tuple(items) = pickle.node(item) else {
                panic!("{:?}", pickle.node(item));
            };
            let int = |id: &Id| {
                if let Node::Int(int) = pickle.node(*id) {
                    *int
                } else {
                    -1
                }
            };
            items.iter().map(int).collect::<Vec<_>>()
        };
        for program in [
            &b"\x80\x02}q\0X\x01\0\0\0aq\x01K\x01K\x02\x86q\x02s."[..],
            b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01K\x02\x86\x94s.",
            b"\x80\x05}\x94\x8d\x01\0\0\0\0\0\0\0a\x94K\x01K\x02\x86\x94s.",
            b"\x80\x02}U\x01aK\x01K\x02\x86s.",
            b"\x80\x02ccollections\nOrderedDict\n]]T\x01\0\0\0aaK\x01K\x02\x86aa\x85R.",
            b"\x80\x04\x8c\x0bcollections\x8c\x0bdefaultdict\x93N\x85R\x8c\x01aK\x01K\x02\x86s.",
        ] {
            assert_eq!(ints(program), [1, 2], "{program:?}");
        }
        for program in [
            &b"\x8f(K\x01K\x02\x90."[..],
            b"(K\x01\x91.",
            b"C\x02\xff\xfe.",
            b"B\x01\0\0\0\xff.",
            b"\x8e\x01\0\0\0\0\0\0\0\xff.",
            b"\x96\x01\0\0\0\0\0\0\0\xff.",
            b"U\x01\xff.",
            b"\x8b\x02\0\0\0\x01\x01.",
            b"(K\x010NK\x02(K\x0310.",
        ] {
            let pickle = load(program).unwrap();
            assert!(matches!(pickle.node(pickle.root), Node::Other), "{program:?}");
        }
        assert!(refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.").contains("more than 16777216 bytes"));
    }

    #[test]
    fn instructions_outside_the_list_are_refused() {
        // INST, EXT1, PERSID, DUP, INT, NEXT_BUFFER, READONLY_BUFFER.
        for opcode in [b'i', 0x82, b'P', b'2', b'I', 0x97, 0x98] {
            assert_eq!(load(&[opcode, b'.']).unwrap_err().code(), "E_PTH_REFUSED");
        }
    }

    #[test]
    fn broken_programs_are_refused_where_they_break() {
        let od = "ccollections\nOrderedDict\n";
        for (program, why) in [
            ("".to_owned(), "ends in the middle"),
            ("X\x7f\0\0\0abc".to_owned(), "ends in the middle"),
            (".".to_owned(), "stack is empty"),
            ("K\x01(.".to_owned(), "stack is empty"),
            ("t".to_owned(), "a mark that is not there"),
            ("h\x05.".to_owned(), "recalls what it never stored"),
            ("q\x05.".to_owned(), "stack is empty"),
            (
                "K\x01K\x02a.".to_owned(),
                "appends to something that is not a list",
            ),
            (
                "}(K\x01u.".to_owned(),
                "sets items of something that is not a dict",
            ),
            ("K\x01}b.".to_owned(), "sets the state of something that has none"),
            ("K\x01)R.".to_owned(), "calls something that is not a function"),
            (format!("{od}K\x01R."), "arguments are not a tuple"),
            (format!("{od}K\x01\u{0}"), "refused"),
            (format!("{od}(K\x01tR."), "a dict of something other than pairs"),
            ("ctorch\nFloatStorage\n)R.".to_owned(), "calls a storage type"),
            (
                "ctorch._utils\n_rebuild_tensor_v2\n)R.".to_owned(),
                "made of something other than",
            ),
            (
                "ctorch._utils\n_rebuild_parameter\n)R.".to_owned(),
                "made of something other than",
            ),
            (")Q.".to_owned(), "that is not a storage"),
            ("cos".to_owned(), "a name does not end"),
        ] {
            let text = refused(program.as_bytes());
            assert!(text.contains(why), "{program:?}: {text}");
        }
        assert!(refused(b"X\x01\0\0\0\xff.").contains("not UTF-8"));
    }

    #[test]
    fn depth_and_cycles_are_harmless() {
        let deep = [b"]".repeat(200_000), b"a".repeat(199_999), b".".to_vec()].concat();
        assert!(load(&deep).is_ok());
        let cycle = load(b"]q\0h\0a.").unwrap();
        assert!(matches!(cycle.node(cycle.root), Node::List(items) if *items == [cycle.root]));
    }

    #[test]
    fn what_is_too_much_is_refused() {
        assert!(refused(&b"N".repeat(MAX_OBJECTS + 1)).contains("more than 1048576 objects"));
        assert!(refused(&b"(".repeat(MAX_OBJECTS + 1)).contains("marks"));
        let list = [&b"]("[..], &b"]NaNa".repeat(5000), b"e\x85q\0"].concat();
        let copies = b"ccollections\nOrderedDict\nh\0R".repeat(300);
        assert!(refused(&[list, copies].concat()).contains("pairs in dicts"));
        let calls = [b"Nq\0".to_vec(), b"h\0".repeat(MAX_OBJECTS)].concat();
        assert!(refused(&calls).contains("objects on its stack"));
        let text = [&b"X"[..], &u32::MAX.to_le_bytes()].concat();
        assert!(refused(&text).contains("more than 16777216 bytes"));
    }

    /// Instructions that mostly fit together, so that programs get far before they break.
    fn any_instruction() -> impl Strategy<Value = Vec<u8>> {
        prop::sample::select(vec![
            &b"}"[..],
            b"]",
            b")",
            b"(",
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
            b"a",
            b"e",
            b"s",
            b"u",
            b"N",
            b"\x88",
            b"K\x03",
            b"K\0",
            b"J\xff\xff\xff\xff",
            b"\x8a\x01\x02",
            b"q\0",
            b"q\x01",
            b"h\0",
            b"h\x01",
            b"R",
            b"b",
            b"Q",
            b".",
            b"X\x01\0\0\x000",
            b"X\x07\0\0\0storage",
            b"\x8c\x01a",
            b"\x93",
            b"\x81",
            b"\x92",
            b"\x94",
            b"\x8f",
            b"\x90",
            b"0",
            b"1",
            b"o",
            b"cargparse\nNamespace\n",
            b"ctorch._tensor\n_rebuild_from_type_v2\n",
            b"ccollections\nOrderedDict\n",
            b"ctorch\nFloatStorage\n",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch._utils\n_rebuild_parameter\n",
        ])
        .prop_map(<[u8]>::to_vec)
    }

    proptest! {
        #[test]
        fn any_program_is_survived(program in prop::collection::vec(any_instruction(), 0..60)) {
            let _ = load(&program.concat());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = load(&bytes);
        }
    }
}
