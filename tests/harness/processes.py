"""Reads /proc about a process."""

from pathlib import Path

NAMESPACES = ("mnt", "net", "ipc")


def process_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
