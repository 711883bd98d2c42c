#!/usr/bin/env python3
"""Checks that checkpoints travel between this project, timm and transformers without losing anything.

    python tools/interop.py [--roundtrip PROGRAM] [--vitesse PROGRAM] [--only WORD]

Needs `torch`, `timm` and `transformers`, and the example `roundtrip` of the crate `vitesse-model` and the program
`vitesse`, which it builds unless PROGRAM names them. Everything is random weights in a temporary folder; nothing is
downloaded. For each case it prints the largest difference of the logits, and it ends with status 1 when a load is not
strict or a difference is above 1e-4, times the largest logit where that is above 1. `--only files` runs those cases
alone.

  from timm          timm saves a model, we load and save it, timm loads ours: logits equal, tensors bit-equal
  from transformers  transformers saves a model, we import and save it, timm loads ours (with the epsilon the file
                     states, which timm takes from the architecture and not from the file): logits equal
  of ours            we make a model of the zoo, timm builds and loads it strictly
  preparation        an image is prepared by transformers, from our preprocessor_config.json or its own, and by timm
                     from our config.json: pixels equal
  files              weight files as people have them (interop_files.py): in several files, wrapped, beside other
                     objects, one of several, bare, of other channels, at another size; `vitesse run` says what the
                     library that wrote them says
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import interop_files
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf
from transformers import (
    AutoImageProcessor,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
failures = []


def report(case, difference):
    ok = difference <= TOLERANCE
    print(f"{'ok  ' if ok else 'FAIL'} {case:60} max difference {difference:.2e}")
    if not ok:
        failures.append(case)


def randomise(model):
    """Gives every parameter and statistic a value of its own, so that a swapped tensor shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.05
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else tensor + noise)
    return model.eval()


def images(model):
    """Two random images of the size that the description of a loaded model states."""
    return torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))


