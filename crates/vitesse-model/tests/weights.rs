//! Weight files as people have them: in several files, wrapped, beside other objects, one of several in a folder.

#![allow(clippy::unwrap_used, clippy::panic)]

mod pickle;

use std::fs;
use std::path::{Path, PathBuf};

use pickle::{Object, dict, instance, save, text};
use serde_json::json;
use vitesse_model::checkpoint::{file_sha256, weights_file, weights_sha256};
use vitesse_model::pos_embed::Flavour;
use vitesse_model::spec::Pool;
use vitesse_model::storage::safetensors;
use vitesse_model::{Checkpoint, LoadOptions, NetworkSpec, Tensor, Tensors};

const MICRO: &str = "deit_micro_patch4_32";

fn fresh(seed: u64) -> Checkpoint {
    Checkpoint::fresh("deit_nano_patch8_32", None, None, seed).unwrap()
}

fn load(path: &Path) -> Checkpoint {
    Checkpoint::load(path, &LoadOptions::default()).unwrap()
}

fn load_key(path: &Path, key: &str) -> Result<Checkpoint, String> {
    let options = LoadOptions {
        key: Some(key.to_owned()),
        ..LoadOptions::default()
    };
    Checkpoint::load(path, &options).map_err(|error| error.to_string())
}

fn refused(path: &Path) -> String {
    Checkpoint::load(path, &LoadOptions::default())
        .unwrap_err()
        .to_string()
}

fn write(path: &Path, tensors: &Tensors) {
    safetensors::write(path, tensors, &safetensors::Metadata::new()).unwrap();
}

/// The tensors with something before their names.
fn prefixed(prefix: &str, tensors: &Tensors) -> Tensors {
    tensors
        .iter()
        .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
        .collect()
}

/// Two state dicts in one.
fn both(one: Tensors, other: Tensors) -> Tensors {
    one.into_iter().chain(other).collect()
}

/// Writes a folder with the description of a model and its tensors in three files.
fn shard(folder: &Path, made: &Checkpoint, ending: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::write(
        folder.join("config.json"),
        made.config.to_json(&made.spec).unwrap(),
    )
    .unwrap();
    let stem = if ending == "bin" { "pytorch_model" } else { "model" };
    let mut map = serde_json::Map::new();
    for part in 0..3 {
        let file = format!("{stem}-0000{}-of-00003.{ending}", part + 1);
        let tensors: Tensors = made
            .tensors
            .iter()
            .skip(part)
            .step_by(3)
            .map(|(name, tensor)| (name.to_owned(), tensor.clone()))
            .collect();
        map.extend(tensors.names().map(|name| (name.to_owned(), json!(file))));
        if ending == "bin" {
            save(&folder.join(&file), &Object::StateDict(tensors));
        } else {
            write(&folder.join(&file), &tensors);
        }
    }
    let index = folder.join(format!("{stem}.{ending}.index.json"));
    fs::write(
        &index,
        json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string(),
    )
    .unwrap();
    index
}

