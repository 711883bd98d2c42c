"""One set of weights in every rival's format: timm folder -> ONNX, ONNX int8, OpenVINO IR, OpenVINO int8.

Everything is made once and kept in the cache folder. Each product is a folder that is filled under another name and renamed
when complete, so that an interrupted run leaves nothing half-written behind.
"""

import contextlib
import csv
import functools
import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np

CALIBRATION_IMAGES = 300
# timm's name and the one in documents. "tiny" has the weights that are given, the others random ones.
MODELS = {
    "tiny": ("deit_tiny_patch16_224", "DeiT-Tiny"),
    "small": ("deit_small_patch16_224", "DeiT-Small"),
    "base": ("deit_base_patch16_224", "DeiT-Base"),
    "swin_tiny": ("swin_tiny_patch4_window7_224", "Swin-Tiny"),
    "clip_b32": ("vit_base_patch32_clip_quickgelu_224", "CLIP ViT-B/32"),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def log(text):
    print(text, file=sys.stderr, flush=True)


@functools.cache
def file_digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def made_once(folder, make):
    """`folder`, filled by `make(part)` the first time it is asked for."""
    if not folder.exists():
        log(f"making {folder}")
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(folder)
    return folder


def checkpoint(size, weights, cache):
    """The timm-style folder (`config.json`, `model.safetensors`) that Vitesse and all rivals load."""
    name, _ = MODELS[size]
    if size == "tiny":
        return weights

    def make(part):
        import timm
        import torch
        from safetensors.torch import save_file

        # Speed does not depend on the values; random weights spare a download of 350 MB.
        torch.manual_seed(0)
        model = timm.create_model(name)
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, part / "model.safetensors")
        config = json.loads((weights / "config.json").read_text())
        config |= {"architecture": name, "num_features": model.num_features, "num_classes": model.num_classes}
        config["pretrained_cfg"] |= {"tag": "random", "num_classes": model.num_classes}
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    return made_once(cache / f"{name}.random", make)


def timm_model(folder):
    import timm

    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    timm.models.load_checkpoint(model, str(folder / "model.safetensors"), strict=True)
    return model.eval()


def labelled(data):
    with open(data / "labels.csv", newline="") as file:
        return [(row["filename"], int(row["class_index"])) for row in csv.DictReader(file)]


def images(data, cache):
    """All images of `data`, preprocessed once: a float32 array [images, 3, 224, 224], mapped from the disk."""

    def make(part):
        import timm
        from PIL import Image

        transform = timm.data.create_transform(
            input_size=(3, 224, 224), interpolation="bicubic", crop_pct=0.9, mean=MEAN, std=STD
        )
        names = [name for name, _ in labelled(data)]
        array = np.lib.format.open_memmap(part / "pixels.npy", "w+", np.float32, (len(names), 3, 224, 224))
        for index, name in enumerate(names):
            with Image.open(data / name) as image:
                array[index] = transform(image.convert("RGB")).numpy()

    name = "pixels-" + hashlib.sha256((data / "labels.csv").read_bytes()).hexdigest()[:8]
    return made_once(cache / name, make) / "pixels.npy"


def calibration_indices(count):
    """Which images calibrate: chosen at random, because the files are sorted by class; sorted for the disk's sake."""
    return np.sort(np.random.default_rng(0).permutation(count)[:CALIBRATION_IMAGES])


def onnx_export(model, path):
    import torch

    # Measured with ONNX Runtime 1.32: attention written out as MatMul-Softmax-MatMul is faster there than what the
    # exporter makes of scaled_dot_product_attention, and opset 20 has GELU as one operation.
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with contextlib.redirect_stdout(sys.stderr):  # the exporter talks
        torch.onnx.export(
            model, (torch.zeros(2, 3, 224, 224),), path, dynamo=True, opset_version=20, external_data=False,
            input_names=["pixels"], output_names=["logits"], verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        )  # fmt: skip


def ir_export(model, path):
    import openvino
    import torch

    converted = openvino.convert_model(model, example_input=torch.zeros(2, 3, 224, 224), input=[-1, 3, 224, 224])
    openvino.save_model(converted, path, compress_to_fp16=False)


def ort_quantize(source, part, kind, pixels):
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(part / "pre.onnx"), skip_symbolic_shape=True)
    # The fastest settings of those tried: only the matrix products, unsigned activations with signed weights (the pair
    # that VNNI and AMX kernels take), and in the static form no requantisation of outputs that an addition reads in f32.
    shared = {"per_channel": True, "weight_type": q.QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gemm"]}
    target = str(part / "model.onnx")
    if kind == "int8_dynamic":
        q.quantize_dynamic(str(part / "pre.onnx"), target, extra_options={"MatMulConstBOnly": True}, **shared)
    else:

        class Reader(q.CalibrationDataReader):
            def __init__(self):
                self.rest = iter(pixels)

            def get_next(self):
                image = next(self.rest, None)
                return None if image is None else {"pixels": image[None]}

        q.quantize_static(
            str(part / "pre.onnx"), target, Reader(), quant_format=q.QuantFormat.QDQ, activation_type=q.QuantType.QUInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}, **shared,
        )  # fmt: skip
    (part / "pre.onnx").unlink()


def nncf_quantize(source, path, pixels):
    import nncf
    import openvino

    with contextlib.redirect_stdout(sys.stderr):
        model = nncf.quantize(
            openvino.Core().read_model(source), nncf.Dataset([image[None] for image in pixels]),
            preset=nncf.QuantizationPreset.MIXED, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixels),
        )  # fmt: skip
    openvino.save_model(model, path, compress_to_fp16=False)


def product(kind, size, weights, data, cache):
    """The file of one kind: `onnx`, `onnx_int8_dynamic`, `onnx_int8_static`, `ir`, `ir_int8`; or the `timm` folder."""
    folder = checkpoint(size, weights, cache)
    if kind == "timm":
        return folder
    # Other weights in the same folder are another product.
    home = cache / f"{size}-{file_digest(folder / 'model.safetensors')}"

    def calibration():
        array = np.load(images(data, cache), mmap_mode="r")
        return np.ascontiguousarray(array[calibration_indices(len(array))])

    def make(part):
        if kind == "onnx":
            onnx_export(timm_model(folder), part / "model.onnx")
        elif kind == "ir":
            ir_export(timm_model(folder), part / "model.xml")
        elif kind == "ir_int8":
            nncf_quantize(product("ir", size, weights, data, cache), part / "model.xml", calibration())
        else:
            onnx = product("onnx", size, weights, data, cache)
            ort_quantize(onnx, part, kind.removeprefix("onnx_"), calibration())

    return made_once(home / kind, make) / ("model.xml" if kind.startswith("ir") else "model.onnx")


def pathed(text):
    return pathlib.Path(text).expanduser().resolve()
