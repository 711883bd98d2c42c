"""What is learned, not how fast: `vitesse train` against timm and PyTorch, the same weights, images and recipe.

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/learn.py [--seeds 0,1,2] [--images 9000] [--held-back 1000]

DeiT-Tiny learns CIFAR-10 at 224 pixels for one epoch of learn.toml. Both programs learn from the same images and are scored by
`vitesse eval` on the same others; a seed decides the new head, the order, crops and flips, in each program by its own
generator. PyTorch's own score, by timm's transforms, stands beside it. Rows are kept in a CSV file beside the document: those that are there
are not made again, so that a run that was cut off goes on where it stopped.
"""

import argparse
import csv
import json
import math
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib

import document
from export import MEAN, STD, log, pathed
from report import machine

HERE = pathlib.Path(__file__).parent
PROGRAMS = ("vitesse", "timm and PyTorch")
KEYS, VALUES = ("program", "seed", "images", "held_back"), ("seconds", "train_loss", "top1", "own_top1")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitesse", type=pathed, default="target/release/vitesse", help="the program")
    parser.add_argument("--base", type=pathed, default="../shared/weights/deit_tiny_patch16_224.fb_in1k")
    parser.add_argument("--data", type=pathed, default="../shared/data/cifar10/train", help="a folder a class")
    parser.add_argument("--recipe", type=pathed, default=HERE / "learn.toml")
    parser.add_argument("--cache", type=pathed, default="target/peers/learn", help="the list of images, and models")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default="0,1,2")
    parser.add_argument("--images", type=int, default=9000, help="images that are learned from")
    parser.add_argument("--held-back", type=int, default=1000, help="images that both are scored on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/training.md")
    parser.add_argument("--child", nargs=2, metavar=("SEED", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def images(args):
    """The list of all images, a data set of two splits: the same share of each class, evenly spread."""
    classes = [(folder.name, sorted(folder.iterdir())) for folder in sorted(args.data.iterdir())]
    path = args.cache / f"{args.images}-{args.held_back}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["filename", "class_index", "name", "split"])
        for index, (name, files) in enumerate(classes):
            count = (args.images + args.held_back) // len(classes)
            for i, picture in enumerate(files[:count]):
                held = (i + 1) * args.held_back // (args.images + args.held_back) > i * args.held_back // (args.images + args.held_back)
                out.writerow([picture, index, name, "validation" if held else "train"])
    return path


class Pictures:
    """One split of the list for a DataLoader."""

    def __init__(self, path, split, transform):
        with open(path, newline="") as file:
            self.rows = [(row["filename"], int(row["class_index"])) for row in csv.DictReader(file) if row["split"] == split]
        self.transform = transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        from PIL import Image

        name, label = self.rows[index]
        return self.transform(Image.open(name).convert("RGB")), label


def transform(augment):
    """As timm prepares pictures: for learning where `augment` is the recipe's table, else for evaluation."""
    import timm.data.transforms as timm_transforms
    from torchvision import transforms

    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    bicubic = transforms.InterpolationMode.BICUBIC
    if augment is None:
        return transforms.Compose([transforms.Resize(math.floor(224 / 0.9), bicubic), transforms.CenterCrop(224), *last])
    crop = timm_transforms.RandomResizedCropAndInterpolation(224, scale=tuple(augment["scale"]), interpolation="bicubic")
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *last])


def model(base, classes):
    """timm's model with the weights of the base, its head drawn as timm draws one."""
    import timm
    from safetensors.torch import load_file

    found = timm.create_model("deit_tiny_patch16_224", num_classes=classes)
    state = load_file(base / "model.safetensors")
    missing = found.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")}, strict=False)
    assert sorted(missing.missing_keys) == ["head.bias", "head.weight"] and not missing.unexpected_keys
    return found


