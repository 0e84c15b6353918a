"""How fast this machine could be at best, and how near a measurement comes.

Special: peak and bandwidth are measured here and now by one large product and one large copy, in the precision of
the run, so the share means the same on a laptop and on a GPU nobody has tabulated yet.
"""

from dataclasses import dataclass

import torch

from marcli.bench.clock import timed
from marcli.bench.cost import Cost


@dataclass(frozen=True)
class Machine:
    """Measured limits: operations per second in matrix products, bytes per second read from memory."""

    name: str
    threads: int
    flops_per_second: float
    bytes_per_second: float


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Time a square product and a copy on `device`; the best of several short tries counts."""
    side, elements = (8192, 2**28) if device.type == "cuda" else (1024, 2**25)
    left = torch.randn(side, side, device=device).to(dtype)
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    left @ left
    target.copy_(source)
    product = min(timed(lambda: left @ left, device) for _ in range(5))
    copy = min(timed(lambda: target.copy_(source), device) for _ in range(5))
    return Machine(
        name=device_name(device),
        threads=torch.get_num_threads(),
        flops_per_second=2.0 * side**3 / product,
        bytes_per_second=2.0 * source.nbytes / copy,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"{processor_model()}, {torch.get_num_threads()} threads"


def processor_model() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"


def roofline_seconds(cost: Cost, machine: Machine, *, batch_size: int, bytes_per_parameter: int) -> float:
    """Least seconds per image: every component is bound by its operations or by reading its weights."""
    return sum(
        max(
            component.flops / machine.flops_per_second,
            component.parameters * bytes_per_parameter * component.evaluations / batch_size / machine.bytes_per_second,
        )
        for component in cost.components.values()
    )
