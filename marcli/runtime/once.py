"""What all processes of a run do once in all, whichever of them comes to it first."""

from torch import distributed


def is_first(event: str) -> bool:
    """Return whether no process of this run has asked this for `event` before; True where there is no group of them.

    Nobody waits for the others: the count lies in the store by which the processes found each other.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    return distributed.distributed_c10d._get_default_store().add(event, 1) == 1