def torch_epoch(args, recipe, seed, folder):
    """The first epoch of the recipe, as timm's program goes; keeps the model in `folder` and says what became of it."""
    import torch
    from safetensors.torch import save_file
    from timm.optim import param_groups_weight_decay
    from torch import nn

    torch.manual_seed(seed)
    torch.set_num_threads(args.threads)
    path = images(args)
    learner = model(args.base, 10).train()
    train, rates, plan = recipe["train"], recipe["optim"], recipe["schedule"]
    learnt = Pictures(path, "train", transform(recipe["augment"]))
    batches = torch.utils.data.DataLoader(learnt, train["batch_size"], shuffle=True, drop_last=True, num_workers=2)
    groups = param_groups_weight_decay(learner, rates["weight_decay"], learner.no_weight_decay())
    optimiser = torch.optim.AdamW(groups, rates["lr"])
    total, warm = train["epochs"] * len(batches), plan["warmup_epochs"] * len(batches)

    def rate(step):
        if step < warm:
            return plan["warmup_lr"] + step * (rates["lr"] - plan["warmup_lr"]) / warm
        return plan["min_lr"] + (rates["lr"] - plan["min_lr"]) * (1 + math.cos(math.pi * step / total)) / 2

    losses, begun = [], time.perf_counter()
    for step, (pixels, labels) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=train.get("amp") == "bf16"):
            logits = learner(pixels)
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=train["smoothing"])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), rates["clip_grad"])
        optimiser.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - begun
    learner.eval()
    right = count = 0
    with torch.inference_mode():
        for pixels, labels in torch.utils.data.DataLoader(Pictures(path, "validation", transform(None)), 50, num_workers=2):
            right += (learner(pixels).argmax(1) == labels).sum().item()
            count += len(labels)
    config = json.loads((args.base / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 10
    for key in ("label_names", "label_descriptions"):
        config.pop(key, None)
    save_file({name: tensor.contiguous() for name, tensor in learner.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return {"seconds": seconds, "train_loss": statistics.mean(losses), "own_top1": 100 * right / count}


def vitesse_epoch(args, seed, folder):
    """The same by `vitesse train`, which is stopped once the first epoch is told."""
    run = folder / "run"
    command = [
        args.vitesse, "train", "--recipe", args.recipe, "--model", args.base, "--num-classes", 10, "--data", images(args),
        "--seed", seed, "--threads", args.threads, "-o", run,
    ]  # fmt: skip
    with open(folder / "log.txt", "w") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
        while process.poll() is None and not (first_row(run / "summary.csv") and (run / "best" / "model.safetensors").exists()):
            time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait()
    if not (row := first_row(run / "summary.csv")):
        raise SystemExit((folder / "log.txt").read_text())
    for file in (run / "best").iterdir():
        shutil.copy(file, folder)
    return {"seconds": float(row["seconds"]), "train_loss": float(row["train_loss"]), "own_top1": float(row["eval_top1"])}


def first_row(path):
    if not path.exists():
        return None
    with open(path, newline="") as file:
        return next(csv.DictReader(file), None)


def make(args, program, seed):
    """One row: an epoch by `program`, and its score."""
    folder = args.cache / f"{program.split()[0]}-{seed}-{args.images}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if program == "vitesse":
        found = vitesse_epoch(args, seed, folder)
    else:
        # In a process of its own, so that no library's threads meet another's.
        done = subprocess.run([sys.executable, *sys.argv, "--child", str(seed), str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
    command = [args.vitesse, "eval", "--model", folder, "--data", images(args), "--split", "validation", "--labels-by", "index", "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found["top1"] = json.loads(done.stdout)["top1"]
    return {"program": program, "seed": seed, "images": args.images, "held_back": args.held_back} | found


def write(args, about, rows):
    """The section: a row a seed, and whether the programs can be told apart."""
    recipe = tomllib.loads(args.recipe.read_text())
    lines = [
        "## What is learned", "", document.about(about, args.threads), "", document.command(), "",
        f"DeiT-Tiny of ImageNet learns CIFAR-10 at 224 pixels: {args.images} images, one epoch of a schedule of {recipe['train']['epochs']}, "
        f"batches of {recipe['train']['batch_size']}, {recipe['train'].get('amp', 'f32')} (`benches/peers/learn.toml`). Top-1 is on the same "
        f"{args.held_back} others, by `vitesse eval`; in brackets each program's own.", "",
        "| seed | " + " | ".join(f"{program}: loss | top-1" for program in PROGRAMS) + " |", "| --- " * (1 + 2 * len(PROGRAMS)) + "|",
    ]  # fmt: skip
    found = {key: row for key, row in rows.items() if key[2:] == (str(args.images), str(args.held_back))}
    seeds = sorted({key[1] for key in found}, key=int)
    for seed in seeds:
        cells = []
        for program in PROGRAMS:
            row = found.get((program, seed, str(args.images), str(args.held_back)))
            cells += [f"{float(row['train_loss']):.3f}", f"{float(row['top1']):.1f} ({float(row['own_top1']):.1f})"] if row else ["", ""]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    scores = {program: [float(row["top1"]) for key, row in found.items() if key[0] == program] for program in PROGRAMS}
    if all(len(group) > 1 for group in scores.values()):
        means = {program: statistics.mean(group) for program, group in scores.items()}
        apart = means[PROGRAMS[0]] - means[PROGRAMS[1]]
        error = math.sqrt(sum(statistics.variance(group) / len(group) for group in scores.values()))
        share = statistics.mean(means.values()) / 100
        drawn = 100 * math.sqrt(share * (1 - share) / args.held_back)
        lines += [
            "", "Means are " + " and ".join(f"{means[program]:.1f} % ({program})" for program in PROGRAMS)
            + f": apart by {apart:+.1f} points, with a standard error of {error:.1f} from seed to seed; another draw of {args.held_back} images to score "
            f"on would move either by {drawn:.1f}.",
        ]  # fmt: skip
    document.section(args.output, "learning", lines)


def main():
    args = arguments()
    if args.child:
        seed, folder = args.child
        print(json.dumps(torch_epoch(args, tomllib.loads(args.recipe.read_text()), int(seed), pathlib.Path(folder))))
        return
    path = args.output.with_name(f"{args.output.stem}-learning.csv")
    rows, about = {}, machine(["torch", "torchvision", "timm", "pillow"])
    if path.exists():
        with open(path, newline="") as file:
            rows = {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}
    for seed in args.seeds:
        for program in PROGRAMS:
            key = (program, str(seed), str(args.images), str(args.held_back))
            if key in rows:
                continue
            rows[key] = make(args, program, seed)
            log(f"{program}, seed {seed}: {rows[key]}")
            with open(path, "w", newline="") as file:
                out = csv.DictWriter(file, [*KEYS, *VALUES], lineterminator="\n")
                out.writeheader()
                out.writerows(rows.values())
    write(args, about, rows)


if __name__ == "__main__":
    main()
