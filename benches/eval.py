"""`vitesse eval` against Python with ONNX Runtime + PIL and with torch + timm + PIL, end to end, interleaved on one machine.

    cargo build --release
    python benches/eval.py MODEL_FOLDER DATA_FOLDER [--runs 5] [--threads 2] [--workers 2] [--batch-size 16]

All read, decode, preprocess and classify every image of a folder with `labels.csv`. One run of each warms the page
cache and is not counted. Prints each run, the medians, their spread and the ratios.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def run(command):
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--program", default="target/release/vitesse")
    args = parser.parse_args()
    shared = ["--batch-size", args.batch_size, "--threads", args.threads, "--workers", args.workers]
    rivals = {
        "vitesse": [args.program, "eval", "--json", "--model", args.model, "--data", args.data, *shared],
        "onnxruntime": [sys.executable, HERE / "peers/eval_ort.py", args.model, args.data, *shared],
        "timm": [sys.executable, HERE / "peers/eval.py", args.model, args.data, *shared],
    }
    rates = {name: [] for name in rivals}
    for index in range(args.runs + 1):
        for name, command in rivals.items():
            result = run(command)
            rate = result["images"] / result["seconds"]
            note = "warm-up" if index == 0 else f"run {index}"
            print(f"{note:8s} {name:11s} {rate:7.1f} images/s  top-1 {result['top1']:.1f}", flush=True)
            if index > 0:
                rates[name].append(rate)
    for name, values in rates.items():
        print(f"{name:11s} median {statistics.median(values):.1f} images/s, {min(values):.1f} to {max(values):.1f}")
    ours = statistics.median(rates["vitesse"])
    for name in list(rivals)[1:]:
        print(f"ratio {ours / statistics.median(rates[name]):.2f} (vitesse / {name})")


if __name__ == "__main__":
    main()
