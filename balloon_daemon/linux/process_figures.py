"""Reads another process's figures: how much it has read, and how much memory it occupies.

For a VM's process the first is what its guest reads from its disks. A process that is gone or not
readable has no figures, which is no error: VMs end at any time, and /proc/PID/io of another user
needs CAP_SYS_PTRACE.
"""

import os
import re

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_FIELD = re.compile(rb"^(rchar|read_bytes): ([0-9]{1,20})$", re.MULTILINE)
_STATM = re.compile(rb"[0-9]{1,20} ([0-9]{1,15}) ")


def read_bytes_of(pid: int) -> int | None:
    """How many bytes a process has read since it began; None: unknown.

    ``rchar`` counts what read(2) and its kin have copied, from the page cache, too. It leaves out
    native AIO (QEMU's ``aio=native``), whose reads are in ``read_bytes``: what was fetched from
    storage for it. The greater of the two is what a VMM has read for its guest either way.
    """
    found = {name: int(digits) for name, digits in _FIELD.findall(_read(pid, "io"))}
    return max(found.values(), default=None)


def resident_bytes_of(pid: int) -> int | None:
    """How much of the host's memory a process occupies, shared memory included; None: unknown.

    /proc/PID/statm has it from counters, while smaps_rollup would walk all page tables of a VM
    under its lock.
    """
    match = _STATM.match(_read(pid, "statm"))
    # All zero: it is ending, and has no memory any more.
    return (int(match[1]) * _PAGE_BYTES or None) if match else None


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty where there is none, or it is not to be read."""
    # SO_PEERCRED names a process outside this PID namespace as 0.
    if pid <= 0:
        return b""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read(4096) or b""
    except OSError:
        return b""
