"""Wakes a driven VM's task: for the next sample, for its VMM's news, or for a call to be made.

Runs in the controller.
"""

import asyncio

from balloon_daemon.guests.driven.control import Notice

IDLE_S = 30.0
"""Seconds between two samples of a VM that nobody watches, unless its VMM sends news."""

DRIVER_S, YOUNG_S = 5.0, 120.0
"""Seconds between two samples of a VM until its guest's driver listens, and for how many seconds
after the VM was found or reset: a driver that does not listen by then is probably not there."""

STEP_S = 1.0
"""Seconds between two samples of a VM whose balloon is taken again in steps."""

GIVING_BACK_S = 0.25
"""Seconds between two samples of a VM that gives its balloon back at balloond's end."""

LEAST_GAP_S = 0.1
"""The shortest time between two samples: a VMM may send news at any rate."""

NEWS_PER_S = 400.0
"""How many samples a second may be caused by the notices of all VMs of one user: an eighth of the
time of the thread that serves all VMs, as a sample takes 0.3 ms."""

SPREAD = 0.618034
"""The golden ratio's fraction: its multiples, without their whole part, spread the VMs' samples
evenly over a period, however many VMs there are."""


class Bell:
    """Wakes the one task that waits for it."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wakes the task, if it waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait_until(self, at_s: float) -> None:
        """Waits until this time, on the loop's clock, or until the bell rings."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(at_s, self.ring)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


class Notices:
    """The notices of a VMM (``control.Notice``), collected until its VM's task looks at them.

    Args:
        user: the user of the VMM's process; -1: unknown.
    """

    def __init__(self, user: int = -1) -> None:
        self.user = user
        self.pending = set[Notice]()
        self.bell: Bell | None = None

    def put(self, notice: Notice) -> None:
        """Notes a notice, and wakes the VM's task; a ``Noticed``."""
        self.pending.add(notice)
        if self.bell is not None:
            self.bell.ring()


class Schedule:
    """When a VM is sampled.

    Args:
        number: the VM's number, which spreads the samples of VMs over a period (``SPREAD``).
        now_s: the time.

    Attributes:
        due_s: when the next sample is due.
        wanted_s: how often the VM is to be watched; None: it is not watched.
        told_s: how often its guest was told to send statistics.
        young_until_s: until when its driver is expected to begin to listen.
    """

    def __init__(self, number: int, now_s: float) -> None:
        self._share = number * SPREAD % 1.0
        self._sampled_s = now_s
        self.wanted_s: float | None = None
        self.told_s: float | None = None
        self.young_until_s = now_s + YOUNG_S
        self._giving_back = False
        self.due_s = now_s + DRIVER_S * self._share

    def watch(self, every_s: float | None, now_s: float) -> None:
        """Sets how often the VM is watched; None: not at all."""
        self.wanted_s = every_s
        if every_s is not None:
            self.due_s = min(self.due_s, now_s + every_s * self._share)

    def give_back(self, now_s: float) -> None:
        """Samples often from now on, as the VM gives its balloon back at balloond's end."""
        self._giving_back = True
        self.watch(None, now_s)
        self.due_s = min(self.due_s, now_s + GIVING_BACK_S)

    def hurry(self, now_s: float, vms: int = 1) -> None:
        """Makes a sample due at once, or a while after the last one (``LEAST_GAP_S``).

        Args:
            now_s: the time.
            vms: how many VMs share ``NEWS_PER_S``.
        """
        gap_s = max(LEAST_GAP_S, vms / NEWS_PER_S)
        self.due_s = min(self.due_s, max(now_s, self._sampled_s + gap_s))

    def sampled(self, now_s: float, *, has_driver: bool, retaking: bool) -> None:
        """Notes a sample at this time, and sets the next one's.

        Args:
            now_s: the time.
            has_driver: whether a balloon driver listens in the guest.
            retaking: whether the balloon is given back and taken again in steps.
        """
        every_s = IDLE_S if self.wanted_s is None else self.wanted_s
        if self._giving_back:
            every_s = GIVING_BACK_S
        elif not has_driver and now_s < self.young_until_s:
            every_s = min(every_s, DRIVER_S)
        elif retaking:
            every_s = min(every_s, STEP_S)
        self._sampled_s = now_s
        # Count from when this sample was due, not from now: samples of several VMs that a busy
        # event loop has delayed to the same moment would stay together from then on.
        self.due_s = max(self.due_s + every_s, now_s + every_s / 2)
