"""A guest of the model: how large its balloon is, and what its statistics would be. Pure."""

import math

from balloon_daemon.ctl.simulate.live_guest import LEFT_MIB, LEFT_SHARE
from balloon_daemon.ctl.simulate.samples import Samples
from balloon_daemon.sizing.need import Figures
from balloon_daemon.units import MIB, PAGE_SIZE

RATE_BYTES_S = 256 * MIB
"""How fast a balloon grows and shrinks. An assumption: a trace does not say how fast its guests
could be. With this rate a step (a sixteenth of the greatest balloon) of a VM of 5 GiB takes a
second."""

LACKS_SHARE = 64
"""A guest with less available than a 64th of its memory lacks memory: its kernel has no more than
the free pages that it keeps for itself."""

REPORT_S = 1.0
"""How often a moving balloon's size is reported: VMs that are driven are asked each second."""


class Guest:
    """One guest.

    Args:
        careful: whether the policy gets the guest's reports, as of a VM of the profile careful or
            adaptive.
        vm_mem_bytes: its size.
        balloon_bytes: the size of its balloon.
        at_s: the time.
        samples: its recorded statistics.
    """

    def __init__(
        self,
        *,
        careful: bool,
        vm_mem_bytes: int,
        balloon_bytes: int,
        at_s: float,
        samples: Samples,
    ) -> None:
        self.vm_mem_bytes = vm_mem_bytes
        self.careful = careful
        self.recorded_bytes = balloon_bytes
        """The size of its balloon when the trace was recorded."""
        self.report_at_s = math.inf
        """When it reports its balloon's size next; infinity: its balloon is at its target."""
        self.sample_at_s = math.inf
        """When it sends statistics next; infinity: never."""
        self._samples = samples
        self._every_s = math.inf
        self._from_bytes = self._to_bytes = balloon_bytes
        self._from_s = at_s

    def balloon_bytes(self, at_s: float) -> int:
        """The size of its balloon in the model."""
        way = int(max(0.0, at_s - self._from_s) * RATE_BYTES_S) // PAGE_SIZE * PAGE_SIZE
        if self._to_bytes > self._from_bytes:
            return min(self._to_bytes, self._from_bytes + way)
        return max(self._to_bytes, self._from_bytes - way)

    def more_bytes(self, at_s: float) -> int:
        """How much more its balloon holds in the model than it held when it was recorded."""
        return self.balloon_bytes(at_s) - self.recorded_bytes

    def lacks_memory(self, at_s: float) -> bool:
        """Whether it has almost nothing available in the model (``LACKS_SHARE``), and its balloon
        is not empty."""
        figures = self.figures(at_s)
        if figures is None or figures.available_bytes is None or not self.balloon_bytes(at_s):
            return False
        return figures.available_bytes < self.vm_mem_bytes // LACKS_SHARE

    def is_short(self, at_s: float) -> bool:
        """Whether it has less available in the model than a guest should have (``LEFT_SHARE``)."""
        figures = self.figures(at_s)
        if figures is None or figures.available_bytes is None:
            return False
        return figures.available_bytes < max(LEFT_SHARE * self.vm_mem_bytes, LEFT_MIB * MIB)

    def set_target(self, target_bytes: int, at_s: float) -> None:
        """Lets its balloon move to a target, but not beyond what the guest has available."""
        present = self.balloon_bytes(at_s)
        figures = self.figures(at_s)
        if target_bytes > present and figures is not None and figures.available_bytes is not None:
            most = present + figures.available_bytes // PAGE_SIZE * PAGE_SIZE
            target_bytes = min(target_bytes, most)
        self._from_bytes, self._from_s, self._to_bytes = present, at_s, target_bytes
        self._plan_report(at_s)

    def watch(self, every_s: float | None, at_s: float) -> None:
        """Sends statistics each ``every_s`` from now on; None: sends no more."""
        if every_s is None:
            self._every_s = self.sample_at_s = math.inf
            return
        self._every_s = every_s
        self.sample_at_s = min(self.sample_at_s, at_s + every_s)

    def report(self, at_s: float) -> int:
        """Reports its balloon's size."""
        self._plan_report(at_s)
        return self.balloon_bytes(at_s)

    def sample(self, at_s: float) -> Figures | None:
        """Sends statistics; None: it sends none any more."""
        self.sample_at_s = at_s + self._every_s
        return self.figures(at_s)

    def figures(self, at_s: float) -> Figures | None:
        """Its statistics in the model: the recorded ones, with less available by as much as its
        balloon is larger in the model than in the recording."""
        figures = self._samples.at(at_s)
        if figures is None:
            return None
        more = self.more_bytes(at_s)

        def less(size_bytes: int | None) -> int | None:
            return None if size_bytes is None else max(0, size_bytes - more)

        return figures._replace(
            available_bytes=less(figures.available_bytes), free_bytes=less(figures.free_bytes)
        )

    def _plan_report(self, at_s: float) -> None:
        left = abs(self._to_bytes - self.balloon_bytes(at_s))
        # Add a millisecond: ``balloon_bytes`` rounds the distance down to whole pages, and would
        # be a page short at the exact time.
        arrives_s = at_s + left / RATE_BYTES_S + 0.001
        self.report_at_s = min(at_s + REPORT_S, arrives_s) if left else math.inf
