#!/usr/bin/env python3
"""Checks that checkpoints travel between this project, timm and transformers without losing anything.

    python tools/interop.py [--roundtrip PROGRAM] [--vitesse PROGRAM] [--only WORD]

Needs `torch`, `timm`, `transformers` and `peft`, and the example `roundtrip` of the crate `vitesse-model` and the program
`vitesse`, which it builds unless PROGRAM names them. Everything is random weights in a temporary folder; nothing is
downloaded. For each case it prints the largest difference of the logits, and it ends with status 1 when a load is not
strict or a difference is above 1e-4, times the largest logit where that is above 1. `--only folders` (the first five of what follows),
`--only files`, `--only clip` and `--only adapters` run those cases alone.

  from timm          timm saves a model, we load and save it, timm loads ours: logits equal, tensors bit-equal
  from transformers  transformers saves a model, we import and save it, timm loads ours (with the epsilon the file
                     states, which timm takes from the architecture and not from the file): logits equal
  of ours            we make a model of the zoo, timm builds and loads it strictly
  pruned             a pruned model whose shape timm can say is saved; timm builds and loads it strictly: logits equal
  preparation        an image is prepared by transformers, from our preprocessor_config.json or its own, and by timm
                     from our config.json: pixels equal
  files              weight files as people have them (interop_files.py): in several files, wrapped, beside other
                     objects, one of several, bare, of other channels, at another size; `vitesse run` says what the
                     library that wrote them says
  clip               CLIP's image encoder from OpenAI's state dicts, OpenCLIP's, transformers' and timm's (interop_clip.py);
                     zero-shot scores are transformers'
  adapters           PEFT loads adapters that are made here onto timm's models; it saves an adapter and loads it again; `vitesse run` with it, by the engine and by the network,
                     and `vitesse run` of what `vitesse merge` makes of it, say the same; what is not implemented is
                     refused, and the refusal names the field
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import interop_clip
import interop_files
import numpy as np
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessorPil,
    SwinConfig,
    SwinForImageClassification,
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


# A Swin with three stages.
SWIN = {"embed_dim": 24, "depths": (2, 3, 2), "num_heads": (2, 3, 4)}


def original_names(tensors):
    """A Swin's state dict as the original code and older timm write it."""
    renamed = {}
    for name, tensor in tensors.items():
        stage = re.match(r"layers\.(\d+)\.downsample\.", name)
        if stage:
            name = name.replace(stage[0], f"layers.{int(stage[1]) - 1}.downsample.")
        renamed[name.replace("head.fc.", "head.")] = tensor
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    renamed["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(1, dtype=torch.int64)
    return renamed


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
        "swin_tiny_patch4_window7_224": {},
        # Windows that do not fit maps, maps that are no squares and narrower than a window.
        "swin_small_patch4_window7_224": {**SWIN, "img_size": (48, 64), "window_size": 5, "num_classes": 5},
        "swin_base_patch4_window7_224": {**SWIN, "img_size": (32, 80), "window_size": (3, 4), "qkv_bias": False, "in_chans": 1},
        "swin_large_patch4_window12_384": {**SWIN, "img_size": 64, "window_size": 8, "mlp_ratio": 2.5, "num_classes": 0},
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
        if name.startswith("swin"):
            # The same folder as an older timm would have written it.
            save_file(original_names(before), theirs / "model.safetensors")
            roundtrip(theirs, ours)
            report(f"under the original names: {name}", (model(x) - from_timm_folder(ours)(x)).abs().max().item())


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
        (SwinForImageClassification, SwinConfig(**SWIN, image_size=64, window_size=4, num_labels=5)),
        (SwinForImageClassification, SwinConfig(**SWIN, image_size=96, window_size=3, qkv_bias=False, mlp_ratio=2.0)),
        (SwinForImageClassification, SwinConfig(image_size=224, num_labels=7)),
    ]
    for kind, config in cases:
        model = randomise(kind(config))
        theirs, ours = work / "hf", work / "ours-hf"
        model.save_pretrained(theirs)
        roundtrip(theirs, ours)
        again = from_timm_folder(ours)
        timms = 1e-5 if isinstance(config, SwinConfig) else 1e-6
        eps = json.loads((ours / "config.json").read_text()).get("vitesse", {}).get("norm_eps", timms)
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
        "deit_small_distilled_patch16_224", "vit_tiny_patch16_384", "regnety_004", "vit_nano_patch8_clip_quickgelu_32",
        "vit_base_patch32_clip_224", "swin_nano_patch2_window4_32", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224",
        "swin_base_patch4_window12_384",
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


