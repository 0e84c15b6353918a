"""What approximations cost on a trained run: python tests/benchmarks/approximations.py RUN [--help]

Every candidate generates the same seeds with the same run; one line each gives class agreement and Frechet distance,
mean over seeds and spread, and their change from the exact sampler. Digits are judged as in digits_score.py; with
`--cifar PARQUET` (columns img and label) pictures are judged by a network trained on that file, as in cifar_score.py.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from marcli.recipe.approximate import PRESETS, overrides_of
from marcli.sampling.engine.build import build_engine
from marcli.sampling.generate import generate
from marcli.sampling.load import load_system
from tests.benchmarks.cifar_score import Judge
from tests.benchmarks.digits_score import score

SWITCHES = {
    "half the diffusion steps": ["sample.diffusion_steps=50"],
    "final_diffusion_steps": ["sample.diffusion_steps=50", "sample.approximate.final_diffusion_steps=5"],
    "ddim, 25": ["sample.diffusion_steps=25", "sample.approximate.solver=ddim"],
    "dpm++2m, 16": ["sample.diffusion_steps=16", "sample.approximate.solver=dpm++2m"],
    "dpm++2m, 8": ["sample.diffusion_steps=8", "sample.approximate.solver=dpm++2m"],
    "guidance_from 1.1": ["sample.approximate.guidance_from=1.1"],
    "guidance_refresh 3": ["sample.approximate.guidance_refresh=3"],
    "head_guidance_refresh 4": ["sample.approximate.head_guidance_refresh=4"],
    "checkerboard": ["sample.approximate.order=checkerboard"],
    "checkerboard, half the steps": ["sample.approximate.order=checkerboard", "sample.steps=8"],
    "half the steps": ["sample.steps=8"],
}


Score = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]


def digits_judge(images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Score of uint8 digits, asked for by class."""
    return score(images[:, 0].flatten(1).double().numpy() / 255 * 16, labels.numpy())


def sample(run: str, overrides: list[str], options: argparse.Namespace, seed: int, judge: Score) -> dict[str, float]:
    """Score of one seed's pictures."""
    system = load_system(run, weights="ema", overrides=overrides)
    engine = build_engine(system, name=options.engine, device=torch.device("cpu"), precision=options.precision)
    classes = list(range(10))
    batches = [range(start, start + options.batch_size) for start in range(0, options.num, options.batch_size)]
    pictures = list(generate(engine, system.tokenizer, classes=classes, seed=seed, batches=batches))
    labels = torch.cat([torch.as_tensor(each.labels) for each in pictures])
    return judge(torch.cat([each.images for each in pictures]), labels)


def main() -> None:
    """Print one line per candidate, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a trained digits run")
    parser.add_argument("--num", type=int, default=1000, help="pictures per seed")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--engine", default="fast")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--only", nargs="+", help="names of candidates")
    parser.add_argument("--also", nargs="+", action="append", default=[], help="another candidate: recipe overrides")
    parser.add_argument("--cifar", type=Path, help="parquet file of CIFAR-10's training pictures")
    parser.add_argument("--judge-epochs", type=int, default=6)
    options = parser.parse_args()
    judge = digits_judge
    if options.cifar:
        network = Judge(options.cifar, epochs=options.judge_epochs)
        print(f"judge: {network.accuracy:.1%} of 5,000 pictures it was not trained on", flush=True)
        judge = network.score
    candidates = {"exact": []} | SWITCHES | {f"preset {name}": overrides_of(name) for name in PRESETS}
    candidates |= {" ".join(overrides): overrides for overrides in options.also}
    records = {}
    for name, overrides in candidates.items():
        if options.only and name != "exact" and name not in options.only and overrides not in options.also:
            continue
        scores = [sample(options.run, overrides, options, seed, judge) for seed in options.seeds]
        records[name] = {key: statistics.mean(each[key] for each in scores) for key in ("frechet", "agreement")}
        frechets = [each["frechet"] for each in scores]
        exact = records["exact"]
        print(
            f"{name:32s} frechet {records[name]['frechet']:6.2f} ({min(frechets):.2f}..{max(frechets):.2f}, "
            f"{records[name]['frechet'] / exact['frechet'] - 1:+.1%})  agreement {records[name]['agreement']:.2%} "
            f"({100 * (records[name]['agreement'] - exact['agreement']):+.2f} points)",
            flush=True,
        )
    settings = {**vars(options), "run": str(Path(options.run)), "cifar": str(options.cifar)}
    print(json.dumps({"settings": settings, "results": records}))


if __name__ == "__main__":
    main()
