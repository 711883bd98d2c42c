"""The duel of pruning: `vitesse prune` against Torch-Pruning, from the same base, data and MACs, tuned by the same recipe.

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/prune.py [--images 4000] [--rounds 7] [-o docs/results/pruning-duel.md]
    python benches/peers/prune.py --document      # writes the document again, from the rows that are there

Torch-Pruning makes its isomorphic, bottleneck (inner widths only) and uniform models, all by Taylor's criterion, each the largest
that takes at most the share of the MACs; Vitesse makes its own by the command in OURS. All of them, and the dense base, are
scored by `vitesse eval`, tuned by `vitesse distill` with prune.toml and the base as teacher, and scored again. One of Torch-Pruning's
is also tuned in PyTorch, to show that the tuning is no advantage of ours. Then the tuned models take turns: ours on our engine,
theirs on ONNX Runtime and OpenVINO. Models are kept in the cache folder and rows in two CSV files beside the document: what is there is not done
again, so that a run that was cut off goes on where it stopped. Linux only: it reads /proc.
"""

import argparse
import csv
import hashlib
import json
import pathlib
import shlex
import shutil
import subprocess
import time
import tomllib

import measure
import prune_report
from export import file_digest, ir_export, log, made_once, onnx_export, pathed

# How ours are made; `{images}` says on how many images: each side draws its own from the training split.
OURS = "prune {base} --macs {share} --data {data} --calibration {images} --seed {seed} -o {out}"
STYLES = ("isomorphic", "bottleneck", "uniform")
# Their latency is measured in these widths, too, whatever they would learn: engines like them better than any number.
ROUNDED = 16
CONTROL = "isomorphic, tuned in PyTorch"
# Contender, share of the MACs, seed.
ROWS = [
    *((name, 0.5, 0) for name in ("vitesse", *STYLES)), *((name, 0.65, 0) for name in ("vitesse", *STYLES)),
    *((name, 0.5, seed) for seed in (1, 2) for name in ("vitesse", "isomorphic")), (CONTROL, 0.5, 0), ("dense", 1.0, 0),
]  # fmt: skip
SHARES = (0.5, 0.65)
# Who runs theirs.
RIVALS = [rival for rival in measure.RIVALS if rival[3] in ("onnx", "ir") and rival[1] in ("onnxruntime", "openvino")]
PRODUCTS = {"onnx": "model.onnx", "ir": "model.xml"}
AGREEMENT = 1e-3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitesse", type=pathed, default="target/release/vitesse", help="the program")
    parser.add_argument("--base", type=pathed, default="../shared/weights/deit_tiny_patch16_224.cifar10")
    parser.add_argument("--data", type=pathed, default="../shared/data/cifar10")
    parser.add_argument("--ours", default=OURS, help="the command that makes ours")
    parser.add_argument("--recipe", type=pathed, default=pathlib.Path(__file__).parent / "prune.toml")
    parser.add_argument("--cache", type=pathed, default="target/peers/prune", help="models")
    parser.add_argument("--calibration", type=int, default=512, help="images that models are cut by")
    parser.add_argument("--images", type=int, default=4000, help="images that models are tuned on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--batch-sizes", type=lambda text: [int(word) for word in text.split(",")], default="1,16")
    parser.add_argument("--precisions", type=lambda text: text.split(","), default="f32,bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds-per-sample", type=float, default=1.0)
    parser.add_argument("--max-foreign", type=float, default=0.05, help="above this share of others, a sample is retaken")
    parser.add_argument("--attempts", type=int, default=3, help="how often at most")
    parser.add_argument("--wait-quiet", type=float, default=30, help="seconds a sample waits at most for a quiet machine")
    parser.add_argument("--document", action="store_true", help="write the document from the rows that are there, and nothing else")
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/pruning-duel.md")
    return parser.parse_args()


class Rows:
    """A CSV file of rows, each found again by its first columns."""

    def __init__(self, path, keys, values):
        self.path, self.keys, self.columns = path, keys, [*keys, *values]
        self.known = {}
        if path.exists():
            with open(path, newline="") as file:
                self.known = {self.key(row): row for row in csv.DictReader(file)}

    def key(self, row):
        return tuple(str(row[column]) for column in self.keys)

    def has(self, **key):
        return self.key(key) in self.known

    def add(self, **row):
        self.known[self.key(row)] = {column: str(row[column]) for column in self.columns}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        with open(part, "w", newline="") as file:
            out = csv.DictWriter(file, self.columns, lineterminator="\n")
            out.writeheader()
            out.writerows(self.known.values())
        part.replace(self.path)


def model_rows(args):
    keys = ["contender", "setup", "share", "seed", "calibration", "images", "epochs", "test_images"]
    values = ["macs_share", "parameters", "cut_top1", "tuned_top1", "cut_seconds", "tune_seconds"]
    return Rows(args.output.with_suffix(".csv"), keys, values)


