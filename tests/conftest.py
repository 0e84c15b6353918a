"""Shapes and dtypes stated in annotations are checked while tests run; nothing here touches the network, nor a GPU
but for `-m gpu`."""

import os

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one process per core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

CHECKED = ["marcli.model", "marcli.sampling", "marcli.metrics"]


def pytest_configure(config: pytest.Config) -> None:
    """Check annotations, and hide the GPUs before anything looks for them: most tests compare the numbers of a CPU.

    On a GPU code is compiled, which the checks would break into pieces.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        install_import_hook(CHECKED, "beartype.beartype")
