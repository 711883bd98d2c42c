"""The peer of `vitesse eval`: torch + timm + PIL on a folder with `labels.csv`.

    python benches/peers/eval.py MODEL_FOLDER DATA_FOLDER [--batch-size 16] [--threads 2] [--workers 2]

Prints one JSON object: images, seconds (from the first image read to the last logits), top1, top5.
"""

import argparse
import csv
import json
import pathlib
import time

import timm
import torch
from PIL import Image


class Listed(torch.utils.data.Dataset):
    def __init__(self, folder, transform):
        self.folder, self.transform = folder, transform
        with open(folder / "labels.csv", newline="") as file:
            self.rows = [(row["filename"], int(row["class_index"])) for row in csv.DictReader(file)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        name, label = self.rows[index]
        with Image.open(self.folder / name) as image:
            return self.transform(image.convert("RGB")), label


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = json.loads((args.model / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    timm.models.load_checkpoint(model, str(args.model / "model.safetensors"), strict=True)
    model.eval()
    cfg = config["pretrained_cfg"]
    transform = timm.data.create_transform(
        input_size=cfg["input_size"], interpolation=cfg["interpolation"], crop_pct=cfg["crop_pct"],
        mean=cfg["mean"], std=cfg["std"],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Listed(args.data, transform), args.batch_size, num_workers=args.workers)
    correct1 = correct5 = images = 0
    start = time.perf_counter()
    with torch.inference_mode():
        for batch, labels in loader:
            top = model(batch).topk(5, dim=1).indices
            hits = top == labels[:, None]
            correct1 += hits[:, 0].sum().item()
            correct5 += hits.any(dim=1).sum().item()
            images += len(labels)
    seconds = time.perf_counter() - start
    print(json.dumps({"images": images, "seconds": seconds, "top1": 100 * correct1 / images, "top5": 100 * correct5 / images}))


if __name__ == "__main__":
    main()
