"""Compares a margin that the operator gave with all the memory that this host can have."""

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
    if margin_bytes is None:
        return ""
    try:
        usable_bytes = memory().usable_bytes
    except (OSError, ValueError):
        return ""
    if margin_bytes < usable_bytes:
        return ""
    return (
        f"a margin of {format_size(margin_bytes)} is as much as this host can have, or more "
        f"({usable_bytes // MIB:,} MiB): memory is always low, and every VM will be taken to its "
        "maximum"
    )
