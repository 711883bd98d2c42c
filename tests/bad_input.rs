//! What is wrong with a command or a file is said in a sentence that names the file and the cause: exit status 1 or 2, never
//! a panic, and nothing new on the disk.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::Place;
use serde_json::{Value, json};
use vitesse::model::Tensors;
use vitesse::model::storage::safetensors::{self, Metadata};

/// One bad input: what is prepared, what is called, how it ends and what is said.
struct Case {
    name: &'static str,
    prepare: fn(&Place),
    args: &'static str,
    code: i32,
    says: &'static [&'static str],
}

/// Every folder has a good model `m`, a good picture `ok.png`, and a good input `x.safetensors`.
fn prepare(place: &Place) {
    place.model("m", "vit_nano_patch4_32", 8);
    place.write("ok.png", include_bytes!("cli_support/ok.png"));
    pixels(place, "x.safetensors", "pixel_values", &[1, 3, 32, 32]);
}

fn pixels(place: &Place, file: &str, key: &str, shape: &[usize]) {
    let mut tensors = Tensors::new();
    tensors
        .insert_f32(key, shape, vec![0.5; shape.iter().product()])
        .unwrap();
    safetensors::write(&place.path(file), &tensors, &Metadata::new()).unwrap();
}

/// Changes the `config.json` of the good model.
fn config(place: &Place, change: fn(&mut Value)) {
    let path = place.path("m/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// A weights file with this header and so many bytes of data behind it.
fn weights(place: &Place, header: &str, data: usize) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    place.write("m/model.safetensors", file);
}

/// Puts what is no number into the good model.
fn poison(place: &Place) {
    let file = place.path("m/model.safetensors");
    let (mut tensors, metadata) = safetensors::read(&file).unwrap();
    let bias = tensors.get("blocks.1.norm2.bias").unwrap();
    let (shape, mut values) = (bias.shape().to_vec(), bias.to_f32().into_owned());
    values[5] = f32::NAN;
    tensors.insert_f32("blocks.1.norm2.bias", &shape, values).unwrap();
    safetensors::write(&file, &tensors, &metadata).unwrap();
}

const NOTHING: fn(&Place) = |_| {};

#[rustfmt::skip]
const WEIGHTS: &[Case] = &[
    Case { name: "weights that are no numbers, evaluated", prepare: poison,
        args: "eval --model m --data shapes --limit 8", code: 1, says: &["m/model.safetensors", "`blocks.1.norm2.bias`", "NaN"] },
    Case { name: "weights that are no numbers, predicted with", prepare: poison,
        args: "predict --model m ok.png", code: 1, says: &["m/model.safetensors", "`blocks.1.norm2.bias`", "NaN"] },
    Case { name: "weights that are no numbers, compared", prepare: poison,
        args: "compare m m@bf16 --data shapes --limit 8 --rounds 1 --seconds 0", code: 1, says: &["`blocks.1.norm2.bias`", "NaN"] },
    Case { name: "weights of a few bytes", prepare: |p| p.write("m/model.safetensors", b"\x80\x02abc"),
        args: "inspect m", code: 1, says: &["m/model.safetensors", "safetensors"] },
    Case { name: "whole numbers for weights", prepare: |p| {
            let file = p.path("m/model.safetensors");
            let (mut tensors, metadata) = safetensors::read(&file).unwrap();
            let shape = tensors.get("norm.bias").unwrap().shape().to_vec();
            let bytes = vec![0; 4 * shape.iter().product::<usize>()];
            let whole = vitesse::model::Tensor::from_bytes(vitesse::model::DType::I32, &shape, bytes).unwrap();
            tensors.insert("norm.bias", whole);
            safetensors::write(&file, &tensors, &metadata).unwrap();
        }, args: "inspect m", code: 1, says: &["`norm.bias` should hold floating-point numbers, but is of type I32"] },
    Case { name: "weights cut off", prepare: |p| {
            let bytes = fs::read(p.path("m/model.safetensors")).unwrap();
            p.write("m/model.safetensors", &bytes[..bytes.len() / 2]);
        }, args: "eval --model m --data shapes", code: 1, says: &["m/model.safetensors", "data section", "damaged or incomplete"] },
    Case { name: "empty weights", prepare: |p| p.write("m/model.safetensors", ""),
        args: "inspect --model m", code: 1, says: &["m/model.safetensors", "0 bytes long"] },
    Case { name: "header of u64::MAX bytes", prepare: |p| p.write("m/model.safetensors", [0xff; 64]),
        args: "inspect --model m", code: 1, says: &["m/model.safetensors", "18446744073709551615"] },
    Case { name: "header longer than the file", prepare: |p| p.write("m/model.safetensors", b"\x00\x00\x01\0\0\0\0\0{}"),
        args: "inspect --model m", code: 1, says: &["m/model.safetensors", "65536"] },
    Case { name: "overlapping tensors", prepare: |p| weights(p,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12),
        args: "inspect --model m", code: 1, says: &["m/model.safetensors", "`a` and `b` overlap"] },
    Case { name: "a shape that overflows", prepare: |p| weights(p,
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8),
        args: "inspect --model m", code: 1, says: &["m/model.safetensors", "`a`", "more bytes than fit in memory"] },
    Case { name: "a tensor of another shape", prepare: |p| {
            let path = p.path("m/model.safetensors");
            let (mut tensors, _) = safetensors::read(&path).unwrap();
            tensors.insert_f32("head.weight", &[9, 64], vec![0.0; 9 * 64]).unwrap();
            safetensors::write(&path, &tensors, &Metadata::new()).unwrap();
        }, args: "eval --model m --data shapes", code: 1, says: &["m/model.safetensors", "head.weight", "[8, 64]", "[9, 64]"] },
    Case { name: "a missing and a superfluous tensor", prepare: |p| {
            let path = p.path("m/model.safetensors");
            let (mut tensors, _) = safetensors::read(&path).unwrap();
            tensors.rename("blocks.3.mlp.fc1.bias", "blocks.9.mlp.fc1.bias").unwrap();
            safetensors::write(&path, &tensors, &Metadata::new()).unwrap();
        }, args: "predict --model m ok.png", code: 1,
        says: &["m/model.safetensors", "blocks.3.mlp.fc1.bias", "blocks.9.mlp.fc1.bias"] },
    Case { name: "a pickle that wants to run something", prepare: |p|
            p.write("evil.pth", include_bytes!("../crates/vitesse-model/tests/fixtures/evil.pth")),
        args: "inspect --model evil.pth", code: 1, says: &["evil.pth", "no architecture of the zoo has these tensors"] },
    Case { name: "text called .pth", prepare: |p| p.write("text.pth", "not a checkpoint"),
        args: "inspect --model text.pth", code: 1, says: &["text.pth"] },
    Case { name: "a folder without weights", prepare: |p| p.write("none/readme.txt", "?"),
        args: "inspect --model none", code: 1, says: &["`none`", "no weights"] },
];

#[rustfmt::skip]
const CONFIGS: &[Case] = &[
    Case { name: "a config that is not JSON", prepare: |p| p.write("m/config.json", "{\"architecture\": "),
        args: "inspect --model m", code: 1, says: &["m/config.json", "not valid JSON"] },
    Case { name: "an unknown architecture", prepare: |p| config(p, |c| c["architecture"] = json!("vit_tinny_patch16_224")),
        args: "inspect --model m", code: 1, says: &["vit_tinny_patch16_224", "did you mean"] },
    Case { name: "no architecture", prepare: |p| config(p, |c| { c.as_object_mut().unwrap().remove("architecture"); }),
        args: "inspect --model m", code: 1, says: &["m/config.json", "architecture", "missing"] },
    Case { name: "a negative number of classes", prepare: |p| config(p, |c| c["num_classes"] = json!(-10)),
        args: "eval --model m --data shapes", code: 1, says: &["m/config.json", "num_classes", "-10"] },
    Case { name: "a deviation of zero", prepare: |p| config(p, |c| c["pretrained_cfg"]["std"] = json!([0.5, 0.0, 0.5])),
        args: "predict --model m ok.png", code: 1, says: &["m/config.json", "std", "0.0"] },
    Case { name: "a crop of nothing", prepare: |p| config(p, |c| c["pretrained_cfg"]["crop_pct"] = json!(-1)),
        args: "predict --model m ok.png", code: 1, says: &["m/config.json", "crop_pct"] },
    Case { name: "an image size from another world", prepare: |p| config(p, |c| c["model_args"]["img_size"] = json!([1u64 << 40, 1u64 << 40])),
        args: "inspect --model m", code: 1, says: &["m/config.json", "img_size"] },
    Case { name: "a hidden width from another world", prepare: |p| config(p, |c| c["vitesse"] = json!({
            "schema": 1, "blocks": [{ "attn": null, "mlp": { "hidden": u64::MAX } }], "share": { "layers": [{ "core": 0 }] } })),
        args: "inspect --model m", code: 1, says: &["m/config.json"] },
    Case { name: "a block that is not there", prepare: |p| config(p, |c| c["vitesse"] = json!({
            "schema": 1, "share": { "layers": [{ "core": 0 }, { "core": 1 }, { "core": 2 }, { "core": 3 }, { "core": 77 }] } })),
        args: "inspect --model m", code: 1, says: &["m/config.json", "77"] },
    Case { name: "a schema of the future", prepare: |p| config(p, |c| c["vitesse"] = json!({ "schema": 99 })),
        args: "inspect --model m", code: 1, says: &["m/config.json", "schema", "99"] },
];

#[rustfmt::skip]
const IMAGES: &[Case] = &[
    Case { name: "a PNG that promises gigapixels", prepare: |p| p.write("huge.png", png_header(60_000, 60_000)),
        args: "predict --model m huge.png", code: 1, says: &["huge.png", "too large", "60000 x 60000"] },
    Case { name: "a JPEG that promises gigapixels", prepare: |p| p.write("huge.jpg", jpeg_header(65_500, 65_500)),
        args: "predict --model m huge.jpg", code: 1, says: &["huge.jpg", "too large", "65500 x 65500"] },
    Case { name: "text called .jpg", prepare: |p| p.write("text.jpg", "dear reader"),
        args: "predict --model m ok.png text.jpg", code: 1, says: &["text.jpg", "expected a JPEG"] },
    Case { name: "an empty file", prepare: |p| p.write("empty.png", ""),
        args: "predict --model m empty.png", code: 1, says: &["empty.png", "empty"] },
    Case { name: "a picture cut off", prepare: |p| p.write("cut.png", &include_bytes!("cli_support/ok.png")[..60]),
        args: "predict --model m cut.png", code: 1, says: &["cut.png", "cannot be decoded"] },
    Case { name: "no file", prepare: NOTHING,
        args: "predict --model m none.png", code: 1, says: &["none.png", "No such file"] },
    Case { name: "a folder for a picture", prepare: NOTHING,
        args: "predict --model m m", code: 1, says: &["`m`"] },
    Case { name: "labels without the columns", prepare: |p| p.write("labels.csv", "a,b\n1,2\n"),
        args: "predict --model m --labels labels.csv ok.png", code: 1, says: &["labels.csv", "class_index", "`a,b`"] },
    Case { name: "labels that are not there", prepare: NOTHING,
        args: "predict --model m --labels none.csv ok.png", code: 1, says: &["none.csv", "No such file"] },
];

#[rustfmt::skip]
const DATA: &[Case] = &[
    Case { name: "an empty class folder", prepare: |p| {
            p.write("set/cat/1.png", include_bytes!("cli_support/ok.png"));
            fs::create_dir(p.path("set/dog")).unwrap();
        }, args: "eval --model m --data set", code: 1, says: &["set/dog", "expected pictures"] },
    Case { name: "nothing but gigapixels", prepare: |p| p.write("set/cat/1.png", png_header(60_000, 60_000)),
        args: "eval --model m --data set", code: 1, says: &["cat/1.png", "too large"] },
    Case { name: "no data set", prepare: NOTHING,
        args: "eval --model m --data none", code: 1, says: &["`none`", "No such file"] },
    Case { name: "a folder of something else", prepare: |p| p.write("set/notes.txt", "?"),
        args: "data info --data set", code: 1, says: &["`set`", "found none of them"] },
    Case { name: "a list with a negative class", prepare: |p| p.write("set/labels.csv", "filename,class_index\na.png,-3\n"),
        args: "data info --data set", code: 1, says: &["set/labels.csv", "line 2", "`-3`"] },
    Case { name: "more classes than the model has", prepare: |p| {
            for class in 0..9 {
                p.write(&format!("set/{class}/1.png"), include_bytes!("cli_support/ok.png"));
            }
        }, args: "eval --model m --data set", code: 1, says: &["`set` has 9 classes, the model 8"] },
    Case { name: "pictures without labels", prepare: |p| p.write("set/1.png", include_bytes!("cli_support/ok.png")),
        args: "eval --model m --data set", code: 1, says: &["1.png", "no label"] },
    Case { name: "a split that is not stored", prepare: |p| p.write("set/val/cat/1.png", include_bytes!("cli_support/ok.png")),
        args: "eval --model m --data set --split test", code: 1, says: &["`set`", "no test split"] },
    Case { name: "a split that is none", prepare: NOTHING,
        args: "eval --model m --data shapes --split exam", code: 2, says: &["--split", "exam", "validation"] },
    Case { name: "a task that is none", prepare: NOTHING,
        args: "eval --model m --data shapes:taste", code: 1, says: &["taste", "orientation"] },
    Case { name: "drawing into a folder that exists", prepare: NOTHING,
        args: "data draw shapes -o m", code: 1, says: &["`m` exists already"] },
    Case { name: "drawing over a folder of another kind", prepare: NOTHING,
        args: "data draw shapes -o m --force", code: 1, says: &["`m` exists already", "labels.csv"] },
    Case { name: "drawing below a file", prepare: NOTHING,
        args: "data draw shapes -o ok.png/drawn", code: 1, says: &["ok.png/drawn"] },
    Case { name: "quickstart into a folder that exists", prepare: NOTHING,
        args: "quickstart -o m", code: 1, says: &["`m` exists already"] },
];

#[rustfmt::skip]
const RUNS: &[Case] = &[
    Case { name: "an output that exists", prepare: |p| p.write("y.safetensors", "mine"),
        args: "run --model m --input x.safetensors --output y.safetensors", code: 1, says: &["y.safetensors", "exists already", "--force"] },
    Case { name: "an output that is a folder", prepare: NOTHING,
        args: "run --model m --input x.safetensors --output m --force", code: 1, says: &["`m`", "not a regular file"] },
    Case { name: "an output in a folder that does not exist", prepare: NOTHING,
        args: "run --model m --input x.safetensors --output none/y.safetensors", code: 1, says: &["none/y.safetensors", "does not exist"] },
    Case { name: "an output below a file", prepare: NOTHING,
        args: "run --model m --input x.safetensors --output ok.png/y.safetensors", code: 1, says: &["ok.png/y.safetensors"] },
    Case { name: "no input", prepare: NOTHING,
        args: "run --model m --input none.safetensors --output y.safetensors", code: 1, says: &["none.safetensors", "No such file"] },
    Case { name: "an input of another name", prepare: |p| pixels(p, "x.safetensors", "images", &[1, 3, 32, 32]),
        args: "run --model m --input x.safetensors --output y.safetensors", code: 1, says: &["x.safetensors", "pixel_values", "it has `images`"] },
    Case { name: "an input of another size", prepare: |p| pixels(p, "x.safetensors", "pixel_values", &[1, 3, 224, 224]),
        args: "run --model m --input x.safetensors --output y.safetensors", code: 1, says: &["x.safetensors", "[images, 3, 32, 32]", "[1, 3, 224, 224]"] },
    Case { name: "an input without images", prepare: |p| pixels(p, "x.safetensors", "pixel_values", &[0, 3, 32, 32]),
        args: "run --model m --input x.safetensors --output y.safetensors", code: 1, says: &["x.safetensors", "no image"] },
    Case { name: "an input of bytes", prepare: |p| {
            let header = r#"{"pixel_values":{"dtype":"U8","shape":[1,3,32,32],"data_offsets":[0,3072]}}"#;
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.as_bytes());
            file.resize(file.len() + 3072, 0);
            p.write("x.safetensors", file);
        }, args: "run --model m --input x.safetensors --output y.safetensors", code: 1, says: &["x.safetensors", "F32", "U8"] },
];

