"""A worker: steps of training in PyTorch, driven by JSON lines on stdin and stdout (see measure.py).

    python benches/peers/train_torch.py CASE WEIGHTS_FOLDER f32|bf16 eager|compiled THREADS

    {"do": "load", "seconds": 5} -> {}                     the first steps, which compile and allocate
    {"do": "run", "seconds": 5} -> {"ms": median of one step, "p25", "p75", "memory": bytes at most, "losses": of all steps}

Compiled is the model, forward and backward; the optimiser is PyTorch's fused AdamW in every case.
"""

import dataclasses
import json
import os
import pathlib
import re
import statistics
import sys
import time

import numpy as np

WARM = 2
RANK = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a batch, and what is trained: `all`, the `head`, or `lora`: updates of rank 8 on qkv, and the head."""

    title: str
    architecture: str
    batch: int
    trained: str = "all"
    model_args: tuple = ()
    side: int = 224
    classes: int = 1000

    def slug(self):
        return f"{self.architecture}-{self.side}"

    def timm_model(self):
        import timm

        # timm drops paths of a Swin while it learns; a step here is the same each time.
        return timm.create_model(self.architecture, num_classes=self.classes, drop_path_rate=0.0, **dict(self.model_args))

    def config(self, model):
        return {
            "architecture": self.architecture, "num_classes": self.classes, "num_features": model.num_features,
            "model_args": dict(self.model_args),
            "pretrained_cfg": {"input_size": [3, self.side, self.side], "num_classes": self.classes},
        }  # fmt: skip


MICRO = (("img_size", 32), ("patch_size", 4), ("embed_dim", 96), ("depth", 6), ("num_heads", 3))
CASES = {
    "tiny": Case("DeiT-Tiny, 224 pixels", "deit_tiny_patch16_224", 16),
    "small": Case("DeiT-Small, 224 pixels", "deit_small_patch16_224", 8),
    "swin": Case("Swin-Tiny, 224 pixels", "swin_tiny_patch4_window7_224", 8),
    "micro": Case("A small one: dim 96, depth 6, 3 heads, 32 pixels, patch 4", "deit_tiny_patch16_224", 128, "all", MICRO, 32, 10),
    "head": Case("DeiT-Tiny, the head on a frozen backbone", "deit_tiny_patch16_224", 16, "head"),
    "lora": Case("DeiT-Tiny, updates of rank 8 on qkv, and the head", "deit_tiny_patch16_224", 16, "lora"),
}  # fmt: skip


def lesson(case):
    """Images and targets of `vitesse bench --train`: hashes of places, and smoothed labels."""
    place = np.arange(case.batch * 3 * case.side * case.side, dtype=np.uint32)
    place = (place ^ place >> 16) * np.uint32(0x85EBCA6B)
    place = (place ^ place >> 13) * np.uint32(0xC2B2AE35)
    place ^= place >> 16
    images = ((place / 2**32 - 0.5) * 12**0.5).astype(np.float32).reshape(case.batch, 3, case.side, case.side)
    targets = np.full((case.batch, case.classes), 0.1 / case.classes, np.float32)
    targets[np.arange(case.batch), np.arange(case.batch) % case.classes] += 0.9
    return images, targets


def adapt(model, trained):
    """Freezes what is not trained."""
    import torch

    class LowRank(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.a = torch.nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, RANK))

        def forward(self, x):
            return self.base(x) + torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b)

    if trained == "all":
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    if trained == "lora":
        for block in model.blocks:
            block.attn.qkv = LowRank(block.attn.qkv)


class Trainer:
    def __init__(self, case, weights, precision, form):
        import timm
        import torch

        model = case.timm_model()
        timm.models.load_checkpoint(model, str(weights / "model.safetensors"), strict=True)
        adapt(model, case.trained)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        spared = {name for name, p in named if p.dim() <= 1} | set(model.no_weight_decay())
        plain = [p for name, p in named if name in spared]
        decaying = [p for name, p in named if name not in spared]
        groups = [{"params": decaying, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, fused=True)
        self.model = model.train()
        self.forward = torch.compile(self.model) if form == "compiled" else self.model
        self.images, self.targets = map(torch.from_numpy, lesson(case))
        self.bf16 = precision == "bf16"
        self.losses = []

    def step(self):
        import torch

        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.forward(self.images)
        loss = torch.nn.functional.cross_entropy(logits.float(), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        return 1000 * (time.perf_counter() - begun)

    def warm(self):
        if not self.losses:
            for _ in range(WARM):
                self.step()
            # What compiling took is forgotten: the peak counts from here.
            pathlib.Path("/proc/self/clear_refs").write_text("5")

    def run(self, seconds):
        self.warm()
        times, begun = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begun < seconds:
            times.append(self.step())
        p25, median, p75 = statistics.quantiles(times, n=4, method="inclusive")
        peak = re.search(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]
        return {"ms": median, "p25": p25, "p75": p75, "memory": 1024 * int(peak), "losses": self.losses}


def main():
    # Libraries print what they like; answers alone go to the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    name, weights, precision, form, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    trainer = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            trainer = trainer or Trainer(CASES[name], pathlib.Path(weights), precision, form)
            trainer.warm()
            answer = {} if order["do"] == "load" else trainer.run(order["seconds"])
        except Exception as error:  # one that fails must not end the others
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
