"""Adapting DeiT-Tiny to photographs: `vitesse adapt` against timm + PEFT (LoRA) and torch (a linear probe on cached features).

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/adapt.py [--model MODEL] [--data DATA] [--methods lora,linear] [--amp bf16] [--epochs 3] [--rounds 1]

Same weights, images, order of magnitude of everything: LoRA of rank 8 on qkv and a new head, AdamW, batches of 32, warm-up and
cosine by the step; two threads compute and two workers read. The probe learns on features that are computed once, in both
programs. Seconds are those of training with its one evaluation on validation, from the first image to the last; a process's
start does not count. The programs take turns. Then the adapters are exchanged: PEFT loads ours, timm loads our merge, and the
logits of 64 images of noise are compared.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import document
from export import log, pathed
from report import machine

BATCH, SEED = 32, 0
RATES = {"lora": 1e-3, "linear": 1e-2}
DECAY = 1e-4


def program(args, method, out):
    """A run of ours: what it reports."""
    epochs = args.epochs if method != "linear" else args.probe_epochs
    command = [
        args.vitesse, "adapt", "--model", args.model, "--data", args.data, "--method", method, "--epochs", epochs, "-b", BATCH,
        "--warmup-epochs", 0.5, "--seed", SEED, "--threads", args.threads, "--recipe", args.recipe, "--test", "--json", "-o", out,
        *(["--amp", args.amp] if args.amp != "f32" else []), *(["--limit", args.limit] if args.limit else []),
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)
    return {"seconds": found["seconds"], "top1": found["test"]["top1"], "balanced": found["test"]["balanced_accuracy"]}


class Rival:
    """timm's model with PEFT's LoRA, or a head on features."""

    def __init__(self, args):
        import timm
        import torch
        from timm.data import resolve_model_data_config
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        torch.set_num_threads(args.threads)
        torch.manual_seed(SEED)
        self.args, self.torch = args, torch
        self.model = timm.create_model("deit_tiny_patch16_224", checkpoint_path=str(args.model / "model.safetensors"))
        config = resolve_model_data_config(self.model)
        ending = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
        bicubic = transforms.InterpolationMode.BICUBIC
        # Ours: the whole picture's middle square to learn from, the checkpoint's crop to evaluate on.
        learn = transforms.Compose(
            [transforms.RandomResizedCrop(224, (1.0, 1.0), (1.0, 1.0), interpolation=bicubic), *ending]
        )
        side = math.floor(224 / config["crop_pct"])
        judge = transforms.Compose([transforms.Resize(side, bicubic), transforms.CenterCrop(224), *ending])
        self.train = ImageFolder(args.data / "train", learn)
        self.validation, self.test = (ImageFolder(args.data / part, judge) for part in ("validation", "test"))
        if args.limit:
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(SEED))
            self.train = torch.utils.data.Subset(self.train, order[: args.limit].tolist())
        self.classes = len(self.test.classes)

    def batches(self, data, shuffle=False):
        load = self.torch.utils.data.DataLoader
        return load(data, BATCH, shuffle=shuffle, num_workers=2, drop_last=shuffle, persistent_workers=False)

    def cast(self):
        return self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.args.amp == "bf16")

    def accuracy(self, classify, data):
        torch, right, seen = self.torch, {}, {}
        with torch.no_grad():
            for images, labels in self.batches(data):
                for truth, answer in zip(labels.tolist(), classify(images).argmax(1).tolist()):
                    seen[truth] = seen.get(truth, 0) + 1
                    right[truth] = right.get(truth, 0) + (truth == answer)
        recalls = [right[truth] / seen[truth] for truth in seen]
        return 100 * sum(right.values()) / sum(seen.values()), 100 * statistics.mean(recalls)

    def optimiser(self, parameters, rate, epochs, steps):
        torch = self.torch
        optimiser = torch.optim.AdamW(parameters, rate, weight_decay=DECAY)
        warm, total = steps // 2, epochs * steps

        def factor(step):
            if step < warm:
                return 1e-3 + step / max(warm, 1)
            return 0.01 + 0.99 * (1 + math.cos(math.pi * step / total)) / 2

        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)

    def lora(self):
        import peft

        torch = self.torch
        self.model.reset_classifier(self.classes)
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
        model = peft.get_peft_model(self.model, config)
        begun, epochs = time.perf_counter(), self.args.epochs
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser, schedule = self.optimiser(trained, RATES["lora"], epochs, len(self.train) // BATCH)
        for _ in range(epochs):
            model.train()
            for images, labels in self.batches(self.train, shuffle=True):
                with self.cast():
                    loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
        model.eval()
        self.accuracy(model, self.validation)
        return time.perf_counter() - begun, model

    def linear(self):
        torch = self.torch
        self.model.reset_classifier(0)
        self.model.eval()
        begun, epochs = time.perf_counter(), self.args.probe_epochs

        def features(data):
            with torch.no_grad(), self.cast():
                found = [(self.model(images).float(), labels) for images, labels in self.batches(data)]
            return torch.cat([x for x, _ in found]), torch.cat([labels for _, labels in found])

        x, labels = features(self.train)
        held, truth = features(self.validation)
        head = torch.nn.Linear(x.shape[1], self.classes)
        steps = len(x) // BATCH
        optimiser, schedule = self.optimiser(head.parameters(), RATES["linear"], epochs, steps)
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for step in range(steps):
                chosen = order[step * BATCH : (step + 1) * BATCH]
                loss = torch.nn.functional.cross_entropy(head(x[chosen]), labels[chosen])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
        (head(held).argmax(1) == truth).float().mean()
        return time.perf_counter() - begun, torch.nn.Sequential(self.model, head)

    def run(self, method):
        seconds, model = getattr(self, method)()
        top1, balanced = self.accuracy(model.eval(), self.test)
        return {"seconds": seconds, "top1": top1, "balanced": balanced}


def exchange(args, adapter):
    """The largest differences of logits: PEFT with our adapter, timm with our merge, each against ours."""
    import peft
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(SEED)
    images = torch.randn(64, 3, 224, 224)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        merged = folder / "merged"
        safetensors.torch.save_file({"pixel_values": images}, folder / "in.safetensors")
        for command in (
            ["merge", "--model", args.model, "--adapter", adapter, "-o", merged],
            ["run", "--model", merged, "--input", folder / "in.safetensors", "--output", folder / "out.safetensors"],
        ):
            subprocess.run([str(word) for word in [args.vitesse, *command]], check=True, capture_output=True)
        ours = safetensors.torch.load_file(folder / "out.safetensors")["logits"]
        plain = timm.create_model("deit_tiny_patch16_224", num_classes=ours.shape[1])
        weights = safetensors.torch.load_file(args.model / "model.safetensors")
        plain.load_state_dict({**weights, **{k: v for k, v in plain.state_dict().items() if k.startswith("head.")}})
        loaded = timm.create_model(
            "deit_tiny_patch16_224", num_classes=ours.shape[1], checkpoint_path=str(merged / "model.safetensors")
        )
        with torch.no_grad():
            found["timm with our merge"] = float((loaded.eval()(images) - ours).abs().max())
            model = peft.PeftModel.from_pretrained(plain, str(adapter)).eval()
            found["PEFT with our adapter"] = float((model(images) - ours).abs().max())
    return found


def alone(args, name, method, out):
    """One run in a process of its own."""
    if name == "vitesse":
        return program(args, method, out)
    command = [sys.executable, __file__, "--child", method, *(word for word in sys.argv[1:])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def write(args, about, found, exchanged):
    lines = [
        "## Beside timm and PEFT", "", document.about(about, args.threads), "", document.command(), "",
        f"`{args.model.name}` on `{args.data.name}`, {args.limit or 'all'} images, {args.amp}; LoRA for {args.epochs} epochs, the probe for "
        f"{args.probe_epochs} on features that are computed once; seconds of training with one evaluation, medians of rounds in turns.", "",
        "| method | program | rounds | seconds | top-1 % | balanced % | time / vitesse |", "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for (method, name), runs in found.items():
        middle = lambda key: statistics.median(run[key] for run in runs)  # noqa: E731
        ours = found.get((method, "vitesse"), [])
        ratios = [theirs["seconds"] / own["seconds"] for own, theirs in zip(ours, runs)] if name != "vitesse" else []
        lines.append(
            f"| {method} | {name} | {len(runs)} | {middle('seconds'):.1f} | {middle('top1'):.2f} | {middle('balanced'):.2f} "
            f"| {f'**{statistics.median(ratios):.2f}**' if ratios else ''} |"
        )
    if exchanged:
        told = ", ".join(f"{name} {value:.1e}" for name, value in exchanged.items())
        lines += ["", f"Largest difference of the logits of 64 images of noise to ours: {told}."]
    document.section(args.output, *document.of_kind(about, "peers", lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitesse", type=pathed, default="target/release/vitesse", help="the program")
    parser.add_argument("--model", type=pathed, default="../shared/weights/deit_tiny_patch16_224.fb_in1k")
    parser.add_argument("--data", type=pathed, default="../shared/data/clothing-small")
    parser.add_argument("--recipe", type=pathed, default=pathlib.Path(__file__).parent / "adapt.toml")
    parser.add_argument("--methods", type=lambda text: text.split(","), default="lora,linear")
    parser.add_argument("--amp", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--probe-epochs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="so many images only")
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/adapt.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(Rival(args).run(args.child)))
        return
    about, found, exchanged = machine(["torch", "torchvision", "timm", "peft", "pillow"]), {}, None
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.rounds):
            for method in args.methods:
                pair = ["vitesse", "timm + PEFT" if method == "lora" else "timm + torch"]
                for name in pair[index % 2 :] + pair[: index % 2]:
                    out = pathlib.Path(folder) / f"{method}{index}"
                    run = alone(args, name, method, out)
                    found.setdefault((method, name), []).append(run)
                    log(f"round {index} {method:8s} {name:14s} {run}")
        if "lora" in args.methods:
            exchanged = exchange(args, pathlib.Path(folder) / "lora0" / "adapter")
            log(str(exchanged))
    write(args, about, found, exchanged)


if __name__ == "__main__":
    main()