#[rustfmt::skip]
const COMMANDS: &[Case] = &[
    Case { name: "batches of nothing", prepare: NOTHING,
        args: "eval --model m --data shapes --batch-size 0", code: 2, says: &["--batch-size", "from 1"] },
    Case { name: "a negative time", prepare: NOTHING,
        args: "bench m --seconds -1", code: 2, says: &["--seconds", "from 0 to 3600"] },
    Case { name: "an adapter on a name", prepare: NOTHING,
        args: "merge --model vit_nano_patch4_32 --adapter none -o out", code: 2, says: &["`vit_nano_patch4_32` is only a name"] },
    Case { name: "no threads", prepare: NOTHING,
        args: "eval --model m --data shapes --threads 0", code: 2, says: &["--threads", "from 1"] },
    Case { name: "a negative number of classes asked for", prepare: NOTHING,
        args: "eval --model m --data shapes --num-classes=-4", code: 2, says: &["--num-classes", "-4"] },
    Case { name: "a crop above one", prepare: NOTHING,
        args: "eval --model m --data shapes --crop-pct 1.5", code: 2, says: &["--crop-pct", "up to 1"] },
    Case { name: "a crop that is no number", prepare: NOTHING,
        args: "eval --model m --data shapes --crop-pct NaN", code: 2, says: &["--crop-pct"] },
    Case { name: "an image size between two patches", prepare: NOTHING,
        args: "eval --model m --data shapes --img-size 33", code: 1, says: &["33x33", "multiple of the patch size 4"] },
    Case { name: "no model", prepare: NOTHING,
        args: "eval --model ./none --data shapes", code: 1, says: &["./none", "No such file"] },
    Case { name: "a name that is none", prepare: NOTHING,
        args: "inspect --model deit_tinny_patch16_224", code: 1, says: &["deit_tinny_patch16_224", "did you mean `deit_tiny_patch16_224`", "--list"] },
    Case { name: "an architecture that is not the file's", prepare: NOTHING,
        args: "inspect --model m --architecture deit_tiny_patch16_224", code: 1, says: &["m/config.json", "deit_tiny_patch16_224"] },
    Case { name: "predicting with features", prepare: NOTHING,
        args: "predict --model m --num-classes 0 ok.png", code: 1, says: &["no classes"] },
];

