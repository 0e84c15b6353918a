"""How fast this machine could be at best, and how near a measurement comes.

Peak and bandwidth are measured here and now by one large product and one large copy, in the precision of the run, so
the share means the same on a laptop and on a GPU nobody has tabulated yet.
"""

from dataclasses import dataclass

import torch

from marcli.bench.clock import timed
from marcli.bench.cost import Cost


@dataclass(frozen=True)
class Machine:
    """Measured limits: operations per second in matrix products, bytes per second of memory traffic."""

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
        flops_per_second=2.0 * side**3 / product,
        bytes_per_second=2.0 * source.nbytes / copy,
    )


def circumstances(device: torch.device, precision: str) -> dict[str, object]:
    """What two benches must share before their times can be compared."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "precision": precision}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return processor_model()


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


def roofline_seconds(cost: Cost, machine: Machine) -> float:
    """Least seconds per image if nothing but matrix products took time."""
    return cost.flops / machine.flops_per_second


def weight_seconds(cost: Cost, machine: Machine, *, batch_size: int, bytes_per_parameter: int) -> float:
    """Least seconds per image if nothing but reading weights took time, and no cache kept any."""
    return cost.weight_reads() * bytes_per_parameter / batch_size / machine.bytes_per_second
