"""The demonstration's pretended host: a budget of memory, and the samples that make its chart.

The guest's memory is real, as the kernel counts it; all other figures are computed.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from balloon_daemon.ctl.demo.story import MARGIN_BYTES, Phase, Story
from balloon_daemon.units import MIB


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment's figures, in bytes; the time is in seconds since the demonstration began."""

    at_s: float
    phase: Phase
    load_bytes: int
    guest_bytes: int
    balloon_bytes: int
    available_bytes: int

    @property
    def is_low(self) -> bool:
        """Whether the host is low on memory: less available than the margin, in whole MiB."""
        return self.available_bytes // MIB < MARGIN_BYTES // MIB


@dataclass(slots=True)
class PretendedHost:
    """Keeps ``available`` and ``margin`` in a directory as ChromeOS's kernel does.

    Args:
        directory: made, and filled with the two files.
        story: the budget and the load.
    """

    directory: Path
    story: Story
    samples: list[Sample] = field(default_factory=list)
    _written_mib: int = -1

    def __post_init__(self) -> None:
        self.directory.mkdir()
        (self.directory / "margin").write_text(f"{MARGIN_BYTES // MIB}\n")
        self._write(self.story.budget_bytes // MIB)

    def sample(self, at_s: float, script_s: float, guest_bytes: int, balloon_bytes: int) -> Sample:
        """Records a moment, and writes its figures where the daemon reads them.

        Args:
            at_s: seconds since the demonstration began.
            script_s: seconds in the script, which may have been held up.
            guest_bytes: the memory that the host holds for the guest.
            balloon_bytes: the balloon's size, as the guest reports it.
        """
        load = self.story.load_bytes(script_s)
        available = max(0, self.story.budget_bytes - guest_bytes - load)
        phase, _ = self.story.phase(script_s)
        sample = Sample(at_s, phase, load, guest_bytes, balloon_bytes, available)
        self.samples.append(sample)
        self._write(available // MIB)
        return sample

    def _write(self, available_mib: int) -> None:
        if available_mib == self._written_mib:
            return
        # rename(2) is atomic: no reader finds the file empty or half written.
        new = self.directory / "available.new"
        new.write_text(f"{available_mib}\n")
        os.replace(new, self.directory / "available")
        self._written_mib = available_mib
