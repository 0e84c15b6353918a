"""Compare feature extraction from PNG files with the bare network: python tests/benchmarks/features.py [--num 256]

Ours reads, decodes, resizes, runs Inception and adds to streaming statistics; the bare network gets the same prepared
batch again and again and does nothing else. The network has Inception's real layout with random weights. Rounds of both
are interleaved, because a shared machine changes its speed; the ratio is that of the sums. CPU seconds are printed too:
where all cores are busy with the network, their ratio is what the wall clock of a quiet machine would show.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from marcli.metrics.extract import extract_read, network_batches
from marcli.metrics.features import Extractor
from marcli.metrics.inception import inception_extractor
from marcli.metrics.pictures import open_pictures
from marcli.metrics.statistics import RunningMoments
from marcli.runtime.atomic import sha256_file


def write_pictures(folder: Path, num: int, size: int) -> None:
    """Write PNGs that compress about as photographs do: smooth shapes and some noise."""
    generator = np.random.default_rng(0)
    for index in range(num):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + generator.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:06d}.png")


def random_inception(folder: Path) -> Path:
    """Write a state dict of the network's layout with random weights."""
    import torchvision

    path = folder / "random.pth"
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), path)
    return path


def clocks() -> np.ndarray:
    """Return wall and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def bare_round(extractor: Extractor, prepared: torch.Tensor, num_batches: int) -> np.ndarray:
    """Return the seconds of the network alone over `num_batches` batches."""
    started = clocks()
    for _ in range(num_batches):
        extractor.features_of(prepared)
    return clocks() - started


def whole_round(extractor: Extractor, folder: Path, batches: list[list[int]], workers: int) -> np.ndarray:
    """Return the seconds from files to statistics."""
    source = open_pictures(str(folder), image_size=None)
    moments = RunningMoments(2048)
    started = clocks()
    for batch in extract_read(source.read, batches, extractor, workers=workers):
        moments.update(batch.features)
    return clocks() - started


def main() -> None:
    """Print the rounds, the two rates and their ratio, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=256, help="pictures per round")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--protocol", default="legacy_tensorflow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "png"
        folder.mkdir()
        write_pictures(folder, options.num, options.size)
        weights = random_inception(Path(place))
        extractor = inception_extractor(
            protocol=options.protocol, path=weights, sha256=sha256_file(weights), device=torch.device("cpu")
        )
        batches = network_batches(range(options.num))
        prepared = extractor.input_of(open_pictures(str(folder), image_size=None).read(batches[0]))
        bare_round(extractor, prepared, 1)
        bare, whole = [], []
        for _ in range(options.rounds):
            bare.append(bare_round(extractor, prepared, len(batches)))
            whole.append(whole_round(extractor, folder, batches, options.workers))
            times = [f"{seconds:.1f}" for seconds in (*bare[-1], *whole[-1])]
            print("wall, cpu: bare network {} s, {} s; from files {} s, {} s".format(*times), flush=True)
    total = options.num * options.rounds
    wall_share, cpu_share = (sum(bare) / sum(whole)).tolist()
    record = {
        "bare_per_second": total / sum(bare)[0],
        "extraction_per_second": total / sum(whole)[0],
        "share": wall_share,
        "cpu_share": cpu_share,
        "threads": torch.get_num_threads(),
        "options": vars(options),
    }
    rates = f"{record['extraction_per_second']:.2f} of {record['bare_per_second']:.2f} pictures/s"
    print(f"{rates}: {wall_share:.1%} by the wall clock, {cpu_share:.1%} by CPU seconds")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
