"""All speed ratios of one GPU: python tests/benchmarks/gpu.py

Runs `train_step.py` at batches of 4, 16 and 64 and `sampling_engine.py` at batches of 1, 16 and 256, each beside the
published way of working on the same GPU, model and dtype (bf16), and prints every ratio with what is wanted of it on
an H200; the presets of approximations come last. Fails where a ratio falls short there. Of training with a batch of 64
nothing is wanted: about half of our step is then matrix products, which the published code has too.
With MARCLI_PUBLISHED_MAR=FOLDER the published code of that folder runs too and is the yardstick. Takes about seven
minutes.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
SAMPLING = {1: 20.0, 16: 8.0, 256: 2.5}  # batch -> wanted ratio of fast bf16 to the yardstick
TRAINING = {4: 2.4, 16: 2.4, 64: None}
MOST_MEMORY = 1.2  # times the plain engine's


def run(script: str, batches: list[int], *arguments: str) -> dict:
    """The JSON object with which a benchmark ends; its lines are passed on as they come."""
    command = [sys.executable, str(HERE / script), "--batch-size", *map(str, batches), *arguments]
    with subprocess.Popen(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True) as process:
        line = "null"
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{script} failed, as said above.")
    return json.loads(line)


def sampled(batches: list[int], *candidates: str) -> dict:
    """The results of `sampling_engine.py`."""
    options = ["--device", "cuda", "--rounds", "2", "--candidates", "as-published-bf16", *candidates]
    return run("sampling_engine.py", batches, *options)["results"]


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
    results = run("train_step.py", list(TRAINING), "--precisions", "bf16", "--repeats", "3")
    for batch, wanted in TRAINING.items():
        ratios = results[f"batch {batch}, bf16"]
        other = "published" if "ours over published" in ratios else "plain"
        ratio = ratios[f"ours over {other}"]
        what, reached = f"training, batch {batch}, bf16, ours to {other}", ratio >= (wanted or 0)
        verdicts.add(what, ratio, f"{wanted:g}" if wanted else "the more the better", reached=reached)
    for batch, results in sampled(list(SAMPLING), "plain-bf16", "fast-bf16").items():
        fast, plain, wanted = results["fast-bf16"], results["plain-bf16"], SAMPLING[int(batch)]
        published = "published-fp16" in fast["times"]
        yardstick = "the published code" if published else "the published way of working"
        ratio = fast["times"]["published-fp16" if published else "as-published-bf16"]
        what = f"sampling, batch {batch}, fast bf16 to {yardstick}"
        verdicts.add(what, ratio, f"{wanted:g}", reached=ratio >= wanted)
        memory = fast["held_bytes"] / plain["held_bytes"]
        what = f"memory, batch {batch}, fast to plain"
        verdicts.add(what, memory, f"at most {MOST_MEMORY:g}", reached=memory <= MOST_MEMORY)
    sampled([16], "turbo-bf16", "lazy-bf16")
    if "H200" in verdicts.gpu and verdicts.missed:
        raise SystemExit(f"Less than wanted: {'; '.join(verdicts.missed)}.")


if __name__ == "__main__":
    main()
