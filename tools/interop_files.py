"""Weight files as people have them, each read by `vitesse run` and by the library that wrote it: the cases of interop.py.

Shards, wrappers, training folders and state dicts are written by PyTorch, timm and transformers themselves; where a library
can resize positions, it does so for the comparison. Every case is a path, flags, a model in Python and its input.
"""

import argparse
import copy
import datetime
import enum
import json
import os
import pathlib
import shutil

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver
from torch.optim.swa_utils import AveragedModel
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 10}
# Heads, their width, hidden units of the blocks of a sliced model.
WIDTHS = [(2, 20, 130), (1, 24, 64), (2, 7, 100), (3, 16, 33)]
HF_SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 100,
            "image_size": 32, "patch_size": 8, "num_labels": 5}


class Colour(enum.Enum):
    RED = 1


class Mine:
    def __init__(self):
        self.attribute = [1, 2]


def of_timm(randomise, name="deit_tiny_patch16_224", **args):
    return randomise(timm.create_model(name, **{**SIZES, **args}))


def sliced(randomise, scale_dim=None):
    """A model whose blocks differ in heads and widths; its scale is that of a head `scale_dim` wide, or of the width that is left."""
    model = timm.create_model("deit_tiny_patch16_224", **SIZES)
    for block, (heads, width, hidden) in zip(model.blocks, WIDTHS):
        block.attn = timm.layers.Attention(SIZES["embed_dim"], heads, attn_head_dim=width, qkv_bias=True)
        block.mlp = timm.layers.Mlp(SIZES["embed_dim"], hidden)
        if scale_dim:
            block.attn.fused_attn, block.attn.scale = False, scale_dim**-0.5
    return randomise(model)


def description(scale_dim):
    """What a `vit-pruned/1` file says of it."""
    blocks = [
        {"attn": {"qk_dims": [width] * heads, "v_dims": [width] * heads, "scale": scale_dim**-0.5}, "mlp": {"hidden": hidden}}
        for heads, width, hidden in WIDTHS
    ]
    known = {key: SIZES[key] for key in ("img_size", "patch_size", "embed_dim", "num_classes")}
    return {"config": json.dumps({"format": "vit-pruned/1", **known, "blocks": blocks})}


def times(model, factor):
    """A copy with other weights: a moving average, a teacher."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def prefixed(prefix, state_dict):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def save_safe(state_dict, path):
    save_file({name: tensor.contiguous().clone() for name, tensor in state_dict.items()}, path)


def shard(folder, state_dict, stem, ending, save, config=None):
    """A state dict in three files and their index."""
    folder.mkdir()
    weight_map = {}
    for part in range(3):
        name = f"{stem}-{part + 1:05}-of-00003.{ending}"
        names = list(state_dict)[part::3]
        save({name: state_dict[name] for name in names}, folder / name)
        weight_map.update({tensor: name for tensor in names})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    if config:
        (folder / "config.json").write_text(config.read_text())
    return folder


def train(folder, model, **args):
    """What timm's `train.py` leaves, its moving average among it."""
    folder.mkdir()
    args = argparse.Namespace(**{
        "model": "deit_nano_patch8_32", "lr": 1e-3, "mean": None, "std": None, "interpolation": "", "crop_pct": None,
        "img_size": None, "input_size": None, "in_chans": None, "gp": None, "model_kwargs": {}, **args,
    })
    ema = times(model, 1.01)
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), args=args, model_ema=ema, checkpoint_dir=folder,
        recovery_dir=folder, max_history=3, unwrap_fn=lambda model: model)
    for epoch, metric in enumerate([1.0, 3.0, 2.0]):
        saver.save_checkpoint(epoch, metric)
    (folder / "args.yaml").write_text(yaml.safe_dump(vars(args), default_flow_style=False))
    return folder, ema


def objects():
    """What training scripts keep beside the weights."""
    return {
        "args": argparse.Namespace(model="deit_nano_patch8_32", lr=np.float64(0.1), output_dir=pathlib.Path("runs")),
        "path": pathlib.PurePosixPath("a/b"), "scalar": np.float32(1.5), "array": np.arange(6).reshape(2, 3),
        "when": datetime.datetime(2026, 1, 2), "colour": Colour.RED, "mine": Mine(), "function": times,
        "dtype": torch.float16, "size": torch.Size([1, 2]), "device": torch.device("cpu"), "rng": torch.get_rng_state(),
        "set": {1, 2}, "bytes": b"\xff\x00", "complex": 1 + 2j, "long": 1 << 3000, "layer": torch.nn.Linear(2, 2),
    }


