"""A simulated guest: its memory, the time that it loses under a balloon, and its reports. Pure.

``stall`` is the share of the last step's time that the guest's programs lost by waiting for
memory. A policy does not get it; it gets ``figures``, statistics that are some seconds old.
"""

import math
from collections import deque

from balloon_daemon.ctl.simulate.load import Kind
from balloon_daemon.ctl.simulate.memory import Memory
from balloon_daemon.ctl.simulate.programs import Programs
from balloon_daemon.sizing.need import Figures
from balloon_daemon.units import MIB, PAGE_SIZE

IN_NEED = 0.1
"""A guest is in need while it loses more than a tenth of its time by waiting for memory: a choice,
above the noise that /proc/pressure/memory has in the recordings."""

LOSES = 0.01
"""A guest that loses less than this share of its time counts as losing none."""

LEFT_SHARE, LEFT_MIB = 0.08, 128
"""A guest with less available than 8 % of the VM, or than 128 MiB, is short of memory: the
recorded guests had nothing free by then, and began to reclaim."""

SWAPPING_OUT = 0.5
"""The share of its time that a guest loses while its memory is swapped out at full speed: in the
recordings with zram, half."""

GRIND = 0.095
"""The share of its time that a guest loses while its balloon driver tries in vain to allocate.
With this value the models of the recordings k61-anon and k72-anon together lose 16 s, as the
recorded guests did. The recorded guests lost most of these seconds within a short time, above
``IN_NEED``; the model spreads the loss evenly, and stays below ``IN_NEED``."""

IN_VAIN = 1.0
"""The driver allocates in vain while the balloon grows by fewer MiB a second than this."""

REPORT_S = 1.0
"""How often a guest sends statistics, in seconds."""


class LiveGuest:
    """One guest.

    Args:
        kind: its size, its kernel with the balloon driver, its programs.
        untouched: the share of its free memory that it has never used.
        deflates_on_oom: whether its driver gives pages back before a process is killed.
    """

    def __init__(
        self, kind: Kind, *, untouched: float = 0.0, deflates_on_oom: bool = True
    ) -> None:
        self._kernel = kind.kernel
        self._deflates_on_oom = deflates_on_oom
        self.memory = Memory(kind, untouched)
        self.programs = Programs(kind.load, self.memory)
        self.stall = 0.0
        self._target_mib = 0.0
        self._follows = True
        self._has_little = False
        self._reports = deque[Figures]()
        self._report_at_s = -math.inf

    @property
    def is_in_need(self) -> bool:
        """Whether the guest loses more than the share ``IN_NEED`` of its time."""
        return self.stall > IN_NEED

    @property
    def is_short(self) -> bool:
        """Whether the guest loses time (more than ``LOSES``), or had little memory available at
        its last report (``LEFT_SHARE``, ``LEFT_MIB``)."""
        return self.stall > LOSES or self._has_little

    def set_target(self, target_mib: float) -> None:
        """Tells the driver a target. A driver that has deflated by itself begins to inflate again
        only when it is told, even the same target."""
        self._target_mib, self._follows = target_mib, True

    def advance(self, now_s: float, seconds: float) -> None:
        """Lets time pass.

        Args:
            now_s: the time at the end, on the load's clock.
            seconds: how much time passes.
        """
        if now_s >= self._report_at_s:
            self._report(now_s - seconds)

        def out_of_memory(want_mib: float) -> float:
            if not self._deflates_on_oom or not self.memory.balloon_mib:
                return 0.0
            self._follows = False
            return self.memory.give_back(min(want_mib, self._kernel.oom_rate * seconds))

        programs = self.programs
        lost = programs.grow(now_s, seconds, out_of_memory)
        lost += programs.stream(now_s, seconds)
        lost = max(lost, self._move_balloon(seconds), programs.refault(seconds))
        self.stall = min(1.0, lost + programs.swap_in(seconds))

    def figures(self, now_s: float) -> Figures | None:
        """The statistics that a daemon has at this time; None: none yet."""
        age_s = self._kernel.late_s if self.is_in_need else self._kernel.age_s
        reports = self._reports
        while len(reports) > 1 and reports[1].at_s <= now_s - age_s:
            reports.popleft()
        return reports[0] if reports and reports[0].at_s <= now_s - age_s else None

    def _report(self, at_s: float) -> None:
        self._report_at_s = at_s + REPORT_S
        memory, programs = self.memory, self.programs
        available_mib = memory.available_mib
        self._has_little = available_mib < max(LEFT_SHARE * memory.size_mib, LEFT_MIB)
        self._reports.append(
            Figures(
                at_s,
                int(available_mib) * MIB,
                int(max(0.0, memory.free_mib)) * MIB,
                int(programs.swapped_in) * PAGE_SIZE,
                int(programs.major_faults),
                programs.oom_kills,
                int(programs.read_mib * MIB),
            )
        )

    def _move_balloon(self, seconds: float) -> float:
        """Lets the balloon follow its target; returns the share of the time that was lost."""
        kernel, memory = self._kernel, self.memory
        want = self._target_mib - memory.balloon_mib
        if not want or not self._follows:
            return 0.0
        if want < 0:
            memory.give_back(min(-want, kernel.deflate_rate * seconds))
            return 0.0
        swapped = memory.swapped_mib
        got = memory.obtain(min(want, kernel.free_rate * seconds), seconds)
        memory.balloon_mib += got
        if not self.programs.can_lose:
            return 0.0
        swapping = (memory.swapped_mib - swapped) / (kernel.swap_rate * seconds)
        in_vain = got < min(want, IN_VAIN * seconds)
        return max(SWAPPING_OUT * swapping, GRIND if in_vain else 0.0)
