"""Steps of training: `vitesse bench --train` against PyTorch, on the same weights, images and machine.

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/train.py [--cases tiny,small,swin,micro,head,lora] [--rounds 5]

A step is forward, cross-entropy with soft targets, backward and AdamW, on a batch that is in memory. First the two programs
must find the same losses, to 1e-4 in the first step and 1e-3 in the first five. Then all contenders of a case take turns,
each in a process of its own. Samples are appended to a file in the cache folder, so that a run that was cut off goes on where
it stopped. Written are a section of the document and a CSV file beside it. Linux only: it reads /proc.
"""

import argparse
import hashlib
import json
import subprocess

import measure
from export import log, made_once, pathed
from report import machine
from train_report import write
from train_torch import CASES

# name, precision, whether the model is compiled; the first of a precision is what the others are compared with.
CONTENDERS = [
    ("vitesse", "f32", None),
    ("PyTorch eager", "f32", False),
    ("torch.compile", "f32", True),
    ("vitesse", "bf16", None),
    ("PyTorch eager, autocast", "bf16", False),
    ("torch.compile, autocast", "bf16", True),
]
FIRST_LOSS, FIVE_LOSSES = 1e-4, 1e-3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitesse", type=pathed, default="target/release/vitesse", help="the program")
    parser.add_argument("--cache", type=pathed, default="target/peers", help="weights and samples")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds-per-sample", type=float, default=5.0, help="and three steps at least")
    parser.add_argument("--max-foreign", type=float, default=0.05, help="above this share of others, a sample is retaken")
    parser.add_argument("--attempts", type=int, default=3, help="how often at most")
    parser.add_argument("--wait-quiet", type=float, default=30, help="seconds a sample waits at most for a quiet machine")
    parser.add_argument("-o", "--output", type=pathed, default="docs/results/training.md")
    return parser.parse_args()


class Vitesse(measure.Vitesse):
    """`vitesse bench --train` behind the same face as a worker: a process a sample."""

    def __init__(self, program, threads, case, weights, precision):
        super().__init__(program, threads)
        self.command = [
            program, "bench", "--train", case.trained, "--model", weights, "--batch-size", case.batch, "--threads", threads,
            *(["--amp", precision] if precision != "f32" else []), "--min-runs", 3, "--json",
        ]  # fmt: skip

    def ask(self, do, seconds):
        if do == "load":
            return {}
        command = [str(word) for word in [*self.command, "--seconds", seconds]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return {"error": json.loads(done.stdout)["error"]["message"]}
        result = json.loads(done.stdout)["results"][0]
        return {
            "ms": result["step_ms"]["median"], "p25": result["step_ms"]["p25"], "p75": result["step_ms"]["p75"],
            "memory": result["peak_memory_bytes"], "isa": result["isa"], "losses": result["losses"],
        }  # fmt: skip


def folder(name, args):
    """The checkpoint folder of a case: random weights, which take as long as trained ones."""
    case = CASES[name]

    def make(part):
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        model = case.timm_model()
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, part / "model.safetensors")
        (part / "config.json").write_text(json.dumps(case.config(model), indent=2) + "\n")

    return made_once(args.cache / f"train-{case.slug()}", make)


class Bench:
    def __init__(self, args, samples, context):
        self.args, self.samples, self.context = args, samples, context

    def worker(self, name, contender):
        _, precision, compiled = contender
        weights, threads = folder(name, self.args), self.args.threads
        if compiled is None:
            return Vitesse(self.args.vitesse, threads, CASES[name], weights, precision)
        form = "compiled" if compiled else "eager"
        return measure.Worker(threads, "train_torch.py", name, weights, precision, form, str(threads))

    def sample(self, index, name, contender):
        return {
            "context": self.context, "phase": "together", "round": index, "model": name, "batch": CASES[name].batch,
            "precision": contender[1], "name": contender[0], "variant": "",
        }  # fmt: skip

    def agreement(self, name):
        """The largest differences of losses, in the first step and in the first five; an error where there is one."""
        losses = []
        for contender in CONTENDERS[:2]:
            worker = self.worker(name, contender)
            answer = worker.ask(do="run", seconds=0)
            worker.close()
            if "error" in answer:
                return {"error": answer["error"]}
            losses.append(answer["losses"][:5])
        differences = [abs(ours - theirs) for ours, theirs in zip(*losses)]
        log(f"{name}: losses of vitesse {losses[0]}, of PyTorch {losses[1]}")
        # LoRA's updates begin at zero, but with factors that each program draws for itself.
        same = 1 if CASES[name].trained == "lora" else 5
        if len(differences) < 5 or differences[0] > FIRST_LOSS or max(differences[:same]) > FIVE_LOSSES:
            raise SystemExit(f"{name}: the two programs do not compute the same: their losses are {losses}")
        return {"first": differences[0], "five": max(differences[:same])}

    def case(self, name):
        """All rounds of a case; what could not be measured, and why."""
        clean = {
            (index, contender): self.samples.clean(self.sample(index, name, contender), self.args.max_foreign)
            for index in range(self.args.rounds)
            for contender in CONTENDERS
        }
        if all(clean.values()):
            return {}
        workers = {contender: self.worker(name, contender) for contender in CONTENDERS}
        failed = {}
        for index in range(self.args.rounds):
            # A ratio is of samples taken one after the other, so one that is missing or disturbed takes the round with it.
            if all(clean[index, contender] for contender in CONTENDERS if contender not in failed):
                continue
            turn = index % len(CONTENDERS)
            for contender in CONTENDERS[turn:] + CONTENDERS[:turn]:
                if contender in failed:
                    continue
                found = measure.quietest(self.args, workers[contender], {"seconds": self.args.seconds_per_sample})
                if "error" in found:
                    failed[contender] = found["error"]
                    log(f"{name}, {contender[0]}, {contender[1]}: {found['error']}")
                    continue
                others = f"others {100 * found['foreign']:3.0f} %"
                log(f"round {index} {name:8s} {contender[0]:24s} {contender[1]:5s} {found['ms']:9.1f} ms  {others}")
                self.samples.add(self.sample(index, name, contender) | found)
        for worker in workers.values():
            worker.close()
        return {contender[:2]: reason for contender, reason in failed.items()}


def main():
    args = arguments()
    args.cache.mkdir(parents=True, exist_ok=True)
    about = machine(["torch", "timm", "numpy"])
    program = hashlib.sha256(args.vitesse.read_bytes()).hexdigest()
    # Samples of another machine, other versions or another build are not mixed with these.
    context = hashlib.sha256(json.dumps([about, args.threads, args.seconds_per_sample, program]).encode()).hexdigest()[:12]
    samples = measure.Samples(args.cache / "train.jsonl")
    bench = Bench(args, samples, context)
    agreements, failures = {}, {}
    for name in args.cases:
        agreements[name] = bench.agreement(name)
        failures[name] = bench.case(name)
        write(args, about, samples.of(context=context), agreements, failures)
    log(f"{args.output} and {args.output.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
