"""Pruning, measured: what the correction wins back, and whether speed equals arithmetic.

    python benches/prune.py accuracy MODEL DATA --csv docs/results/pruning-accuracy.csv [--shares 0.9,0.8,…] [--test-images 2000]
    python benches/prune.py speed MODEL… --csv docs/results/pruning-speed.csv [--rounds 9]
    python benches/prune.py report docs/results

Rows are written as they are finished; a row that is there is not measured again. Linux only: it reads /proc. `accuracy` takes one model and one run of `vitesse prune`
for each way to choose and each share, before and after the correction, and tests each result on the same test images. `speed` prunes each model
uniformly and block by block, and lets all results take turns with the dense model. MACs are those that the engine does.
"""

import argparse
import csv
import functools
import json
import pathlib
import subprocess
import tempfile
import time

WAYS = {
    "obs": ["--method", "obs"],
    "obs, all blocks alike": ["--method", "obs", "--scope", "local"],
    "Taylor, all blocks alike": ["--method", "taylor"],
    "Taylor, isomorphic": ["--method", "taylor", "--scope", "kind"],
    "magnitude, all blocks alike": ["--method", "magnitude"],
    "random, all blocks alike": ["--method", "random"],
}
# Of the arithmetic's share, so much speed is to be seen.
ENOUGH = 0.9
# Whole heads, since what is left of one has as many softmaxes as before.
SHAPES = {"uniform": ["--scope", "local", "--units", "head,hidden"], "block by block": ["--scope", "kind", "--units", "head,hidden"]}


def vitesse(args, *words):
    command = [args.program, *map(str, words), "--threads", str(args.threads), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


class Rows:
    """A table on disk that grows row by row."""

    def __init__(self, path, columns):
        self.path, self.columns = path, columns
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def has(self, **key):
        return any(all(row[name] == str(value) for name, value in key.items()) for row in self.rows)

    def add(self, **row):
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({name: str(value) for name, value in row.items()})
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)


