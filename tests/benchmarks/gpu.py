"""All speed ratios of one GPU: python tests/benchmarks/gpu.py

Runs `sampling_engine.py` at batches of 1, 16 and 256 and `train_step.py`, each beside the published way of working on
the same GPU, model and dtype (bf16), and prints every ratio with what is wanted of it on an H200. Fails where a ratio
falls short there. With MARCLI_PUBLISHED_MAR=FOLDER the published sampler of that folder runs too and is the yardstick.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
# batch -> wanted ratio of fast bf16 to the yardstick, every so manieth AR step timed
SAMPLING = {1: (20.0, 8), 16: (8.0, 8), 256: (2.5, 16)}
TRAINING = 2.4
CANDIDATES = ["as-published-bf16", "plain-bf16", "fast-bf16", "turbo-bf16", "lazy-bf16"]


def run(script: str, *arguments: str) -> dict:
    """The JSON object with which a benchmark ends."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def ratio_to_yardstick(results: dict) -> tuple[str, float]:
    """How often fast bf16 fits into the time of the published way, or of the published code where that was measured."""
    times = results["fast-bf16"]["times"]
    if "published-fp16" in times:
        return "the published code", times["published-fp16"]
    return "the published way of working", times["as-published-bf16"]


def main() -> None:
    """Print a line per ratio."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here: sampling_engine.py and train_step.py measure CPUs.")
    ratios = []
    for batch, (wanted, every) in SAMPLING.items():
        options = ["--device", "cuda", "--batch-size", str(batch), "--every", str(every)]
        results = run("sampling_engine.py", *options, "--candidates", *CANDIDATES)["results"]
        yardstick, ratio = ratio_to_yardstick(results)
        ratios.append((f"sampling, batch {batch}, fast bf16 to {yardstick}", ratio, wanted))
    trained = run("train_step.py", "--batch-size", "64", "--precisions", "bf16")
    ratios.append(("training, batch 64, bf16, ours to plain", trained["ours over plain bf16"], TRAINING))
    name = torch.cuda.get_device_name()
    for what, ratio, wanted in ratios:
        print(f"{name}: {what}: {ratio:.2f} times (wanted on an H200: {wanted})")
    if "H200" in name and any(ratio < wanted for _, ratio, wanted in ratios):
        raise SystemExit("Some ratios fall short of what is wanted.")


if __name__ == "__main__":
    main()