#[test]
fn several_files_are_read_by_their_index() {
    let place = tempfile::tempdir().unwrap();
    let made = fresh(1);
    for ending in ["safetensors", "bin"] {
        let folder = place.path().join(ending);
        let index = shard(&folder, &made, ending);
        let loaded = load(&folder);
        assert_eq!((&loaded.spec, &loaded.tensors), (&made.spec, &made.tensors));
        assert!(loaded.source.notes.join("\n").contains("3 files"));
        assert_eq!(load(&index).tensors, made.tensors);
        assert_eq!(weights_file(&folder).unwrap(), index);

        // What is known of them is the text of `sha256sum`, whatever the index looks like.
        let sums: String = (1..=3)
            .map(|part| {
                let stem = if ending == "bin" { "pytorch_model" } else { "model" };
                let name = format!("{stem}-0000{part}-of-00003.{ending}");
                format!("{}  {name}\n", file_sha256(&folder.join(&name)).unwrap())
            })
            .collect();
        fs::write(place.path().join("sums"), sums).unwrap();
        let expected = file_sha256(&place.path().join("sums")).unwrap();
        assert_eq!(loaded.source_sha256().unwrap(), Some(expected.clone()));
        let text = fs::read_to_string(&index).unwrap();
        fs::write(&index, text.replace(',', ", ")).unwrap();
        assert_eq!(weights_sha256(&index, None).unwrap(), expected);

        // One of them alone is none.
        let one = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().contains("-00002-of-"))
            .unwrap();
        assert!(refused(&one).contains("one of several files"));
        fs::remove_file(&index).unwrap();
        assert!(refused(&folder).contains("without their index"));
    }
    // Any name of an index will do, and wrappers are taken off all files together.
    let folder = place.path().join("diffusers");
    let wrapped = Checkpoint {
        tensors: prefixed("_orig_mod.", &made.tensors),
        ..made.clone()
    };
    let index = shard(&folder, &wrapped, "safetensors");
    fs::rename(
        &index,
        folder.join("diffusion_pytorch_model.safetensors.index.json"),
    )
    .unwrap();
    assert_eq!(load(&folder).tensors, made.tensors);
}

#[test]
fn an_index_that_its_files_do_not_agree_with_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let made = fresh(1);
    let folder = place.path().join("m");
    let index = shard(&folder, &made, "safetensors");
    let good = fs::read_to_string(&index).unwrap();
    let shard = |part| format!("model-0000{part}-of-00003.safetensors");
    let cls = "\"cls_token\":\"";
    let at = good.find(cls).unwrap() + cls.len();
    let of_cls = good[at..].split('"').next().unwrap().to_owned();
    let with_cls = |file: &str| format!("{}{file}{}", &good[..at], &good[at + of_cls.len()..]);
    let other = (1..=3).map(shard).find(|name| *name != of_cls).unwrap();
    for (text, expected) in [
        (
            with_cls("../model-00001-of-00003.safetensors"),
            "should be a plain name",
        ),
        (with_cls("/etc/passwd"), "should be a plain name"),
        (with_cls("sub/x.safetensors"), "should be a plain name"),
        (with_cls(""), "should be a plain name"),
        (with_cls("."), "should be a plain name"),
        (with_cls("x.safetensors/"), "should be a plain name"),
        (
            with_cls("model-00004-of-00003.safetensors"),
            "of its 4 files, 1 cannot be found",
        ),
        (with_cls(&other), "but `"),
        (
            good.replacen("\"cls_token\"", "\"cls_tokens\"", 1),
            "which it does not name",
        ),
        (
            good.replacen(
                "{\"blocks",
                &format!("{{\"nowhere\":\"{}\",\"blocks", shard(1)),
                1,
            ),
            "not in the files that it names: 1 tensor, ",
        ),
        (
            good.replacen(
                "{\"blocks",
                &format!("{{\"cls_token\":\"{}\",\"blocks", shard(1)),
                1,
            ),
            "`cls_token` stands in it twice",
        ),
        ("{\"weight_map\": {}}".to_owned(), "names no tensor"),
        ("{\"weight_map\": []}".to_owned(), "should be an object"),
        ("{}".to_owned(), "missing field `weight_map`"),
        ("".to_owned(), "should be an object"),
    ] {
        assert_ne!(text, good, "{expected}");
        fs::write(&index, text).unwrap();
        let error = refused(&folder);
        assert!(
            error.contains(expected) && error.contains("model.safetensors.index.json"),
            "{error}\n{expected}"
        );
    }
    // A tensor that stands in two files.
    fs::write(&index, &good).unwrap();
    let (mut tensors, _) = safetensors::read(&folder.join(&other)).unwrap();
    tensors.insert("cls_token", made.tensors.get("cls_token").unwrap().clone());
    write(&folder.join(&other), &tensors);
    assert!(refused(&folder).contains("holds it too"));
    fs::remove_file(folder.join(&other)).unwrap();
    let error = refused(&folder);
    assert!(
        error.contains("of its 3 files, 1 cannot be found") && error.contains(&other),
        "{error}"
    );
}