@torch.no_grad()
def pruned_cases(roundtrip, work):
    """What is left is a shape that timm can say, so that timm builds it from the folder: no key of ours is in it."""
    for case, args in [
        ("fewer blocks", {"depth": 2}),
        ("fewer hidden units", {"mlp_ratio": 100 / 48}),
        ("a narrower stream and fewer heads", {"embed_dim": 32, "num_heads": 2, "mlp_ratio": 3.0}),
        ("narrower heads", {"embed_dim": 36, "num_heads": 3}),
    ]:
        model = randomise(timm.create_model("deit_tiny_patch16_224", **{
            "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5, **args}))
        blocks = []
        for block in model.blocks:
            widths = [block.attn.head_dim] * block.attn.num_heads
            attn = {"qk_dims": widths, "v_dims": widths, "scale": block.attn.scale}
            blocks.append({"attn": attn, "mlp": {"hidden": block.mlp.fc1.out_features}})
        description = {
            "format": "vit-pruned/1", "img_size": 32, "patch_size": 8, "embed_dim": model.embed_dim, "source_embed_dim": 48,
            "num_classes": 5, "blocks": blocks,
        }
        theirs, ours = work / "pruned.safetensors", work / "ours-pruned"
        save_file(model.state_dict(), theirs, {"config": json.dumps(description)})
        roundtrip(theirs, ours, "--architecture", "deit_tiny_patch16_224")
        if "vitesse" in json.loads((ours / "config.json").read_text()):
            failures.append(f"pruned: {case}: timm was not told all of it")
        again = from_timm_folder(ours)
        x = images(again)
        report(f"pruned: {case}", (model(x) - again(x)).abs().max().item())


def preparation_cases(roundtrip, work):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(np.kron(pixels, np.ones((10, 10, 1), np.uint8)))

    def compare(case, folder, processor):
        # timm resizes with Pillow, so transformers must, too.
        found = processor(image, return_tensors="pt")["pixel_values"][0]
        config = timm.data.resolve_model_data_config(from_timm_folder(folder))
        expected = timm.data.create_transform(**config, is_training=False)(image)
        report(f"preparation: {case}", (expected - found).abs().max().item())

    for name in [
        "deit_tiny_patch16_224", "vit_tiny_patch16_384", "regnety_004", "vit_base_patch32_clip_quickgelu_224", "swin_tiny_patch4_window7_224",
    ]:
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


SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 16,
         "patch_size": 8, "num_labels": 3}


SMALL_CLIP = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 16,
              "patch_size": 8, "projection_dim": 5}


def vit():
    torch.manual_seed(0)
    return randomise(ViTForImageClassification(ViTConfig(**SMALL)))


def deit():
    torch.manual_seed(0)
    return randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**SMALL)))


def deit_one_head():
    torch.manual_seed(0)
    return randomise(DeiTForImageClassification(DeiTConfig(**SMALL)))


def of_timm(name="vit_tiny_patch16_224", **args):
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 3}
    return randomise(timm.create_model(name, **{**sizes, **args}))


def distilled():
    return of_timm("deit_tiny_distilled_patch16_224")


def fc_norm():
    return of_timm(global_pool="avg", class_token=False)


def clip():
    torch.manual_seed(0)
    return randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_CLIP)))


def clip_alone():
    torch.manual_seed(0)
    return randomise(CLIPVisionModel(CLIPVisionConfig(**SMALL_CLIP)))


def clip_with_text():
    torch.manual_seed(0)
    return randomise(CLIPModel(CLIPConfig(text_config=interop_clip.TEXT, vision_config=SMALL_CLIP, projection_dim=5)))


