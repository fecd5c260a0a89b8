"""Runs the demonstration's script on its processes, and judges the result."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from balloon_daemon.ctl.demo.host import PretendedHost, Sample
from balloon_daemon.ctl.demo.processes import DemoDaemon, DemoError, DemoGuest
from balloon_daemon.ctl.demo.story import MARGIN_BYTES, Phase, Story
from balloon_daemon.units import format_size

TICK_S = 0.01
"""How often the file ``available`` is rewritten: more often than balloond reads it, at any
``--speed``."""

STATUS_S = 0.05
FRAME_S = 0.1
DEADLINE_S = 57.0
"""The longest time that the demonstration may take, start and checks included: the rest of a
minute is for its end."""

PATIENCE_S = 15.0
"""How much longer than planned the load may stay, to wait for relief and the check of all
pages."""

CALM_AFTER_S = 1.0
"""How long the demonstration goes on once the balloon is empty."""


@dataclass(slots=True)
class Figures:
    """What ``--json`` prints: names and units are part of the interface.

    Attributes:
        max_balloon_bytes: the largest balloon that the balloon policy allows for this guest.
        peak_balloon_bytes: the balloon's largest size in this run.
        freed_bytes: the most by which the host memory of the guest fell below its initial amount.
        low_memory_events: steps up by the daemon because the host was low.
        seconds_to_relief: the longest time without a break in which the host was low.
        pages_checked: the guest's pages compared whole, under pressure and at the end.
        pages_corrupt: checked pages that differ from the guest's content.
        final_balloon_bytes: the balloon's size at the end.
        ok: whether the run was a success.
    """

    max_balloon_bytes: int
    peak_balloon_bytes: int = 0
    freed_bytes: int = 0
    low_memory_events: int = 0
    seconds_to_relief: float = 0.0
    pages_checked: int = 0
    pages_corrupt: int = 0
    final_balloon_bytes: int = 0
    ok: bool = False


@dataclass(slots=True)
class Performance:
    """One run of a story; its figures are valid however far the run came.

    Args:
        story: the script.
        directory: an empty directory of its own.
        show: called ten times a second with all samples so far.
    """

    story: Story
    directory: Path
    show: Callable[[list[Sample]], None]
    samples: list[Sample] = field(default_factory=list)
    log_tail: str = ""
    _low_memory_events: int = 0
    _checks: list[tuple[int, int]] = field(default_factory=list)

    def play(self) -> None:
        """Starts all processes, runs the script, and ends all processes.

        Raises:
            DemoError: the script did not come to its end, or failed.
        """
        deadline = time.monotonic() + DEADLINE_S
        host = PretendedHost(self.directory / "low-mem", self.story, self.samples)
        with ExitStack() as stack:
            daemon = DemoDaemon(self.directory, self.story)
            stack.callback(daemon.close)
            guest = DemoGuest(daemon.socket, self.directory, self.story)
            stack.callback(guest.close)
            self._checks = guest.checks
            try:
                guest.wait_ready()
                self._loop(host, daemon, guest, deadline)
            except DemoError:
                # If the guest has lost its device, balloond has often died before. `must_live`
                # then raises an error that says so.
                daemon.must_live(wait_s=0.5)
                raise
            finally:
                self._low_memory_events = daemon.low_memory_events
                self.log_tail = daemon.tail()
        judge(self.samples, self._checks)

    def _loop(
        self, host: PretendedHost, daemon: DemoDaemon, guest: DemoGuest, deadline: float
    ) -> None:
        began = time.monotonic()
        next_status = next_frame = began
        # On a slow machine, the host's relief and the guest's check of its pages take longer than
        # the story has time for. So the story's clock stops when the load is to end, until both
        # are done, for at most PATIENCE_S.
        load_leaves_s = self.story.start_s(Phase.LEAVES)
        held_s = 0.0
        relieved = False
        checks_asked = 0
        done_at: float | None = None
        while done_at is None or time.monotonic() < done_at or len(guest.checks) < checks_asked:
            guest.look(TICK_S)
            daemon.look()
            now = time.monotonic()
            script_s = now - began - held_s
            if script_s >= load_leaves_s and held_s < PATIENCE_S and not relieved:
                held_s += script_s - load_leaves_s
                script_s = load_leaves_s - TICK_S
            sample = host.sample(now - began, script_s, guest.held_bytes(), guest.actual_bytes)
            relieved = relieved or (not sample.is_low and len(guest.checks) == 1)
            if now >= next_status:
                guest.ask_status()
                next_status = now + STATUS_S
            if now >= next_frame:
                self.show(self.samples)
                next_frame = now + FRAME_S
            if sample.phase is Phase.HOLDS and checks_asked == 0:
                checks_asked += 1
                guest.ask_check()
            if sample.phase is Phase.RETURNS and sample.balloon_bytes == 0 and done_at is None:
                checks_asked += 1
                guest.ask_check()
                done_at = now + CALM_AFTER_S
            if now > deadline:
                raise DemoError(
                    f"after {DEADLINE_S:g} s the balloon still has "
                    f"{format_size(sample.balloon_bytes)}"
                )
        self.show(self.samples)

    def figures(self, *, ok: bool) -> Figures:
        """The run's figures so far."""
        return Figures(
            max_balloon_bytes=self.story.max_balloon_bytes,
            peak_balloon_bytes=max((s.balloon_bytes for s in self.samples), default=0),
            freed_bytes=freed_bytes(self.samples),
            low_memory_events=self._low_memory_events,
            seconds_to_relief=round(seconds_to_relief(self.samples), 3),
            pages_checked=sum(checked for checked, _ in self._checks),
            pages_corrupt=sum(corrupt for _, corrupt in self._checks),
            final_balloon_bytes=self.samples[-1].balloon_bytes if self.samples else 0,
            ok=ok,
        )