#[test]
fn wrapped_names_are_unwrapped_in_every_format() {
    let place = tempfile::tempdir().unwrap();
    let made = fresh(1);
    for prefix in [
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "_orig_mod.module.model.",
    ] {
        let mut tensors = prefixed(prefix, &made.tensors);
        let flat = place.path().join("x.safetensors");
        write(&flat, &tensors);
        // A moving average counts what it averaged.
        tensors.insert_f32("n_averaged", &[], vec![3.0]).unwrap();
        let pickled = place.path().join("x.pth");
        save(&pickled, &dict([("state_dict", Object::StateDict(tensors))]));
        for path in [&flat, &pickled] {
            let loaded = load(path);
            assert_eq!(loaded.tensors, made.tensors);
            assert!(loaded.source.notes.join("\n").contains(&format!("`{prefix}`")));
        }
    }
    // Names that transformers gives.
    let two = both(
        prefixed("student.", &made.tensors),
        prefixed("teacher.", &fresh(2).tensors),
    );
    let path = place.path().join("two.safetensors");
    write(&path, &two);
    let error = refused(&path);
    assert!(
        error.contains("`student.`") && error.contains("--key student"),
        "{error}"
    );
    assert_eq!(load_key(&path, "teacher").unwrap().tensors, fresh(2).tensors);
    let error = load_key(&path, "model").unwrap_err();
    assert!(
        error.contains("no tensors under `model`") && error.contains("`student`, `teacher`"),
        "{error}"
    );
}

#[test]
fn a_state_dict_is_taken_as_timm_takes_it_or_as_asked() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.pth");
    let of = |seed| Object::StateDict(fresh(seed).tensors);
    let none = || Object::Raw(b"N".to_vec());
    for (file, first) in [
        (
            dict([
                ("model", of(1)),
                ("state_dict", of(2)),
                ("model_ema", of(3)),
                ("state_dict_ema", of(4)),
            ]),
            4,
        ),
        (
            dict([
                ("model", of(1)),
                ("state_dict", of(2)),
                ("model_ema", of(3)),
                ("state_dict_ema", none()),
            ]),
            3,
        ),
        (
            dict([("model", of(1)), ("state_dict", of(2)), ("model_ema", none())]),
            2,
        ),
        (dict([("epoch", none()), ("model", of(1))]), 1),
        (of(5), 5),
    ] {
        save(&path, &file);
        let loaded = load(&path);
        assert_eq!(loaded.tensors, fresh(first).tensors);
        let notes = loaded.source.notes.join("\n");
        assert_eq!(
            notes.contains("the moving average, as timm does"),
            (3..5).contains(&first),
            "{notes}"
        );
    }
    save(&path, &dict([("model", of(1)), ("model_ema", of(2))]));
    assert!(load(&path).source.notes[0].contains("`--key model`"));
    let asked = load_key(&path, "model").unwrap();
    assert_eq!(asked.tensors, fresh(1).tensors);
    assert_ne!(
        asked.source_sha256().unwrap(),
        load(&path).source_sha256().unwrap()
    );
    let error = load_key(&path, "teacher").unwrap_err();
    assert!(
        error.contains("`model` (") && error.contains("`model_ema` ("),
        "{error}"
    );

    // What timm would not find is chosen by name, however deep it stands.
    save(
        &path,
        &dict([
            ("ema", dict([("shadow", of(2)), ("decay", none())])),
            ("net", of(1)),
            (
                "teacher",
                Object::StateDict(prefixed("module.backbone.", &fresh(3).tensors)),
            ),
        ]),
    );
    let error = refused(&path);
    assert!(
        error.contains("`ema.shadow` (") && error.contains("`net` (") && error.contains("--key"),
        "{error}"
    );
    for (key, seed) in [
        ("net", 1),
        ("ema.shadow", 2),
        ("teacher", 3),
        ("teacher.module.backbone", 3),
    ] {
        assert_eq!(
            load_key(&path, key).unwrap().tensors,
            fresh(seed).tensors,
            "{key}"
        );
    }
    for key in [
        "",
        ".",
        "ema",
        "ema.shadow.x",
        "teacher.backbone",
        "net.blocks",
        "epoch",
    ] {
        let error = load_key(&path, key).unwrap_err();
        assert!(error.contains("x.pth"), "{key}: {error}");
    }
    // A projection head beside the backbone: not all of it is the network.
    let mut head = prefixed("backbone.", &fresh(1).tensors);
    head.insert_f32("head.mlp.weight", &[2], vec![0.0; 2]).unwrap();
    save(&path, &dict([("model", Object::StateDict(head))]));
    assert!(refused(&path).contains("--key model.backbone"));
    assert_eq!(
        load_key(&path, "model.backbone").unwrap().tensors,
        fresh(1).tensors
    );
    // A number beside the state dict is not one.
    let mut best = Tensors::new();
    best.insert_f32("best_loss", &[], vec![0.1]).unwrap();
    save(&path, &Object::StateDict(best));
    assert!(refused(&path).contains("no architecture of the zoo"));
}

