"""All speed ratios of one GPU: python tests/benchmarks/gpu.py

Runs `sampling_engine.py` at batches of 1, 16 and 256 and `train_step.py`, each beside the published way of working on
the same GPU, model and dtype (bf16), and prints every ratio as soon as it is there, with what is wanted of it on an
H200; the presets of approximations come last. Fails where a ratio falls short there. With MARCLI_PUBLISHED_MAR=FOLDER
the published sampler of that folder runs too and is the yardstick.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
# batch -> wanted ratio of fast bf16 to the yardstick, every n-th AR step timed
SAMPLING = {1: (20.0, 8), 16: (8.0, 8), 256: (2.5, 16)}
TRAINING = 2.4
MOST_MEMORY = 1.2  # times the plain engine's


def run(script: str, *arguments: str) -> dict:
    """The JSON object with which a benchmark ends."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def sampled(batch: int, every: int, *candidates: str) -> dict:
    """The results of `sampling_engine.py`."""
    options = ["--device", "cuda", "--batch-size", str(batch), "--every", str(every)]
    return run("sampling_engine.py", *options, "--candidates", "as-published-bf16", *candidates)["results"]


class Verdicts:
    """Compares with what is wanted on an H200, and says so at once."""

    def __init__(self) -> None:
        self.gpu = torch.cuda.get_device_name()
        self.missed: list[str] = []

    def add(self, what: str, value: float, wanted: str, *, reached: bool) -> None:
        """Print a number beside what is wanted of it."""
        print(f"{self.gpu}: {what}: {value:.2f} times (wanted on an H200: {wanted})", flush=True)
        if not reached:
            self.missed.append(what)


def main() -> None:
    """Print a line per ratio."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here: sampling_engine.py and train_step.py measure CPUs.")
    verdicts = Verdicts()
    for batch, (wanted, every) in SAMPLING.items():
        results = sampled(batch, every, "plain-bf16", "fast-bf16")
        fast, plain = results["fast-bf16"], results["plain-bf16"]
        published = "published-fp16" in fast["times"]
        yardstick = "the published code" if published else "the published way of working"
        ratio = fast["times"]["published-fp16" if published else "as-published-bf16"]
        what = f"sampling, batch {batch}, fast bf16 to {yardstick}"
        verdicts.add(what, ratio, f"{wanted:g}", reached=ratio >= wanted)
        memory = fast["held_bytes"] / plain["held_bytes"]
        what = f"memory, batch {batch}, fast to plain"
        verdicts.add(what, memory, f"at most {MOST_MEMORY:g}", reached=memory <= MOST_MEMORY)
    ratio = run("train_step.py", "--batch-size", "64", "--precisions", "bf16")["ours over plain bf16"]
    verdicts.add("training, batch 64, bf16, ours to plain", ratio, f"{TRAINING:g}", reached=ratio >= TRAINING)
    sampled(16, 16, "turbo-bf16", "lazy-bf16")
    if "H200" in verdicts.gpu and verdicts.missed:
        raise SystemExit(f"Less than wanted: {'; '.join(verdicts.missed)}.")


if __name__ == "__main__":
    main()