#[test]
fn bad_weights() {
    check(WEIGHTS);
}

#[test]
fn bad_configs() {
    check(CONFIGS);
}

#[test]
fn bad_images() {
    check(IMAGES);
}

#[test]
fn bad_data() {
    check(DATA);
}

#[test]
fn bad_runs() {
    check(RUNS);
}

#[test]
fn bad_commands() {
    check(COMMANDS);
}

fn check(cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        let place = Place::new();
        prepare(&place);
        (case.prepare)(&place);
        let before = place.listing();
        let ran = place.run(case.args);
        let mut complain = |what: String| {
            failures.push(format!(
                "{}: {what}\n  {}",
                case.name,
                ran.stderr.trim_end().replace('\n', "\n  ")
            ));
        };
        if ran.code != case.code {
            complain(format!("ended with {}, expected {}", ran.code, case.code));
        }
        for part in case.says.iter().filter(|part| !ran.stderr.contains(**part)) {
            complain(format!("does not say `{part}`"));
        }
        if !ran.stderr.contains("error: ") {
            complain("no error".to_owned());
        }
        if place.listing() != before {
            complain(format!("left something behind: {:?}", place.listing()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A good folder is good: the cases fail for the reason they name.
#[test]
fn without_the_damage_everything_works() {
    let place = Place::new();
    prepare(&place);
    place.run("inspect --model m").ended(0);
    place.run("predict --model m ok.png").ended(0);
    place
        .run("run --model m --input x.safetensors --output y.safetensors")
        .ended(0);
    place.run("eval --model m --data shapes --limit 4").ended(0);
    assert!(Path::new(&place.path("y.safetensors")).exists());
}

/// The signature and header of a PNG of this size; no pixel follows.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&chunk);
    file.extend(crc32(&chunk).to_be_bytes());
    file.extend(b"\0\0\0\0IDAT");
    file.extend(crc32(b"IDAT").to_be_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// The start of a baseline JPEG of this size: quantisation table, frame header, start of scan; no pixel follows.
fn jpeg_header(width: u16, height: u16) -> Vec<u8> {
    let mut file = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    file.extend([1; 64]);
    file.extend([0xff, 0xc0, 0, 17, 8]);
    file.extend(height.to_be_bytes());
    file.extend(width.to_be_bytes());
    file.extend([3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    file.extend([0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    file.extend([0xff, 0xd9]);
    file
}
