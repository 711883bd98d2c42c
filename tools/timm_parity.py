"""Random checkpoints of every zoo name, run by timm and by vitesse.

    pip install torch timm safetensors          # CPU builds are enough
    cargo build --release
    python tools/timm_parity.py [--only NAME ...] [--no-perturb] [--program target/release/vitesse]

Logits, and feature maps: `vitesse features` beside timm's `features_only` (networks with stages) or `forward_intermediates`
(vision transformers, after the first, the middle and the last layer). Every tensor is drawn from a seed: matrices and convolutions by fan-in, biases, norms and layer scales in 0.5 to 1.5,
running means and variances. The folder is written the way timm writes it, so that reading it is tested too.
Passes when max |difference| <= 1e-4 * max(1, max |logit|) for every name, the same for each map, and when moving any single tensor of the
checkpoint moves vitesse's logits (`cargo build --release --example perturb`, which does it in one process).
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import timm
from safetensors.torch import load_file, save_file


def random_state(model, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = tensor.clone()
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif tensor.dim() >= 2 and name.endswith("weight"):
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        elif name.endswith("bias") or name.endswith("running_mean"):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        else:  # tokens and positions
            state[name] = torch.randn(tensor.shape, generator=generator)
    return state


def maps(model, name, images):
    """timm's feature maps by our names, `[images, channels, height, width]`, and the flags that ask for them."""
    if hasattr(model, "blocks"):
        depth = len(model.blocks)
        layers = [1, depth // 2, depth]
        found = model.forward_intermediates(
            images, indices=[layer - 1 for layer in layers], norm=False, output_fmt="NCHW", intermediates_only=True)
        flags = ["--layers", ",".join(str(layer) for layer in layers)]
        return {f"layer{layer}": values for layer, values in zip(layers, found)}, flags
    body = timm.create_model(name, features_only=True).eval()
    state = {re.sub(r"^layers\.", "layers_", key): tensor for key, tensor in model.state_dict().items()}
    body.load_state_dict({key: state[key] for key in body.state_dict()}, strict=True)
    # RegNet's first map is that of its stem.
    found = body(images)[-4:]
    if name.startswith("swin"):
        found = [values.permute(0, 3, 1, 2) for values in found]
    return {f"stage{stage + 1}": values for stage, values in enumerate(found)}, []


def check(name, seed, args, folder):
    model = timm.create_model(name).eval()
    model.load_state_dict(random_state(model, seed), strict=True)
    cfg = dict(model.pretrained_cfg)
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {
            key: list(cfg[key]) if isinstance(cfg[key], tuple) else cfg[key]
            for key in ("input_size", "interpolation", "crop_pct", "mean", "std", "num_classes", "classifier")
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    size = cfg["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(seed + 1))
    save_file({"pixel_values": images}, folder / "input.safetensors")
    with torch.no_grad():
        expected = model(images)
        expected_maps, flags = maps(model, name, images)
    expected = expected if torch.is_tensor(expected) else sum(expected) / len(expected)

    command = [args.program, "run", "--model", folder, "--input", folder / "input.safetensors"]
    subprocess.run([*command, "--output", folder / "output.safetensors", "--force"], check=True, stdout=subprocess.DEVNULL)
    found = load_file(folder / "output.safetensors")["logits"]
    difference = (found - expected).abs().max().item()
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    command[1] = "features"
    command += [*flags, "--output", folder / "maps.safetensors"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = load_file(folder / "maps.safetensors")
    of_maps = float("inf")
    if found.keys() == expected_maps.keys():
        # Not Python's `max`, which overlooks NaN.
        of_maps = torch.stack([
            (found[key] - expected_map).abs().max() / expected_map.abs().max().clamp(min=1.0)
            for key, expected_map in expected_maps.items()]).max().item()
    perturbed = ""
    ok = difference <= tolerance and of_maps <= 1e-4
    if not args.no_perturb:
        result = subprocess.run([args.perturb, folder, folder / "input.safetensors"], capture_output=True, text=True)
        perturbed = "  " + (result.stdout.strip() or result.stderr.strip())
        ok = ok and result.returncode == 0
    print(f"{'ok  ' if ok else 'FAIL'} {name:40s} difference {difference:.2e} of {tolerance:.1e}  maps {of_maps:.1e}{perturbed}", flush=True)
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="zoo names; all that timm knows by default")
    parser.add_argument("--program", default="target/release/vitesse")
    parser.add_argument("--perturb", default="target/release/examples/perturb")
    parser.add_argument("--no-perturb", action="store_true", help="leave out moving every tensor")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    listed = subprocess.run([args.program, "inspect", "--list", "--json"], check=True, capture_output=True, text=True)
    names = args.only or [row["name"] for row in json.loads(listed.stdout)["models"]]
    known = [name for name in names if timm.is_model(name)]
    print(f"not in timm, left out: {sorted(set(names) - set(known))}")
    failed = []
    for name in known:
        with tempfile.TemporaryDirectory() as folder:
            if not check(name, args.seed, args, pathlib.Path(folder)):
                failed.append(name)
    print(f"{len(known) - len(failed)} of {len(known)} agree with timm {timm.__version__}, torch {torch.__version__}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
