//! A stack machine that can build tensors and plain containers, and nothing else.
//!
//! The instructions are those of pickle protocol 2 that `torch.save` emits; everything else is refused, as is every
//! global name but the few tensors are made of.

use std::collections::HashMap;
use std::path::Path;

use super::object::{Global, Id, Node, Pickle, Storage, View};
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
}

impl<'a> Machine<'a, '_> {
    fn run(&mut self) -> Result<Id> {
        loop {
            self.opcode_at = self.at;
            match self.byte()? {
                // PROTO: the instructions decide, not the number.
                0x80 => drop(self.byte()?),
                // STOP
                b'.' => return self.pop(),
                // Constants: NONE, NEWTRUE, NEWFALSE, BINFLOAT, BININT, BININT1, BININT2, LONG1, BINUNICODE.
                b'N' => self.push(Node::Other)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'G' => {
                    self.array::<8>()?;
                    self.push(Node::Other)?;
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
                b'X' => {
                    let len = u32::from_le_bytes(self.array()?) as usize;
                    let bytes = self.take(len)?;
                    let text =
                        std::str::from_utf8(bytes).map_err(|_| self.broken("a string is not UTF-8"))?;
                    self.push(Node::Str(text))?;
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
                // Memo: BINPUT, LONG_BINPUT, BINGET, LONG_BINGET.
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
                // Tensors: GLOBAL, BINPERSID, REDUCE, BUILD.
                b'c' => {
                    let global = self.global()?;
                    self.push(Node::Global(global))?;
                }
                b'Q' => {
                    let storage = self.storage()?;
                    self.push(Node::Storage(storage))?;
                }
                b'R' => self.reduce()?,
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
        let Node::List(items) = self.top()? else {
            return Err(broken);
        };
        items.extend(new);
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

    // Tensors.

    fn global(&mut self) -> Result<Global> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
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
            _ => {
                // Escaped and cut: this text comes from the file and goes to a terminal.
                let global = format!("{module}.{name}").escape_default().take(100).collect();
                return Err(Error::PickleGlobal {
                    path: self.path.to_owned(),
                    global,
                });
            }
        })
    }

    /// `('storage', type, key, device, length)`, and in old files a view that must be None.
    fn storage(&mut self) -> Result<Storage<'a>> {
        let id = self.pop()?;
        let parts = self.tuple_nodes(id)?;
        match parts.as_slice() {
            [
                Node::Str("storage"),
                Node::Global(Global::Storage(dtype)),
                Node::Str(key),
                Node::Str(_),
                Node::Int(len),
            ]
            | [
                Node::Str("storage"),
                Node::Global(Global::Storage(dtype)),
                Node::Str(key),
                Node::Str(_),
                Node::Int(len),
                Node::Other,
            ] => {
                let len =
                    usize::try_from(*len).map_err(|_| self.broken("a storage has a negative length"))?;
                Ok(Storage {
                    dtype: *dtype,
                    key,
                    len,
                })
            }
            _ => Err(self.broken("it refers to something outside that is not a storage")),
        }
    }

    /// A call: the arguments are on the stack above what is called.
    fn reduce(&mut self) -> Result<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Some(Node::Global(global)) = self.nodes.get(callee.0) else {
            return Err(self.broken("it calls something that is not a function"));
        };
        match global {
            Global::OrderedDict => match self.tuple_nodes(args)?.as_slice() {
                [] => self.push(Node::Dict(Vec::new())),
                _ => Err(self.broken("it makes an OrderedDict with arguments")),
            },
            Global::RebuildTensor => {
                let view = self.view(args)?;
                self.push(Node::Tensor(view))
            }
            // (tensor, requires_grad, hooks) is the tensor.
            Global::RebuildParameter => match self.tuple_nodes(args)?.as_slice() {
                [Node::Tensor(view), _, _] => {
                    let view = view.clone();
                    self.push(Node::Tensor(view))
                }
                _ => Err(self.broken("a parameter is made of something other than a tensor")),
            },
            Global::Storage(_) => Err(self.broken("it calls a storage type")),
        }
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`, and maybe metadata.
    fn view(&self, args: Id) -> Result<View<'a>> {
        let parts = self.tuple_nodes(args)?;
        let ([
            Node::Storage(storage),
            Node::Int(offset),
            Node::Tuple(shape),
            Node::Tuple(strides),
            _,
            _,
        ]
        | [
            Node::Storage(storage),
            Node::Int(offset),
            Node::Tuple(shape),
            Node::Tuple(strides),
            _,
            _,
            _,
        ]) = parts.as_slice()
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
        self.pop()?;
        let broken = self.broken("it sets the state of something that is not a dict");
        match self.top()? {
            Node::Dict(_) => Ok(()),
            _ => Err(broken),
        }
    }

    /// The objects in a tuple of arguments.
    fn tuple_nodes(&self, id: Id) -> Result<Vec<&Node<'a>>> {
        match self.nodes.get(id.0) {
            // No call has more than seven arguments.
            Some(Node::Tuple(items)) if items.len() <= 7 => {
                Ok(items.iter().filter_map(|item| self.nodes.get(item.0)).collect())
            }
            _ => Err(self.broken("arguments are not a tuple, or there are too many")),
        }
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
    fn names_outside_the_list_are_refused() {
        for (name, shown) in [
            ("cos\nsystem\n", "os.system"),
            ("cbuiltins\neval\n", "builtins.eval"),
            ("cargparse\nNamespace\n", "argparse.Namespace"),
            ("ctorch\nload\n", "torch.load"),
            ("ctorch.storage\nUntypedStorage\n", "torch.storage.UntypedStorage"),
            ("c\x1b[31m\nx\n", "\\u{1b}[31m.x"),
        ] {
            let text = refused(name.as_bytes());
            assert!(text.contains(&format!("`{shown}`")), "{text}");
        }
    }

    #[test]
    fn instructions_outside_the_list_are_refused() {
        // INST, OBJ, NEWOBJ, EXT1, STACK_GLOBAL, PERSID, DUP, POP, FRAME, NEXT_BUFFER.
        for opcode in [b'i', b'o', 0x81, 0x82, 0x93, b'P', b'2', b'0', 0x95, 0x97] {
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
            (
                "K\x01}b.".to_owned(),
                "sets the state of something that is not a dict",
            ),
            ("K\x01)R.".to_owned(), "calls something that is not a function"),
            (format!("{od}K\x01R."), "arguments are not a tuple"),
            (format!("{od}K\x01\u{0}"), "refused"),
            (format!("{od}(K\x01tR."), "an OrderedDict with arguments"),
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