def from_timm_folder(folder):
    """The model timm builds from a folder: `local-dir:` loads strictly."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@torch.no_grad()
def timm_cases(roundtrip, work):
    cases = {
        "deit_tiny_patch16_224": {},
        "deit_tiny_distilled_patch16_224": {"num_classes": 7},
        "vit_tiny_patch16_384": {"num_classes": 0},
        "vit_base_patch32_224": {"depth": 1, "mlp_ratio": 2.5, "qkv_bias": False},
        "vit_tiny_patch16_224": {
            "img_size": (32, 48), "patch_size": 4, "embed_dim": 96, "depth": 2, "num_heads": 3, "in_chans": 1,
            "global_pool": "avg", "class_token": False, "reg_tokens": 2, "no_embed_class": True,
        },
        "vit_small_patch16_224": {"depth": 2, "global_pool": "avg", "fc_norm": False},
        "regnety_002": {"num_classes": 5},
    }
    for name, args in cases.items():
        model = randomise(timm.create_model(name, **args))
        theirs, ours = work / f"timm-{name}", work / f"ours-{name}"
        save_for_hf(model, theirs, safe_serialization=True)
        roundtrip(theirs, ours)
        again = from_timm_folder(ours)
        x = images(again)
        report(f"from timm: {name} {args or ''}", (model(x) - again(x)).abs().max().item())
        before, after = load_file(theirs / "model.safetensors"), load_file(ours / "model.safetensors")
        if before.keys() != after.keys() or any(not torch.equal(before[key], after[key]) for key in before):
            failures.append(f"{name}: tensors changed")
        # A pickled state dict of the same model, as the original DeiT code writes it.
        if not args:
            torch.save({"model": model.state_dict(), "epoch": 3}, work / "bare.pth")
            roundtrip(work / "bare.pth", ours, "--architecture", name)
            report(f"from a bare .pth: {name}", (model(x) - from_timm_folder(ours)(x)).abs().max().item())


@torch.no_grad()
def transformers_cases(roundtrip, work):
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 100,
             "image_size": 32, "patch_size": 8}
    cases = [
        (ViTForImageClassification, ViTConfig(**sizes, num_labels=5)),
        (ViTForImageClassification, ViTConfig(**sizes, num_labels=2, qkv_bias=False, layer_norm_eps=1e-3)),
        (DeiTForImageClassificationWithTeacher, DeiTConfig(**sizes, num_labels=5)),
        (DeiTForImageClassification, DeiTConfig(**sizes, num_labels=5)),
        (ViTModel, ViTConfig(**sizes)),
    ]
    for kind, config in cases:
        model = randomise(kind(config))
        theirs, ours = work / "hf", work / "ours-hf"
        model.save_pretrained(theirs)
        roundtrip(theirs, ours)
        again = from_timm_folder(ours)
        eps = json.loads((ours / "config.json").read_text()).get("vitesse", {}).get("norm_eps", 1e-6)
        if eps != config.layer_norm_eps:
            failures.append(f"{kind.__name__}: epsilon {eps} instead of {config.layer_norm_eps}")
        for module in again.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = eps
        x = images(again)
        if kind is ViTModel:
            expected, found = model(x).last_hidden_state, again.forward_features(x)
        else:
            expected, found = model(x).logits, again(x)
        report(f"from transformers: {kind.__name__} eps {eps:g}", (expected - found).abs().max().item())


@torch.no_grad()
def zoo_cases(roundtrip, work):
    for name in [
        "vit_nano_patch4_32", "vit_micro_patch4_32", "deit_micro_patch4_32", "deit_micro_distilled_patch4_32",
        "deit_small_distilled_patch16_224", "vit_tiny_patch16_384", "regnety_004",
    ]:
        ours = work / f"fresh-{name}"
        roundtrip(name, ours, "--num-classes", "11")
        model = from_timm_folder(ours)
        # The same by hand: architecture, arguments, weights.
        config = json.loads((ours / "config.json").read_text())
        args = config.get("model_args", {})
        named = timm.create_model(config["architecture"], num_classes=11, **args)
        named.load_state_dict(load_file(ours / "model.safetensors"), strict=True)
        x = images(model)
        report(f"of ours: {name} as {config['architecture']}", (model(x) - named.eval()(x)).abs().max().item())


def preparation_cases(roundtrip, work):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(np.kron(pixels, np.ones((10, 10, 1), np.uint8)))

    def compare(case, folder, processor):
        # timm resizes with Pillow, so transformers must, too.
        found = processor(image, return_tensors="pt")["pixel_values"][0]
        config = timm.data.resolve_model_data_config(from_timm_folder(folder))
        expected = timm.data.create_transform(**config, is_training=False)(image)
        report(f"preparation: {case}", (expected - found).abs().max().item())

    for name in ["deit_tiny_patch16_224", "vit_tiny_patch16_384", "regnety_004"]:
        ours = work / f"prepare-{name}"
        roundtrip(name, ours)
        compare(name, ours, AutoImageProcessor.from_pretrained(ours, backend="pil"))
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96}
    for kind, processor in [
        (ViTForImageClassification(ViTConfig(**sizes)), ViTImageProcessorPil(image_std=[0.3, 0.4, 0.5])),
        (DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes)), DeiTImageProcessorPil(resample=2)),
    ]:
        theirs, ours = work / "hf-prepared", work / "ours-prepared"
        kind.save_pretrained(theirs)
        processor.save_pretrained(theirs)
        roundtrip(theirs, ours)
        compare(type(processor).__name__, ours, processor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roundtrip", metavar="PROGRAM", help="the built example `roundtrip`")
    parser.add_argument("--vitesse", metavar="PROGRAM", help="the built program `vitesse`")
    parser.add_argument("--only", metavar="WORD", choices=["files"], help="run these cases alone")
    args = parser.parse_args()
    manifest = ["cargo", "run", "--quiet", "--manifest-path", str(ROOT / "Cargo.toml")]
    example = [args.roundtrip] if args.roundtrip else [*manifest, "-p", "vitesse-model", "--example", "roundtrip", "--"]
    program = [args.vitesse] if args.vitesse else [*manifest, "--bin", "vitesse", "--"]

    def roundtrip(source, target, *flags):
        subprocess.run([*example, str(source), str(target), *flags], check=True, stdout=subprocess.DEVNULL)

    def vitesse(*flags):
        subprocess.run([*program, *map(str, flags)], check=True, capture_output=True, text=True)

    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as work:
        if not args.only:
            for cases in (timm_cases, transformers_cases, zoo_cases, preparation_cases):
                cases(roundtrip, Path(work))
        interop_files.compare(vitesse, randomise, report, Path(work))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