@functools.cache
def processor():
    names = [line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores"


def machine(args, isa):
    return f"{processor()}, {args.threads} threads, {isa}"


def test(args, model):
    found = vitesse(args, "eval", "--model", model, "--data", args.data, "--split", "test", "--limit", args.test_images, "--precision", args.precision)
    return {"top1": found["top1"], "test_images": found["images"], "machine": machine(args, found["isa"])}


def accuracy(args):
    columns = ["model", "way", "corrected", "share", "macs_share", "top1", "test_images", "seconds", "machine"]
    rows = Rows(args.csv, columns)
    name = args.model.name
    if not rows.has(model=name, way="dense"):
        rows.add(model=name, way="dense", corrected="", share=1, macs_share=1, seconds=0, **test(args, args.model))
    for share in args.shares:
        for way, flags in WAYS.items():
            for corrected in ("no", "yes"):
                if way != "obs" and share not in args.more_at:
                    continue
                key = {"model": name, "way": way, "corrected": corrected, "share": share}
                if rows.has(**key):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    out = pathlib.Path(folder) / "pruned"
                    more = [] if corrected == "yes" else ["--no-correction"]
                    begun = time.perf_counter()
                    found = vitesse(args, "prune", args.model, "--macs", share, *flags, *more, "--data", args.data, "--eval-images", 0, "-o", out)
                    seconds = time.perf_counter() - begun
                    plan = found["results"][0]["plan"]
                    rows.add(
                        **key,
                        macs_share=round(plan["after"]["macs"] / plan["before"]["macs"], 4),
                        seconds=round(seconds, 1),
                        **test(args, out),
                    )


def stages(args, model, precision, batch):
    """Milliseconds of a forward pass by its stages, on the first thread, without its waits for the others."""
    found = vitesse(args, "bench", "--model", model, "--precision", precision, "-b", batch, "--seconds", args.seconds, "--profile")
    stages = found["results"][0]["profile"]["stages"]
    return {name: ms for name, ms in stages.items() if name != "wait"}


def limits(args, dense, pruned, precision, batch, less):
    """The stages that take most above what they took in the dense model, divided by the ratio of the MACs."""
    before, after = stages(args, dense, precision, batch), stages(args, pruned, precision, batch)
    above = {name: ms - before[name] / less for name, ms in after.items()}
    worst = sorted(above, key=above.get, reverse=True)[:2]
    return ", ".join(f"{name} {after[name]:.2f} for {before[name] / less:.2f}" for name in worst if above[name] > 0)


def speed(args):
    columns = ["model", "precision", "batch", "shape", "share", "macs_ratio", "speedup", "least", "most", "rounds", "machine", "limits"]
    rows = Rows(args.csv, columns)
    for model in args.model:
        with tempfile.TemporaryDirectory() as folder:
            made = []
            for shape, flags in SHAPES.items():
                for share in args.shares:
                    out = pathlib.Path(folder) / f"{shape}-{share}".replace(" ", "-")
                    vitesse(args, "prune", model, "--macs", share, "--method", "magnitude", *flags, "-o", out)
                    made.append((shape, share, out))
            for precision in args.precisions:
                for batch in (1, 16):
                    if rows.has(model=model.name, precision=precision, batch=batch):
                        continue
                    found = vitesse(
                        args, "compare", model, *(out for *_, out in made), "--precision", precision, "-b", batch, "--rounds", args.rounds,
                        "--seconds", args.seconds,
                    )
                    dense = found["models"][0]
                    for (shape, share, out), one, time_ in zip(made, found["models"][1:], found["batches"][0]["results"][1:]):
                        ratio, less = time_["ratio"], dense["macs_executed"] / one["macs_executed"]
                        missed = 1 / ratio["median"] < ENOUGH * less
                        rows.add(
                            model=model.name,
                            precision=precision,
                            batch=batch,
                            shape=shape,
                            share=share,
                            macs_ratio=round(less, 3),
                            speedup=round(1 / ratio["median"], 3),
                            least=round(1 / ratio["max"], 3),
                            most=round(1 / ratio["min"], 3),
                            rounds=args.rounds,
                            machine=machine(args, one["isa"]),
                            limits=limits(args, model, out, precision, batch, less) if missed else "",
                        )


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def accuracy_lines(rows):
    """A table for each model: the way in rows, the share in columns, the cut and what the correction makes of it."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        dense = next(row for row in mine if row["way"] == "dense")
        shares = sorted({row["share"] for row in mine if row["way"] != "dense"}, key=float, reverse=True)
        found = {(row["way"], row["corrected"], row["share"]): row for row in mine}
        lines += [f"`{model}`, {dense['test_images']} test images, dense {float(dense['top1']):.1f} %:", ""]
        body = []
        for way, corrected in dict.fromkeys((row["way"], row["corrected"]) for row in mine if row["way"] != "dense"):
            name = way + (", corrected" if corrected == "yes" else "")
            cells = [found.get((way, corrected, share)) for share in shares]
            body.append([name, *(f"{float(cell['top1']):.1f}" if cell else "" for cell in cells)])
        lines += [*table(["top-1 (%), MACs asked for", *shares], body), ""]
        seconds = [float(row["seconds"]) for row in mine if row["corrected"] == "yes"]
        if seconds:
            lines += [f"A corrected run took {min(seconds):.0f} to {max(seconds):.0f} s, other work beside it.", ""]
    return lines


def speed_lines(rows):
    head = ["model", "precision", "batch", "blocks", "MACs asked for", "MACs dense ÷ pruned", "times faster", "spread", "of the arithmetic", "what limits: ms, and the share of the dense ms"]
    body = [
        [
            row["model"], row["precision"], row["batch"], row["shape"], row["share"], f"{float(row['macs_ratio']):.2f}", f"**{float(row['speedup']):.2f}**",
            f"{float(row['least']):.2f} to {float(row['most']):.2f}", f"{float(row['speedup']) / float(row['macs_ratio']):.2f}", row["limits"],
        ]
        for row in rows
    ]
    met = sum(float(row["speedup"]) >= ENOUGH * float(row["macs_ratio"]) for row in rows)
    return [f"In {met} of {len(rows)} cells the model is at least {ENOUGH} times as much faster as its arithmetic is less.", "", *table(head, body), ""]


def report(args):
    """The page of what the two tables hold; what people wrote above the comment `tables: …` is kept."""
    page = args.folder / "pruning.md"
    begin = "<!-- tables: written by benches/prune.py -->"
    above = page.read_text().split(begin)[0] if page.exists() else "# Pruning, measured\n\n"
    lines = [begin, ""]
    for title, name, of in (("Accuracy", "accuracy", accuracy_lines), ("Speed", "speed", speed_lines)):
        path = args.folder / f"pruning-{name}.csv"
        if path.exists():
            rows = list(csv.DictReader(path.open()))
            where = "; ".join(dict.fromkeys(row["machine"] for row in rows))
            lines += [f"## {title}", "", f"[{path.name}]({path.name}); {where}.", "", *of(rows)]
    page.write_text(above + "\n".join(lines).rstrip() + "\n")


def numbers(text):
    return [float(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/vitesse")
    parser.add_argument("--threads", type=int, default=2)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("accuracy")
    one.add_argument("model", type=pathlib.Path)
    one.add_argument("data")
    one.add_argument("--shares", type=numbers, default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    one.add_argument("--more-at", type=numbers, default=[0.7, 0.5], help="shares at which the other ways are tried, too")
    one.add_argument("--test-images", type=int, default=2000)
    one.add_argument("--precision", default="bf16")
    one.set_defaults(run=accuracy)
    two = verbs.add_parser("speed")
    two.add_argument("model", type=pathlib.Path, nargs="+")
    two.add_argument("--shares", type=numbers, default=[0.8, 0.65, 0.5, 0.35])
    two.add_argument("--precisions", type=lambda text: text.split(","), default=["f32", "bf16", "int8"])
    two.add_argument("--rounds", type=int, default=9)
    two.add_argument("--seconds", type=float, default=0.4)
    two.set_defaults(run=speed)
    three = verbs.add_parser("report")
    three.add_argument("folder", type=pathlib.Path)
    three.set_defaults(run=report)
    for verb in (one, two):
        verb.add_argument("--csv", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