def freed_bytes(samples: Sequence[Sample]) -> int:
    """The most by which the host memory of the guest fell below its initial amount."""
    if not samples:
        return 0
    return samples[0].guest_bytes - min(sample.guest_bytes for sample in samples)


def seconds_to_relief(samples: Sequence[Sample]) -> float:
    """The longest time without a break in which the host was low on memory."""
    longest_s, since_s = 0.0, None
    for sample in samples:
        if since_s is not None:
            longest_s = max(longest_s, sample.at_s - since_s)
        if not sample.is_low:
            since_s = None
        elif since_s is None:
            since_s = sample.at_s
    return longest_s


def judge(samples: Sequence[Sample], checks: Sequence[tuple[int, int]]) -> None:
    """Checks that a whole run was a success.

    Args:
        samples: all samples of the run.
        checks: for each check of the guest's pages, how many were compared and how many differ.

    Raises:
        DemoError: the run was no success; says why.
    """
    if not any(sample.is_low for sample in samples):
        raise DemoError("the host never ran low on memory, so there was nothing to show")
    held = [sample for sample in samples if sample.phase is Phase.HOLDS]
    if not held or held[-1].is_low:
        raise DemoError("the host was still low on memory when the load began to leave")
    relief = held[-1]
    freed = samples[0].guest_bytes - relief.guest_bytes
    if relief.available_bytes - freed >= MARGIN_BYTES:
        raise DemoError(
            f"the host got out of low memory, but not by pages really freed: "
            f"the guest's memory shrank by {format_size(freed)} only"
        )
    corrupt = sum(count for _, count in checks)
    if corrupt:
        raise DemoError(f"{corrupt:,} pages that the guest had kept were not as it left them")
    if not checks or not all(checked for checked, _ in checks):
        raise DemoError("no page of the guest's was checked")
    if samples[-1].balloon_bytes:
        raise DemoError(f"the balloon still has {format_size(samples[-1].balloon_bytes)}")
