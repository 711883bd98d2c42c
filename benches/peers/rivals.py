"""A worker: one inference library in a process of its own, driven by JSON lines on stdin and stdout.

    python benches/peers/rivals.py torch|onnxruntime|openvino THREADS

    {"do": "run", "form": {...}, "batch": 16, "seconds": 1.0, "pixels": "pixels.npy"}
        -> {"ms": median of one batch, "min_ms": ..., "batches": ..., "kernels": {...}}
    {"do": "predict", "form": {...}, "pixels": "pixels.npy"} -> {"classes": [...]}

A form names the file, and what the library shall do with it: `{"path", "dtype", "variant"}`. Libraries live in separate
processes because each brings a thread pool, and pools that share a process or spin beside another disturb the measurement.
"""

import collections
import json
import os
import statistics
import sys
import time

import numpy as np

KEPT = 8  # compiled models kept in memory; Base in f32 takes most of a gigabyte


def torch_load(form, batch, threads):
    import pathlib

    import torch
    from export import timm_model

    torch.set_num_threads(threads)
    model = timm_model(pathlib.Path(form["path"]))
    bf16 = form["dtype"] == "bf16"
    if form["variant"] == "cast":
        model = model.to(torch.bfloat16)
    autocast = form["variant"] == "autocast"

    def call(pixels):
        tensor = torch.from_numpy(pixels)
        if bf16 and not autocast:
            tensor = tensor.to(torch.bfloat16)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(tensor).float().numpy()

    return call, 1, {}


def onnxruntime_load(form, batch, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(form["path"], options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0], 1, {}


def openvino_load(form, batch, threads):
    import openvino

    core = openvino.Core()
    model = core.read_model(form["path"])
    model.reshape([batch, 3, 224, 224])
    compiled = core.compile_model(
        model, "CPU",
        {"INFERENCE_PRECISION_HINT": form["dtype"], "PERFORMANCE_HINT": form["variant"], "INFERENCE_NUM_THREADS": threads},
    )  # fmt: skip
    kernels = collections.Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = {key: value.value if hasattr(value, "value") else value for key, value in op.get_rt_info().items()}
        if info.get("layerType") in ("FullyConnected", "Convolution", "MatMul", "ScaledDotProductAttention", "Subgraph"):
            kernels[f"{info['layerType']} {info['primitiveType']}"] += 1
    if form["variant"] == "LATENCY":
        request = compiled.create_infer_request()
        return lambda pixels: request.infer({0: pixels}, share_inputs=True)[0], 1, kernels
    # Several streams: a call is a few batches a stream, and the time of one batch is the call's divided by their number.
    streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    queue = openvino.AsyncInferQueue(compiled, streams)

    def call(pixels):
        for _ in range(2 * streams):
            queue.start_async({0: pixels}, share_inputs=True)
        queue.wait_all()

    return call, 2 * streams, kernels


def run(model, pixels, seconds):
    call, batches, kernels = model
    started = time.perf_counter()
    for _ in range(2):
        call(pixels)
    while time.perf_counter() - started < 0.3 * seconds:
        call(pixels)
    times = []
    started = time.perf_counter()
    while not times or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        call(pixels)
        times.append((time.perf_counter() - begun) * 1000 / batches)
    return {"ms": statistics.median(times), "min_ms": min(times), "batches": len(times) * batches, "kernels": kernels}


def predict(model, pixels):
    call = model[0]
    return {"classes": [int(call(np.array(image[None])).argmax()) for image in pixels]}


def main():
    # Libraries print what they like; answers alone go to the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load = {"torch": torch_load, "onnxruntime": onnxruntime_load, "openvino": openvino_load}[sys.argv[1]]
    threads = int(sys.argv[2])
    kept = collections.OrderedDict()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            batch = order.get("batch", 1)
            key = json.dumps([order["form"], batch])
            if key in kept:
                kept.move_to_end(key)
            else:
                kept[key] = load(order["form"], batch, threads)
                if len(kept) > KEPT:
                    kept.popitem(last=False)
            pixels = np.load(order["pixels"], mmap_mode="r")
            if order["do"] == "load":
                answer = {}
            elif order["do"] == "run":
                answer = run(kept[key], np.array(pixels[:batch]), order["seconds"])
            else:
                answer = predict(kept[key], pixels)
        except Exception as error:  # one form that fails must not end the others
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
