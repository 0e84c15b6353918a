"""How far two engines or precisions are apart on trained runs: python tests/benchmarks/same_pictures.py RUN [RUN ...]

For each run and guidance setting the same pictures are made twice; printed are the largest difference in grey levels
(of 255) and the share of values that differ by more than one.
"""

import argparse
import json

import torch

from marcli.sampling.engine.build import build_engine
from marcli.sampling.generate import generate
from marcli.sampling.load import load_system

GUIDANCE = {"none": ["cfg=1"], "linear 1.5": ["cfg=1.5"], "constant 3": ["cfg=3", "cfg_schedule=constant"]}


def pictures(run: str, settings: list[str], engine: str, precision: str, num: int) -> torch.Tensor:
    """uint8 pictures 0..num-1 of seed 0."""
    system = load_system(run, weights="ema", overrides=[f"sample.{setting}" for setting in settings])
    built = build_engine(system, name=engine, device=torch.device("cpu"), precision=precision)
    classes = range(system.recipe.data.num_classes)
    return next(iter(generate(built, system.tokenizer, classes=classes, seed=0, batches=[range(num)]))).images


def main() -> None:
    """Print one line per run and guidance setting, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--first", nargs=2, default=["plain", "fp32"], metavar=("ENGINE", "PRECISION"))
    parser.add_argument("--second", nargs=2, default=["fast", "fp32"], metavar=("ENGINE", "PRECISION"))
    options = parser.parse_args()
    records = []
    for run in options.runs:
        for name, settings in GUIDANCE.items():
            one, two = (pictures(run, settings, *each, options.num) for each in (options.first, options.second))
            apart = (one.int() - two.int()).abs()
            record = {"largest": int(apart.max()), "share": float((apart > 1).float().mean())}
            records.append({"run": run, "guidance": name, **record})
            print(
                f"{run}, guidance {name}: {record['largest']} grey levels, {record['share']:.2%} above one", flush=True
            )
    print(json.dumps({"settings": vars(options), "results": records}))


if __name__ == "__main__":
    main()