def clip_of_timm(**args):
    return of_timm("vit_base_patch32_clip_quickgelu_224", **args)


def swin():
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3), "window_size": 2, "image_size": 16, "patch_size": 2}
    return randomise(SwinForImageClassification(SwinConfig(**sizes, num_labels=3)))


def swin_of_timm(num_classes=3):
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3), "window_size": 2, "img_size": 16, "patch_size": 2}
    return randomise(timm.create_model("swin_tiny_patch4_window7_224", **sizes, num_classes=num_classes))


def logits(model, x):
    if hasattr(model, "get_image_features"):
        y = model.get_image_features(x)
        return getattr(y, "pooler_output", y)
    y = model(x)
    for name in ("logits", "image_embeds", "pooler_output"):
        y = getattr(y, name, y)
    return y


# Adapters that are read: base, options of PEFT's, and how the folder is written.
READ = {
    "attention": (vit, {"target_modules": ["q_proj", "v_proj"]}, {}),
    "keys alone": (vit, {"target_modules": ["k_proj"]}, {}),
    "the perceptron": (vit, {"target_modules": ["fc1", "fc2"]}, {}),
    "all-linear": (vit, {"target_modules": "all-linear"}, {}),
    "all-linear but the head": (vit, {"target_modules": "all-linear", "exclude_modules": ["classifier"]}, {}),
    "all-linear of a DeiT": (deit, {"target_modules": "all-linear"}, {}),
    "all-linear of timm": (of_timm, {"target_modules": "all-linear"}, {}),
    "all-linear of a distilled timm": (distilled, {"target_modules": "all-linear"}, {}),
    "all biases": (vit, {"target_modules": ["q_proj", "fc1"], "bias": "all"}, {}),
    "all biases and the head": (
        vit, {"target_modules": ["v_proj"], "bias": "all", "modules_to_save": ["classifier"]}, {}),
    "all biases and one head of two": (
        deit, {"target_modules": ["o_proj"], "bias": "all", "modules_to_save": ["cls_classifier"]}, {}),
    "biases beside updates": (vit, {"target_modules": ["k_proj", "fc2"], "bias": "lora_only"}, {}),
    "biases of timm": (of_timm, {"target_modules": ["qkv"], "bias": "all", "modules_to_save": ["head", "norm"]}, {}),
    "biases beside updates of timm": (of_timm, {"target_modules": ["qkv", "fc2"], "bias": "lora_only"}, {}),
    "both heads of a DeiT": (
        deit, {"target_modules": ["q_proj"], "modules_to_save": ["cls_classifier", "distillation_classifier"]}, {}),
    "both heads of timm": (distilled, {"target_modules": ["qkv"], "modules_to_save": ["head", "head_dist"]}, {}),
    "one head of two": (distilled, {"target_modules": ["qkv"], "modules_to_save": ["head_dist"]}, {}),
    "the head of a DeiT with one": (
        deit_one_head, {"target_modules": ["q_proj"], "modules_to_save": ["classifier"], "bias": "all"}, {}),
    "norms": (vit, {"target_modules": ["v_proj"], "modules_to_save": ["layernorm", "layernorm_before"]}, {}),
    "fc_norm": (fc_norm, {"target_modules": ["qkv"], "modules_to_save": ["fc_norm", "head", "norm2"]}, {}),
    "whole projections": (vit, {"target_modules": ["fc2"], "modules_to_save": ["k_proj", "fc1"]}, {}),
    "whole perceptrons": (vit, {"target_modules": ["v_proj"], "modules_to_save": ["mlp"], "bias": "all"}, {}),
    "the whole convolution": (deit, {"target_modules": ["v_proj"], "modules_to_save": ["patch_embeddings"]}, {}),
    "an update of the head": (vit, {"target_modules": ["classifier"], "bias": "lora_only"}, {}),
    "an update of one head of two": (deit, {"target_modules": ["distillation_classifier", "q_proj"]}, {}),
    "an update of a head of timm": (of_timm, {"target_modules": ["head", "qkv"], "use_rslora": True}, {}),
    "the patches": (vit, {"target_modules": ["projection"]}, {}),
    "the patches with all biases": (vit, {"target_modules": ["projection", "classifier"], "bias": "all"}, {}),
    "proj, which is two modules": (of_timm, {"target_modules": ["proj"], "use_rslora": True}, {}),
    "the patches of a model without a class token": (fc_norm, {"target_modules": ["patch_embed.proj", "fc1"]}, {}),
    "patterns": (
        vit, {"target_modules": "all-linear", "rank_pattern": {"classifier": 1, r"layers\.1\..*": 3},
              "alpha_pattern": {"q_proj": 7}, "use_rslora": True}, {}),
    "some layers": (vit, {"target_modules": ["q_proj", "fc2"], "layers_to_transform": [1]}, {}),
    "factors from a normal distribution": (vit, {"target_modules": ["fc1"], "init_lora_weights": "gaussian"}, {}),
    "orthogonal factors": (vit, {"target_modules": ["fc1"], "init_lora_weights": "orthogonal"}, {}),
    "factors of EVA": (vit, {"target_modules": ["fc1"], "init_lora_weights": "eva"}, {}),
    "factors of MiCA": (vit, {"target_modules": ["fc1"], "init_lora_weights": "mica"}, {}),
    "random factors": (vit, {"target_modules": ["fc1"], "init_lora_weights": False}, {}),
    "pickled": (vit, {"target_modules": "all-linear", "bias": "all"}, {"safe_serialization": False}),
    "pickled, of timm": (
        of_timm, {"target_modules": ["proj", "qkv"], "modules_to_save": ["head"]}, {"safe_serialization": False}),
    "PiSSA, converted": (
        vit, {"target_modules": ["q_proj", "fc1"], "init_lora_weights": "pissa"}, {"convert": True}),
    "OLoRA, converted": (
        vit, {"target_modules": ["q_proj", "fc1"], "init_lora_weights": "olora"}, {"convert": True}),
    "half precision": (of_timm, {"target_modules": "all-linear", "bias": "all"}, {"half": torch.bfloat16}),
    "CLIP's attention": (clip, {"target_modules": ["q_proj", "v_proj"]}, {}),
    "all-linear of a CLIP": (clip, {"target_modules": "all-linear"}, {}),
    "CLIP's patches, norms and biases": (
        clip, {"target_modules": ["patch_embedding", "out_proj"], "bias": "all",
               "modules_to_save": ["visual_projection", "pre_layrnorm", "post_layernorm"]}, {}),
    "CLIP's image encoder alone": (clip_alone, {"target_modules": ["k_proj", "fc1", "fc2"], "bias": "lora_only"}, {}),
    "CLIP with its text encoder": (clip_with_text, {"target_modules": ["q_proj", "v_proj"], "bias": "all"}, {}),
    "all-linear of timm's CLIP": (clip_of_timm, {"target_modules": "all-linear", "use_rslora": True}, {}),
    "attention of timm's CLIP": (clip_of_timm, {"target_modules": ["qkv"], "modules_to_save": ["head", "norm_pre"]}, {}),
    "Swin's attention": (swin, {"target_modules": ["q_proj", "v_proj"]}, {}),
    "all-linear of a Swin": (swin, {"target_modules": "all-linear"}, {}),
    "Swin's perceptron, biases and head": (
        swin, {"target_modules": ["k_proj", "fc1", "fc2"], "bias": "all", "modules_to_save": ["classifier"]}, {}),
    "Swin's patches, mergings and norms": (
        swin, {"target_modules": ["projection", "o_proj", "reduction"],
               "modules_to_save": ["layernorm", "layernorm_before", "downsample.norm"]}, {}),
    "all-linear of timm's Swin": (swin_of_timm, {"target_modules": "all-linear", "use_rslora": True}, {}),
    "attention of timm's Swin": (swin_of_timm, {"target_modules": ["qkv"], "modules_to_save": ["head.fc", "norm1"]}, {}),
    "old names of a Swin": (swin, {"target_modules": "all-linear", "bias": "all"}, {"old_names": True}),
    "old names": (vit, {"target_modules": "all-linear", "bias": "all"}, {"old_names": True}),
    "old names, pickled": (
        deit, {"target_modules": ["o_proj", "v_proj", "fc2"]}, {"old_names": True, "safe_serialization": False}),
}

