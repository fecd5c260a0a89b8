"""Reads another process's memory, for root."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ \S+ (\d+) *(.*)")


def mappings(pid: int) -> Iterator[tuple[range, str, str]]:
    """Each mapping's addresses, permissions and name (proc(5), /proc/PID/maps)."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = _MAPPING.match(line)
        assert found is not None, line
        yield range(int(found[1], 16), int(found[2], 16)), found[3], found[5]


def places_of(pid: int, content: bytes) -> list[str]:
    """The names of the private mappings in which a process has some bytes."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [
            f"{name or 'anonymous'} at {addresses.start:#x}"
            for addresses, permissions, name in mappings(pid)
            if permissions.startswith("r") and permissions[3] == "p" and name != "[vvar]"
            if content in _read(memory, addresses)
        ]
    finally:
        os.close(memory)


def _read(memory: int, addresses: range) -> bytes:
    try:
        return os.pread(memory, len(addresses), addresses.start)
    except OSError:
        return b""  # [vvar_vclock] and the like cannot be read
