"""From samples to a Markdown document and a CSV file beside it."""

import csv
import datetime
import importlib.metadata
import platform
import re
import statistics

from export import MODELS

PACKAGES = ["torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "numpy"]
FLAGS = r"amx\w+|avx512\w+|avx_vnni|avx2"


def machine(packages=PACKAGES):
    """What a number means nothing without."""
    info = open("/proc/cpuinfo").read()
    cpus = re.findall(r"model name\s*:\s*(.*)", info)
    flags = re.search(r"flags\s*:\s*(.*)", info)
    return {
        "cpu": cpus[0] if cpus else platform.processor(),
        "cores": len(cpus),
        "isa": sorted(set(re.findall(rf"\b({FLAGS})\b", flags[1]))) if flags else [],
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def summary(samples, max_foreign):
    """Row -> contender -> numbers, from the interleaved rounds; from the rounds alone where a row has no others.

    A contender's disturbed samples count only where it has no others.
    """
    rows = {}
    for phase in ("together", "alone"):
        found = {}
        for sample in samples:
            if sample["phase"] == phase:
                row = (sample["model"], sample["batch"], sample["precision"])
                found.setdefault(row, {}).setdefault((sample["name"], sample["variant"]), []).append(sample)
        for row, contenders in found.items():
            if row in rows:
                continue
            rows[row] = {}
            for (name, variant), group in contenders.items():
                group = [sample for sample in group if sample["foreign"] <= max_foreign] or group
                times = [sample["ms"] for sample in group]
                numbers = {
                    "variant": variant, "phase": phase, "ms": statistics.median(times), "low": min(times), "high": max(times),
                    "rounds": {sample["round"]: sample["ms"] for sample in group},
                    "foreign": statistics.median(sample["foreign"] for sample in group),
                    "kernels": group[-1].get("kernels", {}),
                }  # fmt: skip
                # Alone, a contender has several variants: its fastest stands for it.
                if name not in rows[row] or numbers["ms"] < rows[row][name]["ms"]:
                    rows[row][name] = numbers
            base = rows[row].get("vitesse")
            for numbers in rows[row].values():
                quiet = base and max(base["foreign"], numbers["foreign"]) <= max_foreign
                shared = base["rounds"].keys() & numbers["rounds"].keys() if quiet and phase == "together" else ()
                ratios = [numbers["rounds"][index] / base["rounds"][index] for index in shared]
                numbers["ratio"] = statistics.median(ratios) if ratios else None
                numbers["ratios"] = (min(ratios), max(ratios)) if ratios else None
    return rows


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        head = "model,batch,precision,contender,variant,phase,rounds,median_ms,low_ms,high_ms,images_per_s,ratio_to_vitesse,foreign"
        out.writerow(head.split(","))
        for (model, batch, precision), contenders in rows.items():
            for name, n in contenders.items():
                out.writerow([
                    model, batch, precision, name, n["variant"], n["phase"], len(n["rounds"]), f"{n['ms']:.3f}",
                    f"{n['low']:.3f}", f"{n['high']:.3f}", f"{1000 * batch / n['ms']:.1f}",
                    "" if n["ratio"] is None else f"{n['ratio']:.3f}", f"{n['foreign']:.3f}",
                ])  # fmt: skip


def write_markdown(path, args, about, rows, accuracy):
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    disturbed = [n["foreign"] > args.max_foreign for contenders in rows.values() for n in contenders.values()]
    lines = [
        "# The engine against its rivals", "",
        f"{datetime.date.today()}, {about['cpu']}, {about['cores']} cores, {args.threads} threads. "
        f"ISA: {', '.join(about['isa'])}.", "",
        f"{versions}.", "",
        "Images of 224 pixels, the same weights on both sides. Milliseconds are of one batch: the median over rounds of a "
        "round's median, with the lowest and the highest round. In a round every contender of a row runs for "
        f"{args.seconds_per_sample:g} s after a warm-up, in an order that rotates. The ratio is the rival's time by Vitesse's: the median "
        "of the rounds' ratios, and their range; above 1 Vitesse is faster. "
        "Each rival runs in its fastest variant of those tried (`benches/peers/measure.py`).", "",
        f"A sample counts where others on the machine took at most {100 * args.max_foreign:g} % of its cores' time. "
        f"{sum(disturbed)} of {len(disturbed)} entries have no such sample and are marked †: they say little and get no ratio.", "",
    ]  # fmt: skip
    for (model, batch, precision), contenders in rows.items():
        fewest, most = (pick(len(n["rounds"]) for n in contenders.values()) for pick in (min, max))
        rounds = f"{most}" if fewest == most else f"{fewest} to {most}"
        phase = next(iter(contenders.values()))["phase"]
        lines += [
            f"## {MODELS[model][1]}, batch {batch}, {precision}", "",
            f"{rounds} rounds, {'interleaved' if phase == 'together' else 'each rival alone'}.", "",
            "| contender | variant | ms | range | images/s | rival / vitesse |", "| --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for name, n in sorted(contenders.items(), key=lambda item: item[1]["ms"]):
            ratio = ""
            if n["ratio"] is not None and name != "vitesse":
                ratio = f"**{n['ratio']:.2f}** ({n['ratios'][0]:.2f} to {n['ratios'][1]:.2f})"
            lines.append(
                f"| {name}{' †' if n['foreign'] > args.max_foreign else ''} | {n['variant'].lower()} | {n['ms']:.2f} | {n['low']:.2f} to {n['high']:.2f} "
                f"| {1000 * batch / n['ms']:.1f} | {ratio} |"
            )
        lines.append("")
    kernels = {}
    for contenders in rows.values():
        for name, n in contenders.items():
            kernels.setdefault(name, set()).update(n["kernels"])
    if any(kernels.values()):
        lines += ["## Kernels", "", "What the contenders say of the kernels they chose:", ""]
        lines += [f"* {name}: {', '.join(f'`{k}`' for k in sorted(found))}" for name, found in kernels.items() if found]
        lines.append("")
    if accuracy:
        lines += [
            "## Accuracy", "",
            "On the labelled images that calibration did not see; agreement is with torch in f32. A model of random weights "
            "has no top-1.", "",
            "| model | contender | images | top-1 | agreement |", "| --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for row in accuracy:
            top1 = "" if row["top1"] is None else f"{row['top1']:.1f}"
            lines.append(f"| {row['model']} | {row['name']} | {row['images']} | {top1} | {row['agreement']:.1f} % |")
        lines.append("")
    path.write_text("\n".join(lines))


def write(args, about, samples, accuracy):
    rows = summary(samples, args.max_foreign)
    order = [(m, b, p) for m in args.models for b in args.batch_sizes for p in args.precisions]
    rows = {row: rows[row] for row in order if row in rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_csv(args.output.with_suffix(".csv"), rows)
    write_markdown(args.output, args, about, rows, accuracy)
