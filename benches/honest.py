"""Whether `vitesse bench` says what a user gets, and what a process costs that classifies one image.

    python benches/honest.py MODEL_FOLDER [--program target/release/vitesse] [--precision f32] [--rounds 3]

The slope: `vitesse run` over 256 and over 512 random images, so that what a process does once drops out; beside the images a
second of `vitesse bench` with the same batch, measured in turns. The start: wall time, and the most memory that belongs to the
process alone, of `vitesse run` over one image.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time

import numpy as np
from safetensors.numpy import save_file


def timed(command):
    begun = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--program", default="target/release/vitesse")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    size = json.loads((args.model / "config.json").read_text())["pretrained_cfg"]["input_size"]
    common = ["--model", args.model, "--precision", args.precision, "--threads", args.threads]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        images = np.random.default_rng(0).standard_normal((512, *size), dtype=np.float32)
        for count in (1, 256, 512):
            save_file({"pixel_values": images[:count]}, folder / f"{count}.safetensors")

        def run(count, batch):
            output = ["-i", folder / f"{count}.safetensors", "-o", folder / "y.safetensors", "--force"]
            return timed([args.program, "run", *common, *output, "-b", batch])

        run(512, args.batch_size)
        slopes, rates = [], []
        for _ in range(args.rounds):
            slopes.append(256 / (run(512, args.batch_size) - run(256, args.batch_size)))
            bench = [args.program, "bench", *common, "-b", args.batch_size, "--seconds", 4, "--json"]
            done = subprocess.run([str(part) for part in bench], check=True, capture_output=True, text=True)
            rates.append(json.loads(done.stdout)["results"][0]["images_per_s"])
        slope, rate = statistics.median(slopes), statistics.median(rates)
        print(f"run   {slope:.1f} images/s ({min(slopes):.1f} to {max(slopes):.1f}), from 256 to 512 images")
        print(f"bench {rate:.1f} images/s ({min(rates):.1f} to {max(rates):.1f})")
        print(f"run / bench {slope / rate:.3f}")
        starts = [run(1, 1) for _ in range(10)]
        print(f"one image, the whole process: {1e3 * statistics.median(starts):.0f} ms (least {1e3 * min(starts):.0f})")
        print(f"largest process of all: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB, files mapped included")


if __name__ == "__main__":
    main()
