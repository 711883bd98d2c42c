"""Runs the contenders and writes every sample to a JSONL file; samples that are there are not taken again.

A sample also says how much of the machine others used while it was taken (`foreign`: the share of all cores' time that
went to anything but the measured process, stolen time included). A disturbed sample is taken again a few times and the
least disturbed is kept; the next run takes it again. It matters: beside one other busy thread, torch's pool, which waits for
its slowest thread after every operation, was seen 80 times slower, and OpenVINO's twice, so that ratios of disturbed samples
say nothing.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from export import log

HERE = pathlib.Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")

# name, worker, precision of its row, product of export.py, dtype, variants. The faster variant of a row competes in it.
RIVALS = [
    ("torch", "torch", "f32", "timm", "f32", [""]),
    ("torch bf16", "torch", "bf16", "timm", "bf16", ["autocast", "cast"]),
    ("ORT", "onnxruntime", "f32", "onnx", "f32", [""]),
    ("ORT int8 dynamic", "onnxruntime", "int8", "onnx_int8_dynamic", "int8", [""]),
    ("ORT int8 static", "onnxruntime", "int8", "onnx_int8_static", "int8", [""]),
    ("OpenVINO", "openvino", "f32", "ir", "f32", ["LATENCY", "THROUGHPUT"]),
    ("OpenVINO bf16", "openvino", "bf16", "ir", "bf16", ["LATENCY", "THROUGHPUT"]),
    ("OpenVINO int8, f32 rest", "openvino", "int8", "ir_int8", "f32", ["LATENCY", "THROUGHPUT"]),
    ("OpenVINO int8, bf16 rest", "openvino", "int8", "ir_int8", "bf16", ["LATENCY", "THROUGHPUT"]),
]
VITESSE = "vitesse"


def variants(rival, batch):
    # One image at a time is a question of latency: several streams would answer another one.
    return [name for name in rival[5] if not (name == "THROUGHPUT" and batch == 1)]


def busy_seconds():
    """Time all cores have spent on anything, stolen time included."""
    user, nice, system, _idle, _iowait, *rest = map(int, open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS


class Worker:
    """A rival's process: a script that answers lines (see rivals.py)."""

    def __init__(self, threads, script, *words):
        self.process = subprocess.Popen(
            [sys.executable, HERE / script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def ask(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {self.process.args}")
        return json.loads(line)

    def own_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Vitesse:
    """`vitesse bench` behind the same face as a worker: a process a sample."""

    def __init__(self, program, threads):
        self.program, self.threads = program, threads

    def ask(self, do, form, batch, seconds, **_):
        if do == "load":
            return {}
        done = subprocess.run(
            [self.program, "bench", "--model", form["path"], "--batch-size", str(batch), "--precision", form["dtype"],
             "--threads", str(self.threads), "--seconds", str(seconds), "--json"], capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            return {"error": done.stderr.strip()[-500:]}
        result = json.loads(done.stdout)["results"][0]
        return {
            "ms": result["latency_ms"], "min_ms": result["latency_quantiles_ms"]["min"],
            "kernels": {result["isa"]: 1}, "peak_fraction": result["peak_fraction"],
        }  # fmt: skip

    def own_seconds(self):
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    def close(self):
        pass


def await_quiet(args):
    """Until the rest of the machine is quiet, or `--wait-quiet` seconds have passed."""
    deadline = time.perf_counter() + args.wait_quiet
    while time.perf_counter() < deadline:
        busy = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - busy <= args.max_foreign * 0.5 * os.cpu_count():
            return
        time.sleep(2)


def quietest(args, worker, order):
    """The answer to `order` that was least disturbed, with `foreign`; or the error that there was."""
    best = worker.ask(do="load", **order)  # compiling is no part of the sample
    for attempt in range(args.attempts if "error" not in best else 0):
        await_quiet(args)
        busy, own, begun = busy_seconds(), worker.own_seconds(), time.perf_counter()
        answer = worker.ask(do="run", **order)
        if "error" in answer:
            return answer
        others = (busy_seconds() - busy) - (worker.own_seconds() - own)
        share = max(0.0, others) / ((time.perf_counter() - begun) * os.cpu_count())
        if "ms" not in best or share < best["foreign"]:
            best = answer | {"foreign": round(share, 3)}
        if share <= args.max_foreign:
            break
    return best | {"load": os.getloadavg()[0], "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


class Samples:
    """The JSONL file: one line a sample, found again by what it is a sample of."""

    def __init__(self, path):
        self.path, self.known = path, {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    sample = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was cut off
                self.known[self.key(sample)] = sample

    @staticmethod
    def key(sample):
        return tuple(sample[field] for field in ("context", "phase", "round", "model", "batch", "precision", "name", "variant"))

    def add(self, sample):
        self.known[self.key(sample)] = sample
        with open(self.path, "a") as file:
            file.write(json.dumps(sample) + "\n")

    def clean(self, sample, max_foreign):
        """Whether the sample is there and was not disturbed."""
        known = self.known.get(self.key(sample))
        return known is not None and known["foreign"] <= max_foreign

    def of(self, **wanted):
        return [s for s in self.known.values() if all(s[field] == value for field, value in wanted.items())]


class Bench:
    def __init__(self, args, samples, product, pixels, contexts):
        self.args, self.samples, self.product, self.pixels, self.contexts = args, samples, product, pixels, contexts
        self.workers = {}

    def worker(self, library):
        if library not in self.workers:
            threads = self.args.threads
            if library == VITESSE:
                self.workers[library] = Vitesse(self.args.vitesse, threads)
            else:
                self.workers[library] = Worker(threads, "rivals.py", library, str(threads))
        return self.workers[library]

    def close(self):
        for worker in self.workers.values():
            worker.close()

    def rivals(self, precision):
        return [rival for rival in RIVALS if rival[2] == precision and rival[1] in self.args.rivals]

    def rows(self):
        args = self.args
        return [(m, b, p) for m in args.models for b in args.batch_sizes for p in args.precisions]

    def about(self, phase, index, row, name, variant):
        model, batch, precision = row
        return {
            "context": self.contexts[phase], "phase": phase, "round": index, "model": model, "batch": batch,
            "precision": precision, "name": name, "variant": variant,
        }  # fmt: skip

    def sample(self, sample, library, kind, dtype):
        """Takes the sample described by `about`."""
        model, batch, name, variant = (sample[field] for field in ("model", "batch", "name", "variant"))
        worker = self.worker(library)
        form = {"path": str(self.product(kind, model)), "dtype": dtype, "variant": variant}
        order = {"form": form, "batch": batch, "seconds": self.args.seconds_per_sample, "pixels": str(self.pixels)}
        best = quietest(self.args, worker, order)
        if "error" in best:  # not kept: the next run tries again
            log(f"{name} {variant} on {model} batch {batch}: {best['error']}")
            return
        place = f"{sample['phase']} {sample['round']} {model} batch {batch} {sample['precision']}"
        log(f"{place:32s} {name + ' ' + variant:34s} {best['ms']:9.2f} ms  others {100 * best['foreign']:3.0f} %")
        self.samples.add(sample | best)

    def alone(self):
        """Every rival in every variant by itself."""
        for row in self.rows():
            for rival in self.rivals(row[2]):
                name, library, _, kind, dtype, _ = rival
                for variant in variants(rival, row[1]):
                    for index in range(self.args.alone_rounds):
                        sample = self.about("alone", index, row, name, variant)
                        if not self.samples.clean(sample, self.args.max_foreign):
                            self.sample(sample, library, kind, dtype)

    def chosen(self, rival, row):
        """The variant that was fastest alone; none where all failed."""
        model, batch, precision = row
        times = {}
        for sample in self.samples.of(
            context=self.contexts["alone"], phase="alone", model=model, batch=batch, precision=precision, name=rival[0]
        ):
            # Undisturbed samples decide; where a variant has none, the others do.
            disturbed = sample["foreign"] > self.args.max_foreign
            times.setdefault(sample["variant"], {}).setdefault(disturbed, []).append(sample["ms"])
        best = {variant: statistics.median(found[min(found)]) for variant, found in times.items()}
        return min(best, key=best.get, default=None)

    def round(self, index):
        """Every contender of every row once, beginning with another one each time."""
        for number, row in enumerate(self.rows()):
            contenders = [
                (self.about("together", index, row, rival[0], variant), rival[1], rival[3], rival[4])
                for rival in self.rivals(row[2])
                if (variant := self.chosen(rival, row)) is not None
            ]
            if not self.args.rivals_only:
                contenders.append((self.about("together", index, row, VITESSE, ""), VITESSE, "timm", row[2]))
            # A ratio is of samples taken one after the other, so one that is missing or disturbed takes the row with it.
            if all(self.samples.clean(sample, self.args.max_foreign) for sample, *_ in contenders):
                continue
            turn = (index + number) % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                self.sample(*contender)
