#!/usr/bin/env python3
"""Makes golden vectors of parameter-efficient methods, in `tests/golden/petl`, beside those of the original programs.

    python tools/petl_vectors.py [FOLDER]

Needs `torch`, `timm`, `transformers` and `peft`. Everything is random from fixed seeds. What PEFT writes and computes is
PEFT's own; VPT and AdaptFormer are written out below from their papers and the released programs, in doubles, with the
names of the released programs.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import peft
import timm
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "tests/golden/petl"
TORCH = f"torch {torch.__version__}"


def write(name, config, origin, tensors):
    """One file of vectors."""
    tensors = {key: tensor.detach() for key, tensor in tensors.items()}
    tensors = {
        key: (tensor.float() if tensor.is_floating_point() else tensor).contiguous() for key, tensor in tensors.items()
    }
    config = json.dumps({"case": name, "mode": "eval", **config}, sort_keys=True)
    save_file(tensors, FOLDER / f"{name}.safetensors", {"config": config, "origin": origin})


def normal(generator, *shape, mean=0.0, std=0.3):
    # Drawn as floats, so that what is stored is what was computed with.
    return (torch.randn(*shape, generator=generator) * std + mean).double()


# ---- plain models, as functions of timm's tensors ------------------------------------------------------------------


def weights(generator, sizes, final_norm):
    """The tensors of a ViT under timm's names."""
    dim, hidden, side = sizes["embed_dim"], sizes["mlp_dim"], sizes["patch_size"]
    patches = (sizes["img_size"] // side) ** 2
    draw = lambda *shape: normal(generator, *shape)
    w = {
        "cls_token": draw(1, 1, dim), "pos_embed": draw(1, 1 + patches, dim),
        "patch_embed.proj.weight": draw(dim, 3, side, side) * 0.3, "patch_embed.proj.bias": draw(dim),
    }
    for i in range(sizes["depth"]):
        for norm in ("norm1", "norm2"):
            w[f"blocks.{i}.{norm}.weight"], w[f"blocks.{i}.{norm}.bias"] = 1 + draw(dim), draw(dim)
        for module, outputs, inputs in [
            ("attn.q", dim, dim), ("attn.k", dim, dim), ("attn.v", dim, dim), ("attn.proj", dim, dim),
            ("mlp.fc1", hidden, dim), ("mlp.fc2", dim, hidden),
        ]:
            w[f"blocks.{i}.{module}.weight"], w[f"blocks.{i}.{module}.bias"] = draw(outputs, inputs), draw(outputs)
    w[f"{final_norm}.weight"], w[f"{final_norm}.bias"] = 1 + draw(dim), draw(dim)
    w["head.weight"], w["head.bias"] = draw(sizes["num_classes"], dim), draw(sizes["num_classes"])
    return w


def forward(w, images, sizes, block_in=lambda i, x: x, mlp_branch=None, prompts=0):
    """Logits. `block_in` changes the stream before a block, `mlp_branch(i, x, mlp)` is the branch of the perceptron."""
    dim, heads, eps = sizes["embed_dim"], sizes["num_heads"], sizes["norm_eps"]
    linear = lambda name, x: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
    norm = lambda name, x: F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], eps)
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=sizes["patch_size"])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(sizes["depth"]):
        block = f"blocks.{i}"
        x = block_in(i, x)
        y = norm(f"{block}.norm1", x)
        q, k, v = (
            linear(f"{block}.attn.{part}", y).unflatten(2, (heads, dim // heads)).transpose(1, 2) for part in "qkv"
        )
        maps = (q @ k.transpose(2, 3) * (dim // heads) ** -0.5).softmax(-1)
        x = x + linear(f"{block}.attn.proj", (maps @ v).transpose(1, 2).flatten(2))
        mlp = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
        x = x + (mlp_branch(i, x, mlp) if mlp_branch else mlp)
    if "norm.weight" in w:
        pooled = norm("norm", x)[:, 0]
    else:
        pooled = norm("fc_norm", x[:, 1 + prompts :].mean(1))
    return linear("head", pooled)


def asked(generator, sizes, batch=2):
    images = normal(generator, batch, 3, sizes["img_size"], sizes["img_size"], std=1.0)
    return images, torch.arange(batch) % sizes["num_classes"]


def record(logits, labels, learned):
    """Logits, loss, and the loss's gradients of what learns."""
    loss = F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, list(learned.values()))
    out = {"out.logits": logits, "out.loss": loss.reshape(1)}
    out.update({f"grad.{name}": gradient for name, gradient in zip(learned, gradients)})
    return out


# ---- VPT: narrower prompts ------------------------------------------------------------------------------------------

OF_VPT = {
    "norm1": "attention_norm", "norm2": "ffn_norm", "attn.q": "attn.query", "attn.k": "attn.key", "attn.v": "attn.value",
    "attn.proj": "attn.out", "mlp.fc1": "ffn.fc1", "mlp.fc2": "ffn.fc2",
}


def vpt_name(name):
    if name.startswith("head"):
        return name
    for ours, theirs in [
        ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj", "embeddings.patch_embeddings"), ("norm.", "encoder.encoder_norm."),
    ]:
        if name.startswith(ours):
            return "transformer." + name.replace(ours, theirs)
    _, layer, rest = name.split(".", 2)
    module, end = rest.rsplit(".", 1)
    return f"transformer.encoder.layer.{layer}.{OF_VPT[module]}.{end}"


def vpt(name, deep, project, count, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    dim = sizes["embed_dim"]
    w = weights(generator, sizes, "norm")
    a = {
        "transformer.prompt_embeddings": normal(generator, 1, count, project),
        "transformer.prompt_proj.weight": normal(generator, dim, project),
        "transformer.prompt_proj.bias": normal(generator, dim),
    }
    if deep:
        a["transformer.deep_prompt_embeddings"] = normal(generator, sizes["depth"] - 1, count, project)
    images, labels = asked(generator, sizes)
    learned = {**a, "head.weight": w["head.weight"], "head.bias": w["head.bias"]}
    for tensor in learned.values():
        tensor.requires_grad_()

    def block_in(i, x):
        if i > 0 and not deep:
            return x
        prompts = a["transformer.prompt_embeddings"] if i == 0 else a["transformer.deep_prompt_embeddings"][i - 1 : i]
        prompts = F.linear(prompts, a["transformer.prompt_proj.weight"], a["transformer.prompt_proj.bias"])
        rest = x[:, 1:] if i == 0 else x[:, 1 + count :]
        return torch.cat([x[:, :1], prompts.expand(len(x), -1, -1), rest], 1)

    logits = forward(w, images, sizes, block_in, prompts=count)
    config = {
        **sizes, "act": "gelu_erf", "method": "vpt-deep" if deep else "vpt-shallow", "model": "vit (VPT naming)",
        "num_tokens": count, "project": project,
    }
    write(name, config, f"the rule of the released VPT program, written out in {TORCH}, doubles", {
        **{f"w.{vpt_name(key)}": tensor for key, tensor in w.items()},
        **{f"a.{key}": tensor for key, tensor in a.items()},
        "in.images": images, "in.labels": labels, "out.logits_base": forward(w, images, sizes),
        **record(logits, labels, learned),
    })


# ---- AdaptFormer: both forms, every place of the norm, and pooling before it ----------------------------------------


def adaptformer_name(name):
    for ours, theirs in [
        ("attn.q.", "attn.q_proj."), ("attn.k.", "attn.k_proj."), ("attn.v.", "attn.v_proj."), ("mlp.", ""),
    ]:
        name = name.replace(ours, theirs)
    return name


def adaptformer(name, form, place, scale, hidden, sizes, seed, mean=False):
    generator = torch.Generator().manual_seed(seed)
    dim = sizes["embed_dim"]
    w = weights(generator, sizes, "fc_norm" if mean else "norm")
    a = {}
    for i in range(sizes["depth"]):
        adapter = f"blocks.{i}.adaptmlp"
        a[f"{adapter}.down_proj.weight"], a[f"{adapter}.down_proj.bias"] = (
            normal(generator, hidden, dim), normal(generator, hidden))
        a[f"{adapter}.up_proj.weight"], a[f"{adapter}.up_proj.bias"] = (
            normal(generator, dim, hidden), normal(generator, dim))
        if place != "none":
            a[f"{adapter}.adapter_layer_norm_before.weight"] = normal(generator, dim, mean=1.0)
            a[f"{adapter}.adapter_layer_norm_before.bias"] = normal(generator, dim)
        if scale == "learnable_scalar":
            a[f"{adapter}.scale"] = normal(generator, 1, mean=1.0)
    images, labels = asked(generator, sizes)
    learned = {**a, "head.weight": w["head.weight"], "head.bias": w["head.bias"]}
    for tensor in learned.values():
        tensor.requires_grad_()

    def branch(i, x, mlp):
        get = lambda end: a[f"blocks.{i}.adaptmlp.{end}"]
        norm = lambda x: F.layer_norm(
            x, (dim,), get("adapter_layer_norm_before.weight"), get("adapter_layer_norm_before.bias"), 1e-5)
        read = x if form == "parallel" else mlp
        read = norm(read) if place == "in" else read
        z = F.relu(F.linear(read, get("down_proj.weight"), get("down_proj.bias")))
        factor = get("scale") if scale == "learnable_scalar" else scale
        up = factor * F.linear(z, get("up_proj.weight"), get("up_proj.bias"))
        return mlp + (norm(up) if place == "out" else up)

    logits = forward(w, images, sizes, mlp_branch=branch)
    config = {
        **sizes, "bottleneck": hidden, "ffn_option": form, "layernorm_option": place, "scale": scale,
        "method": "adaptformer", "model": "vit (separate q/k/v, fc1/fc2 directly in the block)",
        "pool": "mean of the patch tokens, then fc_norm" if mean else "cls token after norm",
    }
    write(name, config, f"the rule of the released AdaptFormer program, written out in {TORCH}, doubles", {
        **{f"w.{adaptformer_name(key)}": tensor for key, tensor in w.items()},
        **{f"a.{key}": tensor for key, tensor in a.items()},
        "in.images": images, "in.labels": labels, **record(logits, labels, learned),
    })


# ---- PEFT -----------------------------------------------------------------------------------------------------------


def move(model, seed):
    """Everything that learns moved by something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def fresh(make, seed):
    torch.manual_seed(seed)
    return move(make(), seed + 1)


def answers(model, images):
    y = model(images)
    return getattr(y, "logits", y)


def lora(name, sizes, options, seed, **model_args):
    """LoRA on a model of timm's, with gradients and what PEFT's own merge makes of it."""
    def make():
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=sizes["img_size"], patch_size=sizes["patch_size"],
            embed_dim=sizes["embed_dim"], depth=sizes["depth"], num_heads=sizes["num_heads"],
            mlp_ratio=sizes["mlp_ratio"], num_classes=sizes["num_classes"], **model_args)

    generator = torch.Generator().manual_seed(seed)
    images, labels = asked(generator, sizes, batch=3)
    images = images.float()
    base = fresh(make, seed)
    w = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    before = answers(base, images)
    model = move(get_peft_model(base, LoraConfig(**options)), seed + 2)
    logits = answers(model, images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = {f"grad.{key}": p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
    folder = FOLDER / f"{name}_adapter"
    model.save_pretrained(folder)
    a = load_file(folder / "adapter_model.safetensors")
    adapter_config = json.loads((folder / "adapter_config.json").read_text())
    shutil.rmtree(folder)
    merged = model.merge_and_unload()
    after = answers(merged, images)
    changed = {key: tensor for key, tensor in merged.state_dict().items() if not torch.equal(tensor, w[key])}
    config = {**sizes, "method": "lora", "model": "vit (timm 1.x)", "adapter_config": adapter_config}
    write(name, config, f"peft {peft.__version__}, timm {timm.__version__}, {TORCH}", {
        **{f"w.{key}": tensor for key, tensor in w.items()}, **{f"a.{key}": tensor for key, tensor in a.items()},
        **gradients, **{f"merged.{key}": tensor for key, tensor in changed.items()},
        "in.images": images, "in.labels": labels, "out.logits_base": before, "out.logits": logits,
        "out.logits_merged": after, "out.loss": loss.reshape(1),
    })


def folders(name, make, sizes, cases, seed):
    """Folders that PEFT wrote for a model of transformers, and the logits of what PEFT loads from them."""
    images, _ = asked(torch.Generator().manual_seed(seed), sizes)
    images = images.float()
    base = fresh(make, seed)
    base.save_pretrained(FOLDER / "base")
    w = load_file(FOLDER / "base" / "model.safetensors")
    description = json.loads((FOLDER / "base" / "config.json").read_text())
    shutil.rmtree(FOLDER / "base")
    outputs = {"out.logits_base": answers(base, images)}
    target = FOLDER / f"{name}_adapters"
    shutil.rmtree(target, ignore_errors=True)
    for number, (case, options) in enumerate(cases.items()):
        how = {"safe_serialization": not options.pop("pickled", False)}
        model = get_peft_model(fresh(make, seed), LoraConfig(r=2, lora_alpha=3, **options))
        move(model, seed + 10 + number).save_pretrained(target / case, **how)
        (target / case / "README.md").unlink(missing_ok=True)
        with torch.no_grad():
            outputs[f"out.{case}"] = answers(PeftModel.from_pretrained(fresh(make, seed), target / case).eval(), images)
    config = {"method": "peft", "adapters": list(cases), "config": description}
    write(name, config, f"peft {peft.__version__}, transformers {transformers.__version__}, {TORCH}", {
        **{f"w.{key}": tensor for key, tensor in w.items()}, "in.images": images, **outputs,
    })


def main():
    warnings.filterwarnings("ignore")
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4,
             "norm_eps": 1e-6}
    of_vpt = {**small, "mlp_dim": 24}
    vpt("vpt_deep_project", True, 5, 3, of_vpt, 11)
    vpt("vpt_shallow_project", False, 6, 2, {**of_vpt, "depth": 2}, 12)
    vpt("vpt_deep_project_wide", True, 20, 2, {**of_vpt, "depth": 2}, 13)
    two = {**of_vpt, "depth": 2}
    adaptformer("adaptformer_sequential", "sequential", "none", 0.5, 4, two, 21)
    adaptformer("adaptformer_sequential_ln", "sequential", "in", "learnable_scalar", 3, two, 22)
    adaptformer("adaptformer_sequential_ln_out", "sequential", "out", 2.0, 4, two, 23)
    adaptformer("adaptformer_parallel_ln_out", "parallel", "out", "learnable_scalar", 4, two, 24)
    adaptformer("adaptformer_mean", "parallel", "none", 0.1, 4, two, 25, mean=True)
    adaptformer("adaptformer_sequential_mean", "sequential", "in", 0.7, 4, two, 26, mean=True)
    of_timm = {**small, "depth": 2, "mlp_ratio": 2.0}
    # `proj` means `attn.proj` and the convolution of the patches.
    lora("lora_patches", of_timm, {
        "r": 3, "lora_alpha": 5, "target_modules": ["proj", "fc1"], "modules_to_save": ["head"]}, 31)
    lora("lora_patches_alone", {**of_timm, "patch_size": 4}, {
        "r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["patch_embed.proj"],
        "modules_to_save": ["head"]}, 32)
    of_transformers = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
                       "image_size": 8, "patch_size": 4, "num_labels": 3}
    given = {"img_size": 8, "num_classes": 3}
    vit = lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**of_transformers))
    deit = lambda: transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**of_transformers))
    folders("peft_vit", vit, given, {
        "all_linear": {"target_modules": "all-linear"},
        "all_biases": {"target_modules": ["q_proj", "fc1"], "bias": "all", "modules_to_save": ["classifier"]},
        "biases_beside": {"target_modules": ["v_proj", "fc2"], "bias": "lora_only"},
        "whole_modules": {"target_modules": ["o_proj"], "modules_to_save": ["layernorm", "k_proj", "layernorm_after"]},
        "head_and_patches": {"target_modules": ["classifier", "projection"], "bias": "all", "use_rslora": True},
        "pickled": {"target_modules": ["q_proj", "k_proj"], "modules_to_save": ["classifier"], "pickled": True},
    }, 41)
    folders("peft_deit", deit, given, {
        "both_heads": {
            "target_modules": ["q_proj", "fc2"], "modules_to_save": ["cls_classifier", "distillation_classifier"]},
        "one_head": {"target_modules": ["v_proj"], "bias": "all", "modules_to_save": ["distillation_classifier"]},
        "updated_head": {"target_modules": ["cls_classifier", "o_proj"]},
    }, 42)


if __name__ == "__main__":
    main()
