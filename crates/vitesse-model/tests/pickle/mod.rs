//! Files as `torch.save` writes them, for tests: a zip archive of a pickle and the numbers of its tensors.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Cursor, Write};
use std::path::Path;

use vitesse_model::Tensors;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// What a file can hold.
pub(crate) enum Object {
    /// A dict of `f32` tensors.
    StateDict(Tensors),
    Dict(Vec<(&'static str, Object)>),
    /// Instructions that leave one object.
    Raw(Vec<u8>),
}

/// A dict.
pub(crate) fn dict(items: impl IntoIterator<Item = (&'static str, Object)>) -> Object {
    Object::Dict(items.into_iter().collect())
}

/// A text.
pub(crate) fn text(text: &str) -> Object {
    Object::Raw(string(text))
}

/// An instance of a class of this module and name with attributes.
pub(crate) fn instance(module: &str, name: &str, attributes: &[(&'static str, Object)]) -> Object {
    let mut program = format!("c{module}\n{name}\n)").into_bytes();
    // NEWOBJ, the attributes, BUILD.
    program.push(0x81);
    write_dict(
        attributes.iter().map(|(key, value)| (*key, value)),
        &mut program,
        &mut Vec::new(),
    );
    program.push(b'b');
    Object::Raw(program)
}

/// Writes the file `path`.
pub(crate) fn save(path: &Path, object: &Object) {
    let (mut program, mut storages) = (b"\x80\x02".to_vec(), Vec::new());
    write(object, &mut program, &mut storages);
    program.push(b'.');
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("data.pkl", &program);
    entry("byteorder", b"little");
    for (key, bytes) in storages.iter().enumerate() {
        entry(&format!("data/{key}"), bytes);
    }
    std::fs::write(path, zip.finish().unwrap().into_inner()).unwrap();
}

fn string(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(number: usize) -> Vec<u8> {
    [&b"J"[..], &(number as i32).to_le_bytes()].concat()
}

fn write(object: &Object, program: &mut Vec<u8>, storages: &mut Vec<Vec<u8>>) {
    match object {
        Object::Raw(bytes) => program.extend(bytes),
        Object::Dict(items) => write_dict(items.iter().map(|(key, value)| (*key, value)), program, storages),
        Object::StateDict(tensors) => {
            let tensor = |tensor: &vitesse_model::Tensor, key: usize| {
                let shape = tensor.shape();
                let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
                let sizes = |sizes: Vec<usize>| {
                    let ints: Vec<u8> = sizes.into_iter().flat_map(int).collect();
                    [b"(".to_vec(), ints, b"t".to_vec()].concat()
                };
                [
                    b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
                    string("storage"),
                    b"ctorch\nFloatStorage\n".to_vec(),
                    string(&key.to_string()),
                    string("cpu"),
                    int(tensor.numel()),
                    b"tQ".to_vec(),
                    int(0),
                    sizes(shape.to_vec()),
                    sizes(strides.collect()),
                    b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
                ]
                .concat()
            };
            let items: Vec<(&str, Object)> = tensors
                .iter()
                .map(|(name, value)| {
                    storages.push(value.bytes().to_vec());
                    (name, Object::Raw(tensor(value, storages.len() - 1)))
                })
                .collect();
            write_dict(items.iter().map(|(key, value)| (*key, value)), program, storages);
        }
    }
}

fn write_dict<'a>(
    items: impl Iterator<Item = (&'a str, &'a Object)>,
    program: &mut Vec<u8>,
    storages: &mut Vec<Vec<u8>>,
) {
    program.extend(b"}(");
    for (key, value) in items {
        program.extend(string(key));
        write(value, program, storages);
    }
    program.push(b'u');
}
