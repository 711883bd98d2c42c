"""The peer of `vitesse eval` with ONNX Runtime: Pillow + NumPy + ONNX Runtime on a folder with `labels.csv`, without torch.

    python benches/peers/eval_ort.py MODEL_FOLDER DATA_FOLDER [--form onnx] [--batch-size 16] [--threads 2] [--workers 2]

Prints one JSON object: images, seconds (from the first image read to the last logits), top1, top5.
The model is exported to the cache folder once, before the clock starts; that needs torch and timm.
"""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import pathlib
import time

import numpy as np
from export import labelled, pathed, product
from PIL import Image


def crop(path, side, resized):
    """RGB bytes [side, side, 3]: the shorter side to `resized` (bicubic), the middle cut out, as timm does it."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        width, height = image.size
        scale = resized / min(width, height)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        return np.asarray(image.crop((left, top, left + side, top + side)))


def load(paths, side, resized):
    return np.stack([crop(path, side, resized) for path in paths])


def main():
    import onnxruntime as ort  # here, because the loader's processes import this file and do without

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--form", default="onnx", choices=["onnx", "onnx_int8_dynamic", "onnx_int8_static"])
    parser.add_argument("--cache", type=pathed, default="target/peers")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    path = product(args.form, "tiny", args.model, args.data, args.cache)
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    config = json.loads((args.model / "config.json").read_text())["pretrained_cfg"]
    side = config["input_size"][1]
    resized = math.floor(side / config["crop_pct"])
    # Bytes travel between the processes, a quarter of what floats would take; scale and shift turn them into the model's input.
    scale = (1 / (255 * np.array(config["std"]))).astype(np.float32)[:, None, None]
    shift = (np.array(config["mean"]) / np.array(config["std"])).astype(np.float32)[:, None, None]
    rows = labelled(args.data)
    batches = [rows[start : start + args.batch_size] for start in range(0, len(rows), args.batch_size)]
    correct1 = correct5 = 0
    # A fork would copy ONNX Runtime's locks but not its threads.
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(args.workers, context) as pool:
        start = time.perf_counter()
        waiting = []
        for index in range(len(batches)):
            # Two batches a worker ahead, like torch's DataLoader.
            while batches[index + len(waiting) :] and len(waiting) < 2 * args.workers:
                paths = [args.data / name for name, _ in batches[index + len(waiting)]]
                waiting.append(pool.submit(load, paths, side, resized))
            pixels = waiting.pop(0).result().transpose(0, 3, 1, 2) * scale - shift
            logits = session.run(None, {"pixels": np.ascontiguousarray(pixels)})[0]
            top = np.argpartition(logits, -5, axis=1)[:, -5:]
            labels = np.array([label for _, label in batches[index]])
            correct1 += int((logits.argmax(axis=1) == labels).sum())
            correct5 += int((top == labels[:, None]).any(axis=1).sum())
        seconds = time.perf_counter() - start
    top1, top5 = 100 * correct1 / len(rows), 100 * correct5 / len(rows)
    print(json.dumps({"images": len(rows), "seconds": seconds, "top1": top1, "top5": top5}))


if __name__ == "__main__":
    main()
