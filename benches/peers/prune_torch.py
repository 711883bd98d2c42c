"""The side of PyTorch in prune.py: what Torch-Pruning cuts, one run of the recipe, and the way to ONNX and OpenVINO.

A model is here what Torch-Pruning leaves of timm's: its layers with other widths. It is kept as a state dict, `model.safetensors`,
with the number of heads of each block beside it, `heads.json`.
"""

import copy
import json
import math
import sys

import torch
from safetensors.torch import load_file, save_file
from torch import nn

TOKENS, PATCHES, BATCH = 197, 196, 64


def base(folder):
    """timm's model with the weights of the base."""
    import timm

    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


def save(model, folder):
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "heads.json").write_text(json.dumps([block.attn.num_heads for block in model.blocks]))


def load(cut, weights, dense):
    """The model of the folder `cut` with the weights of the folder `weights`, built from the model `dense`."""
    model, state = copy.deepcopy(dense), load_file(weights / "model.safetensors")
    for name, module in model.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(state[f"{name}.{key}" if name else key]))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
    describe(model, json.loads((cut / "heads.json").read_text()))
    return model


def describe(model, heads):
    """Tells the attentions how wide they are, and what scale timm's fused kernel derives from it."""
    for block, count in zip(model.blocks, heads):
        attn = block.attn
        attn.num_heads, attn.attn_dim = count, attn.qkv.out_features // 3
        attn.head_dim = attn.attn_dim // count
        attn.scale = attn.head_dim**-0.5


def macs(model):
    """Multiply-accumulates of one image, as Vitesse counts them."""
    found = PATCHES * model.patch_embed.proj.weight.numel() + model.head.weight.numel()
    for block in model.blocks:
        linear = [block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2]
        found += TOKENS * sum(module.weight.numel() for module in linear)
        found += 2 * TOKENS * TOKENS * block.attn.attn_dim
    return found


def images(data, dense, split, count, seed, augment=False):
    """So many images of a split, drawn by `seed`, prepared as the base is evaluated, or as the recipe learns."""
    from timm.data import resolve_model_data_config
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    config = resolve_model_data_config(dense)
    bicubic = transforms.InterpolationMode.BICUBIC
    side = config["input_size"][1]
    if augment:
        first = [transforms.RandomResizedCrop(side, tuple(augment), interpolation=bicubic), transforms.RandomHorizontalFlip()]
    else:
        first = [transforms.Resize(math.floor(side / config["crop_pct"]), bicubic), transforms.CenterCrop(side)]
    last = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    found = ImageFolder(data / split, transforms.Compose([*first, *last]))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.Subset(found, order[:count].tolist())


def gradients(model, data):
    """Gradients of the cross-entropy of all images, the sum over batches of their means, as Torch-Pruning's programs have it."""
    model.zero_grad()
    for pixels, labels in torch.utils.data.DataLoader(data, BATCH, num_workers=2):
        nn.functional.cross_entropy(model(pixels), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def cut(dense, found, style, ratio, multiple):
    """What Torch-Pruning leaves at one ratio, in widths that are a `multiple` where one is given; `found` are the gradients."""
    import torch_pruning

    model = copy.deepcopy(dense)
    for name, parameter in model.named_parameters():
        parameter.grad = found[name].clone()
    ignored = [model.head]
    if style == "bottleneck":
        ignored += [model.patch_embed, *(layer for block in model.blocks for layer in (block.attn.proj, block.mlp.fc2))]
    isomorphic = style == "isomorphic"
    heads = {block.attn.qkv: block.attn.num_heads for block in model.blocks}
    pruner = torch_pruning.pruner.BasePruner(
        model, torch.zeros(1, 3, 224, 224), torch_pruning.importance.GroupTaylorImportance(), pruning_ratio=ratio,
        global_pruning=isomorphic, isomorphic=isomorphic, ignored_layers=ignored, num_heads=heads, round_to=multiple,
    )  # fmt: skip
    pruner.step()
    model.zero_grad()
    describe(model, [pruner.num_heads[block.attn.qkv] for block in model.blocks])
    return model


def make(folder, dense, data, style, share, count, seed, multiple=None):
    """The largest model of a style that takes at most `share` of the MACs, found by halving."""
    found = gradients(dense, images(data, dense, "train", count, seed))
    most, low, high, best = share * macs(dense), 0.0, 1.0, None
    for _ in range(10):
        ratio = (low + high) / 2
        try:
            model = cut(dense, found, style, ratio, multiple)
            fits = macs(model) <= most
        except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:  # nothing is left of a layer
            print(f"{style} {ratio}: {error}", file=sys.stderr)
            model, fits = None, True
        if fits:
            best, high = model or best, ratio
        else:
            low = ratio
    if best is None:
        raise SystemExit(f"Torch-Pruning makes no {style} model of {share} of the MACs")
    save(best, folder)


def tune(folder, model, dense, data, recipe, count, seed):
    """The recipe, in PyTorch; the base teaches."""
    train, rates, plan = recipe["train"], recipe["optim"], recipe["schedule"]
    torch.manual_seed(seed)
    learnt = images(data, dense, "train", count, seed, recipe["augment"]["scale"])
    batches = torch.utils.data.DataLoader(learnt, train["batch_size"], shuffle=True, drop_last=True, num_workers=2)
    spared = ("cls_token", "pos_embed")
    named = list(model.named_parameters())
    plain = [parameter for name, parameter in named if parameter.ndim < 2 or name in spared]
    decayed = [parameter for name, parameter in named if not (parameter.ndim < 2 or name in spared)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, rates["lr"])
    steps, warm = train["epochs"] * len(batches), plan["warmup_epochs"] * len(batches)

    def factor(step):
        return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    alpha = recipe["distill"]["alpha"]
    model.train()
    for _ in range(train["epochs"]):
        for pixels, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=train["amp"] == "bf16"):
                with torch.no_grad():
                    taught = dense(pixels).float().log_softmax(1)
                logits = model(pixels).float()
            own = nn.functional.cross_entropy(logits, labels, label_smoothing=train["smoothing"])
            far = nn.functional.kl_div(logits.log_softmax(1), taught, log_target=True, reduction="batchmean")
            loss = (1 - alpha) * own + alpha * far
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    save(model.eval(), folder)
