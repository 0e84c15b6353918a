"""Reading pictures in threads leaves the process as fast as it was; a picture is blank only when all of it is."""

import os
import subprocess
import sys

import torch

from marcli.metrics.extract import blank_pictures

EXTRACT = """
import torch
from marcli.metrics.extract import extract_read
from marcli.metrics.features import pixel_extractor

read = lambda indices: torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8)
for batch in extract_read(read, [range(4), range(4)], pixel_extractor(), workers=2):
    pass
from concurrent.futures import ThreadPoolExecutor
print(torch.get_num_threads(), ThreadPoolExecutor(1).submit(torch.get_num_threads).result())
"""


def test_threads_that_read_do_not_slow_the_others_down():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", EXTRACT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.split() == ["2", "2"]


def test_one_pixel_of_one_channel_makes_a_picture():
    images = torch.full((6, 3, 4, 5), 7, dtype=torch.uint8)
    images[1, 0, 0, 1] = images[2, 2, 0, 4] = images[3, 1, 3, 4] = images[4, 0, 1, 0] = 8
    images[5, 1] = 8  # channels may differ: one single colour
    assert blank_pictures(images).tolist() == [True, False, False, False, False, True]