#[test]
fn other_objects_are_closed_boxes() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.pth");
    let call = |program: &[u8]| Object::Raw(program.to_vec());
    let weights = || Object::StateDict(fresh(1).tensors);
    save(
        &path,
        &dict([
            ("model", weights()),
            ("args", instance("argparse", "Namespace", &[("lr", call(b"G\x3f\xe0\0\0\0\0\0\0"))])),
            ("out", call(b"cpathlib\nPosixPath\nX\x01\0\0\0x\x85R")),
            ("best", call(b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f4K\0K\x01\x87RU\x04\0\0\xc0?\x86R")),
            ("when", call(b"cdatetime\ndatetime\nU\x0a\x07\xea\x0b\x1e\x02\x08\x0e\0\0\0\x85R")),
            ("colour", call(b"c__main__\nColour\nK\x01\x85R")),
            ("loss", call(b"c__main__\nloss\n")),
            ("dtype", call(b"ctorch\nfloat16\n")),
            ("size", call(b"ctorch\nSize\nK\x01K\x02\x86\x85R")),
            ("run", call(b"cos\nsystem\nX\x04\0\0\0true\x85R")),
        ]),
    );
    let loaded = load(&path);
    assert_eq!(loaded.tensors, fresh(1).tensors);
    let note = &loaded.source.notes[0];
    for label in [
        "`args` (Python's `argparse.Namespace`)",
        "`out` (Python's `pathlib.PosixPath`)",
        "`run` (Python's `os.system`)",
    ] {
        assert!(note.contains(label), "{note}");
    }
    for (file, expected) in [
        (
            instance("models", "Net", &[]),
            "a whole object of Python's class `models.Net`",
        ),
        (
            dict([("model", instance("models", "Net", &[]))]),
            "`model` (Python's `models.Net`)",
        ),
        (
            dict([(
                "model",
                dict([("w", call(b"cnumpy.core.multiarray\n_reconstruct\n)R"))]),
            )]),
            "`model` (with Python's `numpy.core.multiarray._reconstruct` in it)",
        ),
    ] {
        save(&path, &file);
        let error = refused(&path);
        assert!(
            error.contains(expected) && error.contains("model.state_dict()"),
            "{error}"
        );
    }
    // A weight that is no plain tensor is never left out silently.
    let quantised = dict([(
        "model",
        dict([("w", call(b"ctorch._utils\n_rebuild_qtensor\n)R"))]),
    )]);
    let Object::Dict(mut items) = quantised else {
        panic!()
    };
    items.push((
        "state_dict",
        dict([
            ("w", call(b"ctorch._utils\n_rebuild_qtensor\n)R")),
            ("v", call(b"N")),
        ]),
    ));
    save(&path, &Object::Dict(items));
    assert!(refused(&path).contains("_rebuild_qtensor"));
}

#[test]
fn what_is_no_weights_file_is_told_what_it_is() {
    let place = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (content, expected) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\n"[..],
            "git lfs pull",
        ),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"BZh9", "bzip2"),
        (b"\x89HDF\r\n", "HDF5"),
        (&tar, "tar archive"),
    ] {
        for name in ["x.safetensors", "x.pth.tar", "pytorch_model.bin"] {
            let path = place.path().join(name);
            fs::write(&path, content).unwrap();
            let error = refused(&path);
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
    }
    // A name that says the other format does not matter.
    let path = place.path().join("really.bin");
    write(&path, &fresh(1).tensors);
    assert_eq!(load(&path).tensors, fresh(1).tensors);
    let path = place.path().join("really.safetensors");
    save(&path, &Object::StateDict(fresh(1).tensors));
    assert_eq!(load(&path).tensors, fresh(1).tensors);
}

