"""What /proc says of a process."""

from pathlib import Path

NAMESPACES = ("mnt", "net", "ipc")


def process_status(pid: int) -> dict[str, str]:
    """What /proc/PID/status says, by its names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