def file_cases(randomise, work):
    """Yields a name, flags for `vitesse run`, and the model that says what should come out with its input."""
    work = work / "files"
    work.mkdir()
    generator = torch.Generator().manual_seed(1)

    def x(channels=3, height=32, width=32):
        return torch.randn(2, channels, height, width, generator=generator)

    model = of_timm(randomise)
    weights = model.state_dict()
    timms = work / "timm"
    save_for_hf(model, timms, safe_serialization=True)
    vit = randomise(ViTForImageClassification(ViTConfig(**HF_SIZES)))
    deit = randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**HF_SIZES)))
    vit.save_pretrained(work / "vit", max_shard_size="60KB")
    deit.save_pretrained(work / "deit")

    yield "several files, saved by transformers", [work / "vit"], vit, x()
    folder = shard(work / "bin", vit.state_dict(), "pytorch_model", "bin", torch.save, work / "vit" / "config.json")
    yield "several pickled files", [folder], vit, x()
    folder = shard(work / "shards", weights, "model", "safetensors", save_safe, timms / "config.json")
    yield "several files of timm's names", [folder], model, x()
    yield "an index", [folder / "model.safetensors.index.json"], model, x()
    folder = shard(work / "diffusers", weights, "diffusion_pytorch_model", "safetensors", save_safe, timms / "config.json")
    yield "several files by another name", [folder], model, x()
    folder = shard(work / "wrapped", prefixed("_orig_mod.", weights), "pytorch_model", "bin", torch.save)
    yield "several files of a compiled model", [folder], model, x()

    parallel = torch.nn.DataParallel
    for case, wrapped in {
        "compiled": torch.compile(model), "data-parallel": parallel(model), "averaged": AveragedModel(model),
        "both": parallel(torch.compile(model)), "both, the other way": torch.compile(parallel(model)),
    }.items():
        torch.save({"state_dict": wrapped.state_dict()}, work / "wrapped.pth")
        yield f"wrapped: {case}", [work / "wrapped.pth"], model, x()
    for prefix in ["model.", "backbone.", "_orig_mod.module.model."]:
        save_safe(prefixed(prefix, weights), work / "wrapped.safetensors")
        yield f"wrapped: {prefix}", [work / "wrapped.safetensors"], model, x()

    for protocol in (2, 3, 4, 5):
        for zipped in (True, False):
            torch.save({"model": weights, **objects()}, work / "objects.pth", pickle_protocol=protocol,
                       _use_new_zipfile_serialization=zipped)
            form = "zip" if zipped else "old format"
            yield f"other objects: protocol {protocol}, {form}", [work / "objects.pth"], model, x()

    ema = times(model, 1.01)
    file = work / "several.pth"
    torch.save({"model": weights, "model_ema": ema.state_dict(), "epoch": 3}, file)
    yield "a moving average", [file], ema, x()
    yield "not the moving average", [file, "--key", "model"], model, x()
    teacher = {**prefixed("backbone.", ema.state_dict()), "head.mlp.weight": torch.ones(2)}
    torch.save({"student": prefixed("module.", weights), "teacher": teacher}, file)
    yield "a student", [file, "--key", "student"], model, x()
    yield "the backbone of a teacher", [file, "--key", "teacher.backbone"], ema, x()
    both = work / "both.safetensors"
    save_safe({**prefixed("student.", weights), **prefixed("teacher.", ema.state_dict())}, both)
    yield "one of two in a flat file", [both, "--key", "teacher"], ema, x()

    folder, ema = train(work / "train", model)
    yield "timm's training", [folder], ema, x()
    yield "timm's training, not averaged", [folder, "--key", "state_dict"], model, x()
    os.remove(folder / "model_best.pth.tar")
    os.remove(folder / "last.pth.tar")
    yield "timm's training, numbered", [folder], ema, x()
    other = of_timm(randomise, in_chans=1, img_size=(32, 48), global_pool="avg")
    folder, ema = train(work / "train-args", other, in_chans=1, input_size=[1, 32, 48], gp="avg", mean=[0.3], std=[0.4])
    yield "timm's training with arguments", [folder], ema, x(1, 32, 48)

    for case, args, flags in [
        ("fc_norm", {"global_pool": "avg"}, []),
        ("a rectangle", {"img_size": (32, 48)}, ["--img-size", "32x48"]),
        ("another square", {"img_size": 64}, []),
        ("one channel", {"in_chans": 1}, []),
    ]:
        bare = of_timm(randomise, **args)
        save_safe(bare.state_dict(), work / "bare.safetensors")
        height, width = bare.patch_embed.img_size
        yield f"bare: {case}", [work / "bare.safetensors", *flags], bare, x(args.get("in_chans", 3), height, width)
    distilled = of_timm(randomise, "deit_tiny_distilled_patch16_224", img_size=48)
    torch.save({"model": distilled.state_dict()}, work / "bare.pth")
    yield "bare: distilled, another square", [work / "bare.pth"], distilled, x(3, 48, 48)

    heads = ["--num-heads", ",".join(str(heads) for heads, _, _ in WIDTHS)]
    left, kept = sliced(randomise), sliced(randomise, 32)
    torch.save(left.state_dict(), work / "sliced.pth")
    yield "sliced: heads given", [work / "sliced.pth", *heads], left, x()
    torch.save(kept.state_dict(), work / "sliced.pth")
    yield "sliced: the scale of the dense model", [work / "sliced.pth", *heads, "--head-dim", "32"], kept, x()
    save_file(kept.state_dict(), work / "pruned.safetensors", description(32))
    yield "pruned: described by itself", [work / "pruned.safetensors"], kept, x()

    for channels in (1, 4):
        folder = work / f"channels-{channels}"
        many = of_timm(randomise, in_chans=channels)
        save_for_hf(many, folder, safe_serialization=True)
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"].update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        (folder / "config.json").write_text(json.dumps(config))
        yield f"channels: {channels}, with three means", [folder], many, x(channels)

    for height, width in [(64, 64), (24, 24), (48, 24), (16, 72)]:
        size = ["--img-size", f"{height}x{width}"]
        resized = timm.create_model(f"local-dir:{timms}", pretrained=True, img_size=(height, width)).eval()
        yield f"{height}x{width} as timm", [timms, *size], resized, x(3, height, width)
        for name, hf in (("vit", vit), ("deit", deit)):
            def resizing(images, hf=hf):
                return hf(images, interpolate_pos_encoding=True)
            yield f"{height}x{width} as transformers, {name}", [work / name, *size], resizing, x(3, height, width)


