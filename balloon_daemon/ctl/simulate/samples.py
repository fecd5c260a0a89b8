"""A recorded guest's statistics at any time, not only at those at which it sent them. Pure."""

from bisect import bisect_right

from balloon_daemon.sizing.need import Figures

GONE_S = 90.0
"""A guest that has sent nothing for this time counts as one that no longer sends statistics. While
its balloon is empty and the host has enough memory, a guest is asked only each 30 s."""


class Samples:
    """The statistics that one guest sent."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._figures: list[Figures] = []

    def __bool__(self) -> bool:
        return bool(self._times)

    def add(self, figures: Figures) -> None:
        """Adds the next statistics; ignores them if they are not newer than the last ones."""
        if not self._times or figures.at_s > self._times[-1]:
            self._times.append(figures.at_s)
            self._figures.append(figures)

    def at(self, at_s: float) -> Figures | None:
        """The statistics at a time; None: the guest sends none then.

        Counters grow evenly from one recorded figure to the next. Otherwise all that a guest read
        in half a minute would seem to have been read in the second in which it was recorded.
        """
        after = bisect_right(self._times, at_s)
        if after == 0 or at_s - self._times[after - 1] > GONE_S:
            return None
        last = self._figures[after - 1]
        if after == len(self._times):
            return last._replace(at_s=at_s)
        following = self._figures[after]
        share = (at_s - last.at_s) / (following.at_s - last.at_s)

        def between(before: int | None, then: int | None) -> int | None:
            if before is None or then is None or then < before:  # less: the guest was rebooted
                return before
            return before + int((then - before) * share)

        return last._replace(
            at_s=at_s,
            swap_in_bytes=between(last.swap_in_bytes, following.swap_in_bytes),
            major_faults=between(last.major_faults, following.major_faults),
            disk_read_bytes=between(last.disk_read_bytes, following.disk_read_bytes),
        )
