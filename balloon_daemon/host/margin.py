"""Compares what the operator wants to be available with all the memory that this host can have."""

from collections.abc import Callable

from balloon_daemon.linux.meminfo import HostMemory, host_memory
from balloon_daemon.units import MIB, format_size


def beyond_host(margin_bytes: int | None, memory: Callable[[], HostMemory] = host_memory) -> str:
    """Why memory is always low at this margin; "" where it is not, or the host has no figures.

    ``MeminfoLowMemory`` refuses such a margin. The figures in a directory (``--low-mem-dir``) may
    be another machine's, so for these the margin only causes a warning.

    Args:
        margin_bytes: the margin that was given; None: there is none.
        memory: reads the host's memory; raises OSError or ValueError where there are no figures.
    """
    usable_bytes = None if margin_bytes is None else most_available_bytes(memory)
    if margin_bytes is None or usable_bytes is None or margin_bytes < usable_bytes:
        return ""
    return (
        f"a margin of {format_size(margin_bytes)} is as much as this host can have, or more "
        f"({usable_bytes // MIB:,} MiB): memory is always low, and every VM will be taken to its "
        "maximum"
    )


def most_available_bytes(memory: Callable[[], HostMemory] = host_memory) -> int | None:
    """How much this host has available with nothing in use; None: it has no figures.

    Args:
        memory: reads the host's memory; raises OSError or ValueError where there are no figures.
    """
    try:
        return memory().usable_bytes
    except (OSError, ValueError):
        return None