@torch.no_grad()
def compare(vitesse, randomise, report, work):
    """Runs every case and reports the largest difference of the logits, relative to the largest logit above 1."""
    images, answer = work / "images.safetensors", work / "answer.safetensors"
    for case, flags, model, x in file_cases(randomise, work):
        save_file({"pixel_values": x}, images)
        vitesse("run", "--model", *flags, "--input", images, "--output", answer, "--force")
        found = load_file(answer)["logits"]
        expected = model(x)
        expected = getattr(expected, "logits", expected)
        scale = max(1.0, expected.abs().max().item())
        report(f"files: {case}", (found - expected).abs().max().item() / scale)
    for case, problem, classes in PROBLEMS:
        report(f"files: {case}", scored(vitesse, randomise, work / "scored", problem, classes))


# What a folder of transformers' says its logits stand for, and how many there are.
PROBLEMS = [
    ("several labels an image", "multi_label_classification", 5),
    ("one label of several", "single_label_classification", 5),
    ("one class alone", None, 1),
    ("values", "regression", 2),
]


def scored(vitesse, randomise, folder, problem, classes):
    """The largest difference of `vitesse predict`'s scores from those of transformers' pipeline."""
    labels = {i: f"class {i}" for i in range(classes)}
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        id2label=labels, problem_type=problem,
    )
    shutil.rmtree(folder, ignore_errors=True)
    randomise(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    picture = folder / "picture.png"
    # Of the size of the model: the two resize with different libraries.
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(picture)
    expected = pipeline("image-classification", model=str(folder), device="cpu")(str(picture), top_k=classes)
    found = json.loads(vitesse("predict", "--model", folder, "--topk", classes, "--json", picture).stdout)
    found = {row["name"]: row["score"] for row in found["predictions"][0]["classes"]}
    return max(abs(found[row["label"]] - row["score"]) for row in expected)