#[test]
fn of_several_files_the_best_is_taken_and_said() {
    let place = tempfile::tempdir().unwrap();
    let put = |name: &str, seed| {
        let path = place.path().join(name);
        match name.ends_with(".safetensors") {
            true => write(&path, &fresh(seed).tensors),
            false => save(&path, &Object::StateDict(fresh(seed).tensors)),
        }
    };
    // From the last that is taken to the first.
    for (seed, name) in [
        "checkpoint-2.pth.tar",
        "checkpoint-10.pth.tar",
        "last.pth.tar",
        "model_best.pth.tar",
        "pytorch_model.bin",
        "model.safetensors",
    ]
    .iter()
    .enumerate()
    {
        put(name, seed as u64);
        // What training keeps besides is no candidate.
        put("optimizer.bin", 99);
        put("training_args.bin", 99);
        let loaded = load(place.path());
        assert_eq!(loaded.tensors, fresh(seed as u64).tensors, "{name}");
        let notes = loaded.source.notes.join("\n");
        assert_eq!(
            notes.contains(&format!("took `{name}`; beside it stand")),
            seed > 0,
            "{notes}"
        );
        assert!(!notes.contains("training_args"), "{notes}");
    }
    let other = tempfile::tempdir().unwrap();
    for name in ["a.pth", "b.pth"] {
        save(&other.path().join(name), &Object::StateDict(fresh(1).tensors));
    }
    let error = refused(other.path());
    assert!(
        error.contains("`a.pth`, `b.pth`") && error.contains("give the path"),
        "{error}"
    );
    let adapter = tempfile::tempdir().unwrap();
    write(
        &adapter.path().join("adapter_model.safetensors"),
        &fresh(1).tensors,
    );
    assert!(refused(adapter.path()).contains("an adapter and not a model"));
}

