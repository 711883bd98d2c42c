"""Vitesse's engine against PyTorch, ONNX Runtime and OpenVINO, on the same weights and the same machine.

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/engine.py [--models tiny,small,base,swin_tiny,clip_b32] [--rounds 7] [--accuracy] [-o docs/results/engine.md]

First every rival runs alone, which chooses its fastest variant; then all run in interleaved rounds. Samples are appended to
a file in the cache folder, so that a run that was cut off goes on where it stopped. The document and a CSV file beside it
are written after every round. A sample that others on the machine disturbed is marked in the document, and a rerun takes
it again. `--rivals-only` leaves Vitesse out. Linux only: it reads /proc.
"""

import argparse
import hashlib
import json

import measure
import numpy as np
import report
from export import calibration_indices, images, labelled, log, pathed, product


def words(text):
    return text.split(",")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitesse", type=pathed, default="target/release/vitesse", help="the program")
    parser.add_argument("--weights", type=pathed, default="../shared/weights/deit_tiny_patch16_224.fb_in1k")
    parser.add_argument("--data", type=pathed, default="../shared/data/imagenet-sample", help="folder with labels.csv")
    parser.add_argument("--cache", type=pathed, default="target/peers", help="exported models and samples")
    parser.add_argument("--models", type=words, default="tiny,small,base")
    parser.add_argument("--batch-sizes", type=lambda text: [int(word) for word in words(text)], default="1,16")
    parser.add_argument("--precisions", type=words, default="f32,bf16,int8")
    parser.add_argument("--rivals", type=words, default="torch,onnxruntime,openvino")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone-rounds", type=int, default=3)
    parser.add_argument("--seconds-per-sample", type=float, default=1.0)
    parser.add_argument("--max-foreign", type=float, default=0.05, help="above this share of others, a sample is retaken")
    parser.add_argument("--attempts", type=int, default=3, help="how often at most")
    parser.add_argument("--wait-quiet", type=float, default=30, help="seconds a sample waits at most for a quiet machine")
    parser.add_argument("--rivals-only", action="store_true")
    parser.add_argument("--accuracy", action="store_true", help="also top-1 and agreement with f32")
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/engine.md")
    return parser.parse_args()


def digest(value):
    return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value).encode()).hexdigest()[:12]


def accuracy(args, bench, place, pixels):
    """Top-1 and agreement with torch in f32, of every rival's form; remembered beside the samples."""
    known = json.loads(place.read_text()) if place.exists() else {}
    labels = np.array([label for _, label in labelled(args.data)])
    unseen = np.setdiff1d(np.arange(len(labels)), calibration_indices(len(labels)))
    rows = []
    for model in args.models:
        reference = None
        for name, library, precision, kind, dtype, variants in measure.RIVALS:
            if precision not in args.precisions or library not in args.rivals:
                if name != "torch":
                    continue
            key = f"{bench.contexts['alone']} {model} {name}"
            if key not in known:
                form = {"path": str(bench.product(kind, model)), "dtype": dtype, "variant": variants[0]}
                answer = bench.worker(library).ask(do="predict", form=form, pixels=str(pixels))
                if "error" in answer:
                    log(f"accuracy of {name}: {answer['error']}")
                    continue
                known[key] = answer["classes"]
                place.write_text(json.dumps(known))
            classes = np.array(known[key])
            reference = classes if name == "torch" else reference
            row = {
                "model": model, "name": name, "images": len(unseen),
                "top1": 100 * float((classes == labels)[unseen].mean()) if model == "tiny" else None,
                "agreement": 100 * float((classes == reference)[unseen].mean()),
            }  # fmt: skip
            log(f"accuracy {row}")
            rows.append(row)
    return rows


def main():
    args = arguments()
    args.cache.mkdir(parents=True, exist_ok=True)
    about = report.machine()
    pixels = images(args.data, args.cache)
    samples = measure.Samples(args.cache / "samples.jsonl")
    # Samples of another machine, other versions or another build are not mixed with these.
    alone = digest([about, args.threads, args.seconds_per_sample, str(args.weights)])
    contexts = {"alone": alone, "together": alone}
    if not args.rivals_only:
        contexts["together"] = digest([alone, digest(args.vitesse.read_bytes())])

    def made(kind, size):
        return product(kind, size, args.weights, args.data, args.cache)

    # Everything is exported before anything is measured.
    for model in args.models:
        for rival in measure.RIVALS:
            if rival[1] in args.rivals and (rival[2] in args.precisions or (args.accuracy and rival[0] == "torch")):
                made(rival[3], model)
    bench = measure.Bench(args, samples, made, pixels, contexts)

    def write(accuracies):
        current = [s for s in samples.known.values() if s["context"] == contexts[s["phase"]]]
        report.write(args, about, current, accuracies)

    try:
        rows = accuracy(args, bench, args.cache / "classes.json", pixels) if args.accuracy else []
        bench.alone()
        write(rows)
        for index in range(args.rounds):
            bench.round(index)
            write(rows)
    finally:
        bench.close()
    log(f"{args.output} and {args.output.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
