"""From samples of training steps to a section of the document and a CSV file beside it."""

import csv
import statistics

import document
from train_torch import CASES, WARM


def summary(samples, max_foreign):
    """Case -> (name, precision) -> numbers.

    A contender's disturbed samples count only where it has no others, and get no ratio.
    """
    cases = {}
    for sample in samples:
        cases.setdefault(sample["model"], {}).setdefault((sample["name"], sample["precision"]), []).append(sample)
    for contenders in cases.values():
        for key, group in contenders.items():
            group = [sample for sample in group if sample["foreign"] <= max_foreign] or group
            times = [sample["ms"] for sample in group]
            contenders[key] = {
                "ms": statistics.median(times), "low": min(times), "high": max(times),
                "p25": statistics.median(s["p25"] for s in group), "p75": statistics.median(s["p75"] for s in group),
                "memory": statistics.median(s["memory"] for s in group), "foreign": statistics.median(s["foreign"] for s in group),
                "rounds": {s["round"]: s["ms"] for s in group}, "isa": group[-1].get("isa"),
            }  # fmt: skip
        for (name, precision), numbers in contenders.items():
            base = contenders.get(("vitesse", precision))
            if not base or name == "vitesse":
                continue
            numbers["memory_ratio"] = numbers["memory"] / base["memory"]
            if max(base["foreign"], numbers["foreign"]) <= max_foreign:
                shared = base["rounds"].keys() & numbers["rounds"].keys()
                numbers["ratios"] = [numbers["rounds"][index] / base["rounds"][index] for index in shared]
    return {name: cases[name] for name in CASES if name in cases}


def spread(ratios):
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def write_csv(path, cases):
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        head = "case,batch,precision,contender,rounds,median_ms,p25_ms,p75_ms,low_ms,high_ms,images_per_s,peak_mib"
        out.writerow([*head.split(","), "ratio_to_vitesse", "memory_ratio_to_vitesse", "foreign"])
        for case, contenders in cases.items():
            for (name, precision), n in contenders.items():
                ratio = statistics.median(n["ratios"]) if n.get("ratios") else None
                out.writerow([
                    case, CASES[case].batch, precision, name, len(n["rounds"]),
                    *(f"{n[key]:.2f}" for key in ("ms", "p25", "p75", "low", "high")),
                    f"{1000 * CASES[case].batch / n['ms']:.1f}", f"{n['memory'] / 2**20:.0f}",
                    "" if ratio is None else f"{ratio:.3f}",
                    f"{n['memory_ratio']:.3f}" if "memory_ratio" in n else "", f"{n['foreign']:.3f}",
                ])  # fmt: skip


def write(args, about, samples, agreements, failures):
    cases = summary(samples, args.max_foreign)
    write_csv(document.csv_beside(args.output, about), cases)
    isa = {n["isa"] for contenders in cases.values() for n in contenders.values() if n["isa"]}
    lines = [
        "## Steps", "",
        document.about(about, args.threads) + f" Vitesse computes with `{'`, `'.join(sorted(isa))}`.", "",
        document.command(), "",
        "One step is forward, cross-entropy with soft targets, backward and AdamW, on a batch in memory. Milliseconds are the median over "
        "rounds of a round's median step, with the lowest and the highest round, and quartiles within a round. In a round every contender runs for "
        f"{args.seconds_per_sample:g} s after {WARM} steps that do not count, in an order that rotates. The ratio is the contender's "
        "time by Vitesse's in the same precision: the median of the rounds' ratios, and their range; above 1 Vitesse is faster. "
        "Memory is the most that the process had at once, libraries included; PyTorch's counts from after compiling on.", "",
        f"A sample counts where others on the machine took at most {100 * args.max_foreign:g} % of its cores' time; † marks "
        "what has no such sample: it says little and gets no ratio.", "",
    ]  # fmt: skip
    for case in CASES:
        if case not in cases and case not in failures:
            continue
        lines += [
            f"### {CASES[case].title}, batch {CASES[case].batch}", "",
            "| contender | precision | ms | range | quartiles | images/s | time / vitesse | peak MiB | peak / vitesse |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for (name, precision), n in cases.get(case, {}).items():
            mark = " †" if n["foreign"] > args.max_foreign else ""
            memory_ratio = f"{n['memory_ratio']:.2f}" if "memory_ratio" in n else ""
            lines.append(
                f"| {name}{mark} | {precision} | {n['ms']:.1f} | {n['low']:.1f} to {n['high']:.1f} | {n['p25']:.1f} to {n['p75']:.1f} "
                f"| {1000 * CASES[case].batch / n['ms']:.1f} | {spread(n.get('ratios'))} | {n['memory'] / 2**20:.0f} | {memory_ratio} |"
            )
        for (name, precision), reason in failures.get(case, {}).items():
            lines.append(f"| {name} | {precision} | not measured: {reason.splitlines()[0]} | | | | | | |")
        agreement = agreements.get(case, {})
        if "first" in agreement:
            lines += [
                "",
                f"From the same weights the losses of both programs, in f32, differ by {agreement['first']:.1e} in the first step "
                f"and by at most {agreement['five']:.1e} in the first five.",
            ]
        lines.append("")
    document.section(args.output, *document.of_kind(about, "steps", lines))
