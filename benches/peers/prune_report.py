"""From the rows of prune.py to its document."""

import statistics
import tomllib

import document
from report import machine

PACKAGES = ["torch", "torch-pruning", "timm", "onnxruntime", "openvino"]


def summary(samples, base):
    """What a cell's samples, one a round and contender, say of each contender beside the contender `base`."""
    rows = {}
    for contender, found in samples.items():
        times = [sample["ms"] for sample in found]
        ratios = [theirs / own["ms"] for theirs, own in zip(times, samples[base])]
        isa = [kernel for kernel in found[-1].get("kernels", {}) if contender[1] == "vitesse"]
        rows[contender] = {
            "rounds": len(times), "median_ms": f"{statistics.median(times):.3f}", "low_ms": f"{min(times):.3f}",
            "high_ms": f"{max(times):.3f}", "ratio_to_vitesse": f"{statistics.median(ratios):.3f}",
            "foreign": f"{statistics.median(sample['foreign'] for sample in found):.3f}", "isa": " ".join(isa),
        }  # fmt: skip
    return rows


def accuracies(rows):
    """A table: a line for each contender and share, means over the seeds and their range."""
    lines = [
        "| share of MACs | contender | MACs left | parameters | seeds | top-1 % before tuning | top-1 % tuned |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups = {}
    for row in rows:
        groups.setdefault((row["share"], row["contender"]), []).append(row)

    def spread(group, column):
        values = [float(row[column]) for row in group]
        middle = f"{statistics.mean(values):.2f}"
        return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"

    for (share, contender), group in sorted(groups.items(), key=lambda item: -float(item[0][0])):
        lines.append(
            f"| {share} | {contender} | {float(group[0]['macs_share']):.4f} | {int(group[0]['parameters']):,} | {len(group)} "
            f"| {spread(group, 'cut_top1')} | {spread(group, 'tuned_top1')} |"
        )
    return lines


def fastest(rows):
    """Of each contender's libraries and variants the fastest one."""
    best = {}
    for row in rows:
        known = best.get(row["contender"])
        if known is None or float(row["median_ms"]) < float(known["median_ms"]):
            best[row["contender"]] = row
    return sorted(best.values(), key=lambda row: float(row["median_ms"]))


def latencies(rows, max_foreign):
    """A table: the fastest way to run each model, in each cell."""
    lines = [
        "| share of MACs | batch | precision | model | runs on | ms | range | time / vitesse |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cells = {}
    for row in rows:
        cells.setdefault((row["share"], row["batch"], row["precision"]), []).append(row)
    for (share, batch, precision), cell in cells.items():
        for row in fastest(cell):
            mark = " †" if float(row["foreign"]) > max_foreign else ""
            ratio = "" if row["contender"] == "vitesse" else f"**{float(row['ratio_to_vitesse']):.2f}**"
            lines.append(
                f"| {share} | {batch} | {precision} | {row['contender']}{mark} | {' '.join([row['library'], row['variant'].lower()]).strip()} "
                f"| {float(row['median_ms']):.2f} | {float(row['low_ms']):.2f} to {float(row['high_ms']):.2f} | {ratio} |"
            )
    return lines


def write(args, models, times, settings, setups):
    """The document, from the rows of these settings and setups; that of ours is the first one."""
    recipe = tomllib.loads(args.recipe.read_text())
    wanted = {key: str(value) for key, value in settings.items()}
    rows = [row for row in models.known.values() if all(row[key] == value for key, value in wanted.items())]
    rows = [row for row in rows if row["setup"] in setups]
    about = {"setup": setups[0], "calibration": str(args.calibration), "threads": str(args.threads)}
    timed = [row for row in times.known.values() if all(row[key] == value for key, value in about.items())]
    isa = sorted({row["isa"] for row in timed if row["isa"]})
    kernels = f" Vitesse computes with `{'`, `'.join(isa)}`." if isa else ""
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in wanted.items())
    epochs = f"{args.epochs} epoch{'s' if args.epochs > 1 else ''}"
    lines = [
        document.about(machine(PACKAGES), args.threads) + kernels, "", f"```sh\npython benches/peers/prune.py {flags}\n```", "",
        f"`{args.base.name}`, cut to a share of its MACs and tuned for {epochs} on {args.images:,} images of `{args.data.name}`, with "
        f"the base as teacher, by one recipe ({recipe['distill']['kind']} distillation, AdamW {recipe['optim']['lr']:g}, batches of "
        f"{recipe['train']['batch_size']}, {recipe['train']['amp']}; `benches/peers/prune.toml`). Torch-Pruning's models are cut by Taylor's "
        f"criterion on {args.calibration} labelled training images: isomorphic, bottleneck (inner widths only) and uniform. Ours are made by "
        f"`vitesse {args.ours}`, without labels, and each side draws its images from the same training split.", "",
        f"Accuracy is that of {args.test_images:,} test images in f32 by `vitesse eval`, of everybody: means over seeds and, of several, "
        "their range. Before tuning, ours have been corrected, which Torch-Pruning does not do. `dense` is the base with the same tuning. The contender "
        "that is tuned in PyTorch shows what our trainer does to a result: the same epochs, rates, losses and augmentation, on as many images.", "",
        *accuracies(rows), "",
    ]  # fmt: skip
    if timed:
        lines += [
            f"Milliseconds are of one batch: the median over {timed[0]['rounds']} rounds of a round's median, with the lowest and the "
            "highest round. In a round everybody runs once, after a warm-up, in an order that rotates. Ours run on Vitesse; "
            "Torch-Pruning's, tuned and exported by PyTorch, on the faster of ONNX Runtime and OpenVINO in the same precision, and once more in widths "
            "that are multiples of 16, which was not tuned. The last "
            "column is the median of the rounds' ratios: above 1 ours is faster. `dense` is the base on Vitesse. † marks what others on "
            f"the machine disturbed by more than {100 * args.max_foreign:g} % of its cores' time.", "",
            *latencies(timed, args.max_foreign), "",
        ]  # fmt: skip
    if not args.output.exists():
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("# Pruning beside Torch-Pruning\n")
    document.section(args.output, "prune", lines)