#[test]
fn what_training_wrote_down_describes_the_model() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model_best.pth.tar");
    let made = Checkpoint::fresh("vit_micro_patch4_32", Some(5), Some([32, 48]), 1).unwrap();
    let args = |more: Vec<(&'static str, Object)>| {
        let mut all = vec![
            ("model", text("vit_micro_patch4_32")),
            ("mean", Object::Raw(b"N".to_vec())),
        ];
        all.extend(more);
        instance("argparse", "Namespace", &all)
    };
    let weights = || Object::StateDict(made.tensors.clone());
    let number = |text: &str| {
        Object::Raw([b"G".to_vec(), text.parse::<f64>().unwrap().to_be_bytes().to_vec()].concat())
    };
    let size = || Object::Raw(b"](K\x03K\x20K\x30e".to_vec());
    save(
        &path,
        &dict([
            ("arch", text("vit_micro_patch4_32")),
            ("state_dict", weights()),
            (
                "args",
                args(vec![
                    ("input_size", size()),
                    ("crop_pct", number("0.8")),
                    ("interpolation", text("bilinear")),
                ]),
            ),
        ]),
    );
    let loaded = load(place.path());
    assert_eq!((&loaded.spec, &loaded.tensors), (&made.spec, &made.tensors));
    let cfg = &loaded.config.pretrained_cfg;
    assert_eq!((cfg.crop_pct, cfg.mean.as_slice()), (0.8, &[0.5; 3][..]));
    assert_eq!(format!("{:?}", cfg.interpolation), "Bilinear");
    assert_eq!(loaded.source.pos_embed, Flavour::Timm);
    let notes = loaded.source.notes.join("\n");
    assert!(
        notes.contains("its training says that it is `vit_micro_patch4_32`")
            && notes.contains("crop_pct 0.8"),
        "{notes}"
    );

    // An architecture that is not known is refused by its name, whatever its shapes say.
    save(
        &path,
        &dict([
            ("state_dict", weights()),
            (
                "args",
                instance("argparse", "Namespace", &[("model", text("swin_x"))]),
            ),
        ]),
    );
    assert!(refused(&path).contains("unknown architecture `swin_x`"));
    // One that no class here is named like says nothing.
    let square = Checkpoint::fresh(MICRO, None, None, 1).unwrap();
    save(
        &path,
        &dict([
            ("arch", text("visiontransformer")),
            ("state_dict", Object::StateDict(square.tensors.clone())),
        ]),
    );
    assert_eq!(load(&path).spec, square.spec);

    // Where the file says nothing, timm's file of arguments beside it does; what it says must be possible.
    fs::remove_file(&path).unwrap();
    let clean = place.path().join("clean.safetensors");
    write(&clean, &square.tensors);
    fs::write(
        place.path().join("args.yaml"),
        "model: vit_micro_patch4_32\nmean:\n- 0.1\n- 0.2\n- 0.3\nstd: null\n",
    )
    .unwrap();
    let loaded = load(&clean);
    assert_eq!(loaded.spec.architecture, "vit_micro_patch4_32");
    assert_eq!(loaded.config.pretrained_cfg.mean, [0.1, 0.2, 0.3]);
    fs::write(
        place.path().join("args.yaml"),
        "model: vit_micro_patch4_32\nmean: [0.1, 0.2]\n",
    )
    .unwrap();
    let error = refused(&clean);
    assert!(
        error.contains("args.yaml") && error.contains("pretrained_cfg.mean"),
        "{error}"
    );
}

#[test]
fn bare_files_say_what_can_be_read_off_them() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.safetensors");
    let variant = |change: &dyn Fn(&mut vitesse_model::spec::VitSpec)| {
        let mut made = Checkpoint::fresh(MICRO, None, None, 1).unwrap();
        let NetworkSpec::Vit(vit) = &mut made.spec.network else {
            panic!()
        };
        change(vit);
        made.tensors = made.spec.init(1).unwrap();
        write(&path, &made.tensors);
        made
    };
    let made = variant(&|vit| vit.pool = Pool::AvgThenNorm);
    let loaded = load(&path);
    assert_eq!((&loaded.spec, &loaded.tensors), (&made.spec, &made.tensors));
    assert!(loaded.source.notes.join("\n").contains("`fc_norm`"));
    assert_eq!(loaded.source.pos_embed, Flavour::Deit);

    // Other sizes: square ones are read off the table, others must be given.
    let made = variant(&|vit| vit.img_size = [64, 64]);
    assert_eq!(load(&path).spec, made.spec);
    let made = variant(&|vit| vit.img_size = [24, 64]);
    let error = refused(&path);
    assert!(
        error.contains("`pos_embed`") && error.contains("96 patches") && error.contains("--img-size"),
        "{error}"
    );
    let at = |size| {
        let options = LoadOptions {
            img_size: Some(size),
            ..LoadOptions::default()
        };
        Checkpoint::load(&path, &options)
    };
    let loaded = at([24, 64]).unwrap();
    assert_eq!((&loaded.spec, &loaded.tensors), (&made.spec, &made.tensors));
    assert!(at([64, 64]).unwrap_err().to_string().contains("96 patches"));
    // A table that is a square is one, even where another grid has as many patches.
    variant(&|_| {});
    let resized = at([16, 64]).unwrap();
    assert!(
        resized
            .source
            .notes
            .join("\n")
            .contains("resized from 8x8 to 4x16 patches")
    );

    // Another number of channels; DeiT's three means have an average.
    variant(&|vit| vit.in_chans = 1);
    let loaded = load(&path);
    let cfg = &loaded.config.pretrained_cfg;
    assert!((cfg.mean[0] - 0.449).abs() < 1e-9 && (cfg.std[0] - 0.226).abs() < 1e-9);
    assert!(loaded.source.notes.join("\n").contains("1 channel"));

    // What no model here has is named.
    let mut strange = Checkpoint::fresh(MICRO, None, None, 1).unwrap().tensors;
    strange.insert(
        "reg_token",
        Tensor::from_f32(&[1, 4, 96], vec![0.0; 4 * 96]).unwrap(),
    );
    write(&path, &strange);
    let error = refused(&path);
    assert!(
        error.contains("reg_token") && error.contains("--architecture") && error.contains("_micro_patch4_32"),
        "{error}"
    );
}