def time_rows(args):
    keys = ["setup", "calibration", "threads", "share", "batch", "precision", "contender", "library", "variant"]
    values = ["rounds", "median_ms", "low_ms", "high_ms", "ratio_to_vitesse", "foreign", "isa"]
    return Rows(args.output.with_name(args.output.stem + "-latency.csv"), keys, values)


def rounded():
    return tuple(f"{style}, widths of {ROUNDED}" for style in STYLES)


def setup(args, name):
    """What rows and models are known by: with another base, data, recipe or, of ours, command they are others."""
    about = [file_digest(args.base / "model.safetensors"), args.data.name, args.recipe.read_text()]
    about += [args.ours] if name == "vitesse" else []
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:8]


def setups(args):
    return [setup(args, "vitesse"), setup(args, "")]


def settings(args):
    return {"calibration": args.calibration, "images": args.images, "epochs": args.epochs, "test_images": args.test_images}


class Duel:
    def __init__(self, args):
        self.args, self.rows, self.times = args, model_rows(args), time_rows(args)
        self.recipe = tomllib.loads(args.recipe.read_text())
        self.recipe["train"]["epochs"] = args.epochs
        self.kept = None

    def dense(self):
        """The base in PyTorch."""
        import prune_torch
        import torch

        torch.set_num_threads(self.args.threads)
        self.kept = self.kept or prune_torch.base(self.args.base)
        return self.kept

    def vitesse(self, *words):
        command = [str(word) for word in [self.args.vitesse, *words]]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{shlex.join(command)}\n{done.stderr.strip() or done.stdout.strip()}")
        return json.loads(done.stdout)

    def place(self, name, share, seed, what):
        """A folder of the cache; what is tuned depends on the settings too."""
        slug = f"{name.replace(', ', '-').replace(' ', '-').lower()}-{share}-{seed}-{self.args.calibration}"
        slug += f"-{setup(self.args, name)}"
        tuned = f"-{self.args.images}x{self.args.epochs}" if what != "cut" else ""
        return self.args.cache / f"{slug}-{what}{tuned}"

    def cut(self, name, share, seed):
        """The folder of a pruned model, and how `vitesse` is told to read it."""
        args = self.args
        if name == "dense":
            return args.base, read(args.base)
        style = "isomorphic" if name == CONTROL else name
        multiple = ROUNDED if name in rounded() else None

        def make(part):
            begun = time.perf_counter()
            if name == "vitesse":
                words = {"base": args.base, "share": share, "data": args.data, "seed": seed, "images": args.calibration}
                words = {key: shlex.quote(str(value)) for key, value in words.items()}
                self.vitesse(*shlex.split(args.ours.format(**words, out=shlex.quote(str(part / "model")))))
            else:
                import prune_torch

                prune_torch.make(part, self.dense(), args.data, style.split(",")[0], share, args.calibration, seed, multiple)
            (part / "seconds").write_text(f"{time.perf_counter() - begun:.0f}")

        folder = made_once(self.place(style, share, seed, "cut"), make)
        return folder, read(folder / "model") if name == "vitesse" else read(folder)

    def tuned(self, name, share, seed, folder, model):
        """The same after the recipe."""
        args = self.args

        def make(part):
            begun = time.perf_counter()
            if name == CONTROL:
                import prune_torch

                dense = self.dense()
                student = prune_torch.load(folder, folder, dense)
                prune_torch.tune(part, student, dense, args.data, self.recipe, args.images, seed)
            else:
                self.vitesse(
                    "distill", *model, "--teacher", args.base, "--recipe", args.recipe, "--data", args.data, "--epochs", args.epochs,
                    "--limit", args.images, "--seed", seed, "--threads", args.threads, "-o", part / "run",
                )  # fmt: skip
                shutil.move(part / "run" / "final", part / "model")
                shutil.rmtree(part / "run")
            (part / "seconds").write_text(f"{time.perf_counter() - begun:.0f}")

        tuned = made_once(self.place(name, share, seed, "tuned"), make)
        return tuned, read(tuned) if name == CONTROL else read(tuned / "model")

    def score(self, model):
        """Test accuracy in f32 of what `vitesse` is told to read, and its size."""
        args = self.args
        return self.vitesse(
            "eval", *model, "--data", args.data, "--split", "test", "--limit", args.test_images, "--threads", args.threads
        )

    def row(self, name, share, seed):
        key = {"contender": name, "setup": setup(self.args, name), "share": share, "seed": seed} | settings(self.args)
        if self.rows.has(**key):
            return
        folder, model = self.cut(name, share, seed)
        before = self.score(model)
        tuned, after_model = self.tuned(name, share, seed, folder, model)
        after = self.score(after_model)

        def seconds(place):
            return (place / "seconds").read_text() if (place / "seconds").exists() else ""

        self.rows.add(
            **key, macs_share=f"{before['macs'] / self.dense_macs():.4f}", parameters=before["param_count"], cut_top1=before["top1"],
            tuned_top1=after["top1"], cut_seconds=seconds(folder), tune_seconds=seconds(tuned),
        )  # fmt: skip
        log(f"{name} at {share}, seed {seed}: {before['top1']:.2f} %, tuned {after['top1']:.2f} %")

    def dense_macs(self):
        import prune_torch

        return prune_torch.macs(self.dense())

    def exported(self, name, share):
        """The tuned model of theirs for their engines, checked against ours; what is only timed is as it was cut."""
        import numpy as np
        import onnxruntime
        import prune_torch
        from safetensors.numpy import load_file, save_file

        cut, model = self.cut(name, share, 0)
        weights = cut
        if name in STYLES:
            tuned, model = self.tuned(name, share, 0, cut, None)
            weights = tuned / "model"

        def make(part):
            student = prune_torch.load(cut, weights, self.dense()).eval()
            ir_export(student, part / "model.xml")
            onnx_export(student, part / "model.onnx")  # which writes attention out
            pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
            save_file({"pixel_values": pixels}, part / "in.safetensors")
            self.vitesse("run", *model, "--input", part / "in.safetensors", "--output", part / "out.safetensors")
            ours = load_file(part / "out.safetensors")["logits"]
            session = onnxruntime.InferenceSession(part / "model.onnx", providers=["CPUExecutionProvider"])
            difference = float(np.abs(session.run(None, {"pixels": pixels})[0] - ours).max())
            if difference > AGREEMENT:
                raise SystemExit(f"{name} at {share}: its ONNX model differs by {difference} from what is scored")

        return made_once(self.place(name, share, 0, "exported"), make)

    def contenders(self, share, batch, precision):
        """(name, library, variant) and the form, of everybody who runs in this cell."""
        cut, model = self.cut("vitesse", share, 0)
        ours, _ = self.tuned("vitesse", share, 0, cut, model)
        found = {}
        for name, folder in (("vitesse", ours / "model"), ("dense", self.args.base)):
            found[name, "vitesse", ""] = {"path": str(folder), "dtype": precision, "variant": ""}
        for name in (*STYLES, *rounded()):
            for rival in RIVALS:
                _, library, row, kind, dtype, _ = rival
                for variant in measure.variants(rival, batch) if row == precision else []:
                    path = self.exported(name, share) / PRODUCTS[kind]
                    found[name, library, variant] = {"path": str(path), "dtype": dtype, "variant": variant}
        return found

    def cell(self, share, batch, precision, workers, pixels):
        """Everybody in turns, in an order that rotates; rows when all rounds are done."""
        contenders = self.contenders(share, batch, precision)
        key = {"setup": setup(self.args, "vitesse"), "calibration": self.args.calibration, "threads": self.args.threads, "share": share, "batch": batch, "precision": precision}

        def of(contender):
            return key | dict(zip(("contender", "library", "variant"), contender))

        if all(self.times.has(**of(contender)) for contender in contenders):
            return
        samples, order = {contender: [] for contender in contenders}, list(contenders)
        for index in range(self.args.rounds):
            for contender in order[index % len(order) :] + order[: index % len(order)]:
                ask = {"form": contenders[contender], "batch": batch, "seconds": self.args.seconds_per_sample, "pixels": str(pixels)}
                found = measure.quietest(self.args, workers[contender[1]], ask)
                if "error" in found:
                    raise SystemExit(f"{contender}: {found['error']}")
                log(f"round {index} {share} batch {batch} {precision} {' '.join(contender):36s} {found['ms']:9.2f} ms")
                samples[contender].append(found)
        for contender, row in prune_report.summary(samples, ("vitesse", "vitesse", "")).items():
            self.times.add(**of(contender), **row)

    def latency(self):
        import numpy as np

        pixels = self.args.cache / "pixels.npy"
        np.save(pixels, np.random.default_rng(0).standard_normal((max(self.args.batch_sizes), 3, 224, 224), np.float32))
        threads = self.args.threads
        workers = {name: measure.Worker(threads, "rivals.py", name, str(threads)) for name in ("onnxruntime", "openvino")}
        workers["vitesse"] = measure.Vitesse(self.args.vitesse, threads)
        try:
            for share in SHARES:
                for batch in self.args.batch_sizes:
                    for precision in self.args.precisions:
                        self.cell(share, batch, precision, workers, pixels)
                        prune_report.write(self.args, self.rows, self.times, settings(self.args), setups(self.args))
        finally:
            for worker in workers.values():
                worker.close()


def read(folder):
    """How `vitesse` is told to read a folder: ours says everything itself, of Torch-Pruning's the heads are said."""
    heads = folder / "heads.json"
    if not heads.exists():
        return ["--model", folder]
    counts = ",".join(str(count) for count in json.loads(heads.read_text()))
    return ["--model", folder / "model.safetensors", "--num-heads", counts]


def main():
    args = arguments()
    args.cache.mkdir(parents=True, exist_ok=True)
    if not args.document:
        duel = Duel(args)
        for row in ROWS:
            duel.row(*row)
            prune_report.write(args, duel.rows, duel.times, settings(args), setups(args))
        duel.latency()
    prune_report.write(args, model_rows(args), time_rows(args), settings(args), setups(args))
    log(str(args.output))


if __name__ == "__main__":
    main()
