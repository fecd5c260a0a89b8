"""A directory in place of /sys/kernel/mm/chromeos-low_mem, in which a test sets the figures."""

import os
from pathlib import Path


class LowMemDir:
    """A directory with `available` and `margin`, in MiB, for balloond's --low-mem-dir."""

    def __init__(self, path: Path, *, margin_mib: int) -> None:
        """Makes the directory; at first the host has much memory."""
        path.mkdir(parents=True)
        self.path = path
        self.margin_mib = margin_mib
        (path / "margin").write_text(f"{margin_mib}\n")
        self.set_plenty()

    def set_available(self, available_mib: int) -> None:
        """Writes the available memory, as the kernel changes its file."""
        self.set_content(f"{available_mib}\n")

    def set_content(self, content: str) -> None:
        """Replaces the content of `available` at once: a reader never sees a part of it."""
        new = self.path / "available.new"
        new.write_text(content)
        os.replace(new, self.path / "available")

    def set_low(self) -> None:
        """Makes the host low on memory."""
        self.set_available(0)

    def set_plenty(self) -> None:
        """Gives the host more memory than any balloon policy waits for."""
        self.set_available(1 << 20)