#[test]
fn one_channel_takes_the_average_of_three_means() {
    let place = tempfile::tempdir().unwrap();
    let mut made = fresh(1);
    let NetworkSpec::Vit(vit) = &mut made.spec.network else {
        panic!()
    };
    vit.in_chans = 1;
    made.tensors = made.spec.init(1).unwrap();
    (made.config.pretrained_cfg.mean, made.config.pretrained_cfg.std) = (vec![0.5], vec![0.5]);
    let folder = place.path().join("m");
    made.save(&folder, false).unwrap();
    let file = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    config["pretrained_cfg"]["mean"] = json!([0.1, 0.2, 0.6]);
    fs::write(&file, config.to_string()).unwrap();
    let loaded = load(&folder);
    assert!((loaded.config.pretrained_cfg.mean[0] - 0.3).abs() < 1e-9);
    assert_eq!(loaded.config.pretrained_cfg.std, [0.5]);
    assert!(
        loaded.source.notes[0].contains("`mean` [0.1, 0.2, 0.6]"),
        "{:?}",
        loaded.source.notes
    );
    // Saved, it says one.
    loaded.save(&place.path().join("again"), false).unwrap();
    assert!(load(&place.path().join("again")).source.notes.is_empty());
    config["pretrained_cfg"]["mean"] = json!([0.1, 0.2]);
    fs::write(&file, config.to_string()).unwrap();
    assert!(refused(&folder).contains("pretrained_cfg.mean"));
}

#[test]
fn positions_are_resized_as_where_the_checkpoint_comes_from() {
    let place = tempfile::tempdir().unwrap();
    let made = fresh(1);
    let folder = place.path().join("timm");
    made.save(&folder, false).unwrap();
    let bare = place.path().join("x.pth");
    save(&bare, &dict([("model", Object::StateDict(made.tensors.clone()))]));
    let at = |path: &Path, pos_embed| {
        let options = LoadOptions {
            img_size: Some([48, 16]),
            pos_embed,
            ..LoadOptions::default()
        };
        Checkpoint::load(path, &options).unwrap()
    };
    let table = |checkpoint: &Checkpoint| checkpoint.tensors.get("pos_embed").unwrap().clone();
    let (timms, deits) = (at(&folder, None), at(&bare, None));
    assert!(timms.source.notes.join("\n").contains("as timm does"));
    assert!(
        deits
            .source
            .notes
            .join("\n")
            .contains("as the original DeiT code does")
    );
    assert_ne!(table(&timms), table(&deits));
    assert_eq!(table(&at(&folder, Some(Flavour::Deit))), table(&deits));
    assert_eq!(table(&at(&folder, Some(Flavour::Transformers))), table(&deits));
    assert_eq!(table(&at(&bare, Some(Flavour::Timm))), table(&timms));
}
