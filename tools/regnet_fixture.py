"""Writes crates/vitesse-model/tests/fixtures/regnet_tiny.safetensors: a tiny RegNetY as timm computes it.

    pip install torch timm safetensors
    python tools/regnet_fixture.py crates/vitesse-model/tests/fixtures/regnet_tiny.safetensors

Every tensor is random, norms and running variances in 0.5..1.5, so that no path is hidden by a zero or a one. The image
has odd sides at most resolutions. The network is described once more in tests/regnet_reference.rs.

    w.NAME       weights and running statistics
    in.image     [3, 3, 36, 28]
    in.weights   [3, 7], the loss is the sum of logits * weights
    eval.logits, eval.grad.NAME     evaluation mode
    train.logits, train.grad.NAME   training mode, batch statistics
    train.buffer.NAME               running statistics after that one forward pass
"""

import sys

import torch
from safetensors.torch import save_file
from timm.models.regnet import RegNet, RegNetCfg

GRADIENTS = ("stem", "s2", "s4.b1.conv2", "head.fc")


def randomise(model):
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if ".bn.weight" in name or "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() > 1:
            tensor.normal_(std=(2.0 / tensor[0].numel()) ** 0.5)
        else:
            tensor.normal_(std=0.3)


def run(model, image, weights):
    model.zero_grad()
    logits = model(image)
    (logits * weights).sum().backward()
    grads = {f"grad.{n}": p.grad.clone() for n, p in model.named_parameters() if n.startswith(GRADIENTS)}
    return {"logits": logits.detach(), **grads}


def main(path):
    torch.manual_seed(1)
    torch.set_num_threads(1)
    # Stages of 1, 2, 1 and 1 blocks with 8, 16, 24 and 32 channels.
    cfg = RegNetCfg(depth=5, w0=8, wa=5.0, wm=1.3, group_size=8, stem_width=8, se_ratio=0.5)
    model = RegNet(cfg, num_classes=7)
    randomise(model)
    image, weights = torch.randn(3, 3, 36, 28), torch.randn(3, 7)
    out = {f"w.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    out |= {"in.image": image, "in.weights": weights}
    out |= {f"eval.{k}": v for k, v in run(model.eval(), image, weights).items()}
    out |= {f"train.{k}": v for k, v in run(model.train(), image, weights).items()}
    out |= {f"train.buffer.{n}": t.clone() for n, t in model.state_dict().items() if "running_" in n}
    save_file(out, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
