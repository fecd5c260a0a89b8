"""What a process that goes on has open."""

import os
from pathlib import Path


def open_files(process: Path | int) -> dict[Path, str]:
    """Each descriptor's path in /proc, and what its link says.

    The process may close descriptors while this lists them: those are left out.

    Args:
        process: its directory in /proc, or its id.
    """
    found = dict[Path, str]()
    directory = process if isinstance(process, Path) else Path(f"/proc/{process}")
    for link in (directory / "fd").iterdir():
        try:
            found[link] = os.readlink(link)
        except FileNotFoundError:
            continue
    return found
