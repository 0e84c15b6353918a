"""Shapes and dtypes stated in annotations are checked while tests run; nothing here touches the network, nor a GPU
but for `-m gpu`."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one process per core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

install_import_hook(["marcli.model", "marcli.sampling", "marcli.metrics"], "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs before anything looks for them: what most tests compare are the numbers of a CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
