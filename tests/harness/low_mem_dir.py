"""A stand-in for /sys/kernel/mm/chromeos-low_mem, in whose numbers the test is the host."""

import os
from pathlib import Path


class LowMemDir:
    """A directory with `available` and `margin`, in MiB, for balloond's --low-mem-dir."""

    def __init__(self, path: Path, *, margin_mib: int) -> None:
        """Makes the directory; at first the host has plenty."""
        path.mkdir(parents=True)
        self.path = path
        self.margin_mib = margin_mib
        (path / "margin").write_text(f"{margin_mib}\n")
        self.set_plenty()

    def set_available(self, available_mib: int) -> None:
        """Writes what the host has, as the kernel's file would change."""
        self.set_content(f"{available_mib}\n")

    def set_content(self, content: str) -> None:
        """Makes this all that `available` holds, at once: a reader never finds it half written."""
        new = self.path / "available.new"
        new.write_text(content)
        os.replace(new, self.path / "available")

    def set_low(self) -> None:
        """The host is out of memory."""
        self.set_available(0)

    def set_plenty(self) -> None:
        """The host has more than any balloon policy could wait for."""
        self.set_available(1 << 20)
