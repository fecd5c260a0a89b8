"""Reads /proc about a process."""

from pathlib import Path

NAMESPACES = ("mnt", "net", "ipc")


def process_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def counts_its_reads(pid: int) -> bool:
    """Whether the bytes that a process reads from now on are those by which its figure grows.

    The figure is the greater of two counters: ``rchar`` counts all reads, and ``read_bytes`` what
    comes from storage. With a cold page cache the latter is ahead for a while, as files of the
    interpreter are mapped and not read.
    """
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    counters = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    return counters["rchar"] >= counters["read_bytes"]