# Adapters that are refused: options of PEFT's, or fields put into the file, and the field that the refusal names.
REFUSED = {
    "PiSSA": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights"),
    "fast PiSSA": ({"init_lora_weights": "pissa_niter_4"}, {}, "init_lora_weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, {}, "init_lora_weights"),
    "LoftQ": ({}, {"init_lora_weights": "loftq"}, "init_lora_weights"),
    "CorDA": ({}, {"init_lora_weights": "corda"}, "init_lora_weights"),
    "LoRA-GA": ({}, {"init_lora_weights": "lora_ga"}, "init_lora_weights"),
    "a new way of drawing": ({}, {"init_lora_weights": "of_tomorrow"}, "init_lora_weights"),
    "DoRA": ({"use_dora": True}, {}, "use_dora"),
    "a bias of B": ({"lora_bias": True}, {}, "lora_bias"),
    "parameters": ({"target_modules": None, "target_parameters": ["q_proj.weight"]}, {}, "target_parameters"),
    "replicated layers": ({}, {"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "tokens": ({}, {"trainable_token_indices": [1]}, "trainable_token_indices"),
    "transposed weights": ({}, {"fan_in_fan_out": True}, "fan_in_fan_out"),
    "QALoRA": ({}, {"use_qalora": True}, "use_qalora"),
    "a field of tomorrow": ({}, {"use_something_new": {"depth": 3}}, "use_something_new"),
    "other biases": ({}, {"bias": "some"}, "bias"),
    "a module inside a whole one": ({"modules_to_save": ["embeddings"]}, {}, "modules_to_save"),
    "another kind": ({}, {"peft_type": "IA3"}, "peft_type"),
}

# transformers' names of modules before version 5.
OLD_NAMES = {
    "layers.": "encoder.layer.", "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}
OLD_NAMES_OF_SWIN = {
    **{new: old.replace("attention.attention", "attention.self") for new, old in OLD_NAMES.items() if new != "layers."},
    "attention.relative_position_bias.": "attention.self.",
}


def adapted(make, options, seed=3):
    """A model of PEFT's in which everything that learns has moved."""
    options = {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], **options}
    model = get_peft_model(make(), LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def rename(folder):
    """Gives the adapter in `folder` the names that it would have had before version 5 of transformers."""
    old = folder / "adapter_model.bin"
    path = old if old.exists() else folder / "adapter_model.safetensors"
    tensors = torch.load(path, weights_only=True) if old.exists() else load_file(path)
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in (OLD_NAMES_OF_SWIN if ".swin." in name else OLD_NAMES).items():
            name = name.replace(new, before)
        renamed[name] = tensor
    torch.save(renamed, path) if old.exists() else save_file(renamed, path)


def save_base(model, folder):
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        save_for_hf(model, folder, safe_serialization=True)


def adapter_cases(vitesse, work):
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    save_file({"pixel_values": x}, work / "x.safetensors")

    def run(*flags):
        out = work / "y.safetensors"
        vitesse("run", "--input", work / "x.safetensors", "--output", out, "--force", *flags)
        return load_file(out)["logits"]

    for number, (case, (make, options, how)) in enumerate(READ.items()):
        base, folder, merged = (work / f"{kind}-{number}" for kind in ("base", "adapter", "merged"))
        save_base(make(), base)
        model = adapted(make, options)
        if how.get("convert"):
            # The adapter as it is before training is what it is told apart from.
            torch.manual_seed(0)
            before = get_peft_model(make(), LoraConfig(r=2, lora_alpha=5, **options))
            before.peft_config["default"].init_lora_weights = True
            before.save_pretrained(work / f"before-{number}")
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(work / f"before-{number}"))
        else:
            model.save_pretrained(folder, safe_serialization=how.get("safe_serialization", True))
        if "half" in how:
            path = folder / "adapter_model.safetensors"
            save_file({name: tensor.to(how["half"]) for name, tensor in load_file(path).items()}, path)
        with torch.no_grad():
            expected = logits(PeftModel.from_pretrained(make(), folder).eval(), x)
            plain = logits(make(), x)
        if (expected - plain).abs().max() < 1e-2:
            failures.append(f"{case}: the adapter changes nothing")
        if how.get("old_names"):
            rename(folder)
        scale = max(1.0, expected.abs().max().item())
        found = {
            "engine": run("--model", base, "--adapter", folder),
            "network": run("--model", base, "--adapter", folder, "--engine", "burn"),
        }
        vitesse("merge", "--model", base, "--adapter", folder, "--output", merged, "--images", "2")
        found["merged"] = run("--model", merged)
        for by, y in found.items():
            report(f"adapters: {case}, {by}", (y - expected).abs().max().item() / scale)

    # What is written here: PEFT reads it onto timm's model.
    for case, make in {"ViT": of_timm, "CLIP": clip_of_timm, "Swin": swin_of_timm}.items():
        base, learned = work / f"base-{case}", work / f"learned-{case}"
        save_base(make(num_classes=8), base)
        vitesse("adapt", "--model", base, "--data", "shapes", "--limit", 32, "--epochs", 1, "--lr", 0.05,
                "--method", "lora", "--set", "targets=all-linear", "--output", learned)
        model = PeftModel.from_pretrained(make(num_classes=8), learned / "adapter").eval()
        with torch.no_grad():
            expected = model(x)
            plain = make(num_classes=8)(x)
        if (expected - plain).abs().max() < 1e-2:
            failures.append(f"{case}: the adapter changes nothing")
        found = run("--model", base, "--adapter", learned / "adapter")
        scale = max(1.0, expected.abs().max().item())
        report(f"adapters: ours of timm's {case}, by PEFT", (found - expected).abs().max().item() / scale)

    base = work / "base-refused"
    save_base(vit(), base)
    for number, (case, (options, fields, named)) in enumerate(REFUSED.items()):
        folder = work / f"refused-{number}"
        adapted(vit, options).save_pretrained(folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        try:
            run("--model", base, "--adapter", folder)
            failures.append(f"{case}: it was read")
        except subprocess.CalledProcessError as error:
            ok = f"`{named}`" in error.stderr
            print(f"{'ok  ' if ok else 'FAIL'} adapters: {case} is refused, naming `{named}`")
            if not ok:
                failures.append(f"{case}: {error.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roundtrip", metavar="PROGRAM", help="the built example `roundtrip`")
    parser.add_argument("--vitesse", metavar="PROGRAM", help="the built program `vitesse`")
    parser.add_argument("--only", metavar="WORD", choices=["folders", "files", "clip", "adapters"], help="run these cases alone")
    args = parser.parse_args()
    manifest = ["cargo", "run", "--quiet", "--manifest-path", str(ROOT / "Cargo.toml")]
    example = [args.roundtrip] if args.roundtrip else [*manifest, "-p", "vitesse-model", "--example", "roundtrip", "--"]
    program = [args.vitesse] if args.vitesse else [*manifest, "--bin", "vitesse", "--"]

    def roundtrip(source, target, *flags):
        subprocess.run([*example, str(source), str(target), *flags], check=True, stdout=subprocess.DEVNULL)

    def vitesse(*flags):
        return subprocess.run([*program, *map(str, flags)], check=True, capture_output=True, text=True)

    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as work:
        if args.only in (None, "folders"):
            for cases in (timm_cases, transformers_cases, zoo_cases, pruned_cases, preparation_cases):
                cases(roundtrip, Path(work))
        if args.only in (None, "files"):
            interop_files.compare(vitesse, randomise, report, Path(work))
        if args.only in (None, "clip"):
            interop_clip.compare(vitesse, randomise, report, Path(work))
        if args.only in (None, "adapters"):
            adapter_cases(vitesse, Path(work))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
