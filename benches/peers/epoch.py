"""An epoch of Fashion-MNIST: `vitesse train` against PyTorch, the same model, batches and augmentation.

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/epoch.py [--data ../shared/data/fashion-mnist] [--precisions f32,bf16] [--rounds 3]

60 000 pictures of 28 pixels, decoded in memory, cut and enlarged to 32 (bicubic), flipped, normalised, in batches of 128;
two threads compute and two workers prepare. The seconds are those of the epoch, from the first picture to the last step,
without what a process does once. The programs take turns. The recipe is epoch.toml.
"""

import argparse
import csv
import gzip
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import document
import numpy as np
from export import MEAN, STD, log, pathed
from report import machine
from train_torch import CASES, Trainer

HERE = pathlib.Path(__file__).parent
BATCH = 128


class Pictures:
    """Fashion-MNIST for a DataLoader: augmented pictures with their labels."""

    def __init__(self, folder, limit):
        import timm.data.transforms as timm_transforms
        from torchvision import transforms

        def read(name, skip):
            return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=skip)

        self.pictures = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:limit]
        self.labels = read("train-labels-idx1-ubyte.gz", 8)[:limit].astype(np.int64)
        self.transform = transforms.Compose([
            timm_transforms.RandomResizedCropAndInterpolation(32, scale=(0.5, 1.0), interpolation="bicubic"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.fromarray(self.pictures[index]).convert("RGB")), self.labels[index]


def torch_epoch(args, precision, weights):
    import torch

    torch.set_num_threads(args.threads)
    case = CASES["micro"]
    trainer = Trainer(case, weights, precision, "eager")
    pictures = Pictures(args.data, args.limit)
    loader = torch.utils.data.DataLoader(pictures, BATCH, shuffle=True, num_workers=2, drop_last=True)
    begun = time.perf_counter()
    for images, labels in loader:
        trainer.images = images
        trainer.targets = torch.full((BATCH, case.classes), 0.1 / case.classes)
        trainer.targets[torch.arange(BATCH), labels] += 0.9
        trainer.step()
    return time.perf_counter() - begun, statistics.mean(trainer.losses)


def vitesse_epoch(args, precision):
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        command = [
            args.vitesse, "train", "--recipe", HERE / "epoch.toml", "--data", args.data, "--threads", args.threads,
            *(["--limit", args.limit] if args.limit else []), *(["--amp", precision] if precision != "f32" else []), "-o", run,
        ]  # fmt: skip
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[0])
        with open(run / "summary.csv", newline="") as file:
            (row,) = csv.DictReader(file)
    return float(row["seconds"]), float(row["train_loss"])


def alone(args, name, precision, weights):
    """One epoch in a process of its own, so that no library's threads meet another's."""
    if name == "vitesse":
        return vitesse_epoch(args, precision)
    command = [sys.executable, __file__, "--child", precision, "--weights", weights, "--data", args.data]
    command += ["--threads", args.threads, *(["--limit", args.limit] if args.limit else [])]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    seconds, loss = done.stdout.split()
    return float(seconds), float(loss)


def write(args, about, found, failures):
    images = args.limit or 60_000
    lines = [
        "## An epoch of Fashion-MNIST", "", document.about(about, args.threads), "", document.command(), "",
        f"{images} pictures, the small model (dim 96, depth 6, 32 pixels, patch 4), batches of {BATCH}; seconds from the first picture to the "
        "last step, medians over rounds in which the programs take turns, with lowest and highest. The loss is the mean over the epoch.", "",
        "| program | precision | rounds | seconds | range | loss | time / vitesse |", "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for (name, precision), epochs in found.items():
        seconds, losses = zip(*epochs)
        base = found.get(("vitesse", precision), [])
        ratios = [theirs / ours for (ours, _), theirs in zip(base, seconds)] if name != "vitesse" else []
        lines.append(
            f"| {name} | {precision} | {len(epochs)} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} "
            f"| {statistics.median(losses):.3f} | {f'**{statistics.median(ratios):.2f}**' if ratios else ''} |"
        )
    lines += [f"| {name} | {precision} | not measured: {reason} | | | | |" for (name, precision), reason in failures.items()]
    document.section(args.output, *document.of_kind(about, "epoch", lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitesse", type=pathed, default="target/release/vitesse", help="the program")
    parser.add_argument("--data", type=pathed, default="../shared/data/fashion-mnist")
    parser.add_argument("--cache", type=pathed, default="target/peers", help="where train.py keeps its weights")
    parser.add_argument("--precisions", type=lambda text: text.split(","), default="f32,bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="so many pictures only, to try it out")
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/training.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(*torch_epoch(args, args.child, args.weights))
        return
    from train import folder

    args.cache.mkdir(parents=True, exist_ok=True)
    weights, about = folder("micro", args), machine(["torch", "torchvision", "timm", "pillow", "numpy"])
    found, failures = {}, {}
    for index in range(args.rounds):
        for precision in args.precisions:
            pair = ["vitesse", "PyTorch eager" + (", autocast" if precision == "bf16" else "")]
            for name in pair[index % 2 :] + pair[: index % 2]:
                if (name, precision) in failures:
                    continue
                try:
                    epoch = alone(args, name, precision, weights)
                except RuntimeError as error:
                    failures[name, precision] = str(error)
                    log(f"{name} {precision}: {error}")
                    continue
                found.setdefault((name, precision), []).append(epoch)
                log(f"round {index} {name:24s} {precision:5s} {epoch[0]:7.1f} s, loss {epoch[1]:.3f}")
        write(args, about, found, failures)


if __name__ == "__main__":
    main()
