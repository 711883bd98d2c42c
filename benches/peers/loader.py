"""Reading images for training: Vitesse's loader against torchvision + PIL + timm, with as many workers.

    pip install -r benches/peers/requirements.txt
    cargo build --release -p vitesse-data --example loader
    python benches/peers/loader.py [--photographs ../shared/data/imagenet-sample] [--workers 2] [--rounds 5]

The photographs are made into JPEGs whose shorter side has 224 pixels (Lanczos, quality 90), once, in the cache folder. Both
programs read them from the page cache and do all of DeiT's augmentation: a random crop resized to 224 x 224 (bicubic), flip,
RandAugment `rand-m9-mstd0.5-inc1`, normalisation, random erasing (0.25); batches of 64. They take turns; the first epoch of
each does not count.
"""

import argparse
import json
import statistics
import subprocess
import time

import document
from export import log, made_once, pathed
from report import machine

SIDE, QUALITY, BATCH = 224, 90, 64


def jpegs(photographs, cache):
    """A folder `pictures/*.jpg` with all photographs in their new size."""

    def make(part):
        from PIL import Image

        (part / "pictures").mkdir()
        for path in sorted(photographs.glob("*.jpg")):
            with Image.open(path) as image:
                image = image.convert("RGB")
                scale = SIDE / min(image.size)
                size = tuple(max(SIDE, round(side * scale)) for side in image.size)
                image.resize(size, Image.Resampling.LANCZOS).save(part / "pictures" / path.name, quality=QUALITY)

    return made_once(cache / f"jpegs-{photographs.name}-{SIDE}", make)


class Torch:
    """The usual way: ImageFolder, timm's transform for training, a DataLoader whose workers live on."""

    def __init__(self, folder, workers):
        import timm
        import torch
        from torchvision.datasets import ImageFolder

        # timm draws 0 bits now and then, which Pillow 13 refuses.
        names = timm.data.auto_augment.NAME_TO_OP
        posterize = names["PosterizeIncreasing"]
        names["PosterizeIncreasing"] = lambda image, bits, **words: posterize(image, max(bits, 1), **words)
        torch.set_num_threads(1)
        transform = timm.data.create_transform(
            SIDE, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25, re_mode="pixel"
        )
        self.loader = torch.utils.data.DataLoader(
            ImageFolder(folder, transform), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
        )

    def epoch(self):
        begun = time.perf_counter()
        images = sum(len(batch) for batch, _ in self.loader)
        return images / (time.perf_counter() - begun)


class Vitesse:
    """The example `loader`, an epoch after the one that does not count."""

    def __init__(self, program, folder, workers):
        self.command = [program, folder / "pictures", str(workers), "2"]

    def epoch(self):
        done = subprocess.run(self.command, capture_output=True, text=True, check=True)
        last = json.loads(done.stdout.splitlines()[-1])
        return last["images"] / last["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathed, default="target/release/examples/loader")
    parser.add_argument("--photographs", type=pathed, default="../shared/data/imagenet-sample")
    parser.add_argument("--cache", type=pathed, default="target/peers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/training.md")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    folder = jpegs(args.photographs, args.cache)
    programs = {"vitesse": Vitesse(args.program, folder, args.workers), "torchvision, PIL, timm": Torch(folder, args.workers)}
    for program in programs.values():
        program.epoch()
    found = {name: [] for name in programs}
    for index in range(args.rounds):
        for name in list(programs)[:: 1 if index % 2 else -1]:
            found[name].append(programs[name].epoch())
            log(f"round {index} {name:24s} {found[name][-1]:7.1f} images/s")
    ours, theirs = found.values()
    ratios = [a / b for a, b in zip(ours, theirs)]
    about = machine(["torch", "torchvision", "timm", "pillow"])
    lines = [
        "## Reading images", "", document.about(about, args.workers, "workers"), "", document.command(), "",
        f"{len(list(folder.glob('*/*.jpg')))} photographs, JPEG of quality {QUALITY} with {SIDE} pixels on the shorter side, in the page cache; random resized crop to "
        f"{SIDE} x {SIDE} (bicubic), flip, RandAugment `rand-m9-mstd0.5-inc1`, normalisation, random erasing 0.25; batches of {BATCH}. "
        f"Medians of {args.rounds} epochs in turn, with the slowest and the fastest.", "",
        "| loader | images/s | range | vitesse is faster by |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, speeds in found.items():
        ratio = "" if name == "vitesse" else f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {statistics.median(speeds):.0f} | {min(speeds):.0f} to {max(speeds):.0f} | {ratio} |")
    document.section(args.output, *document.of_kind(about, "loader", lines))


if __name__ == "__main__":
    main()
