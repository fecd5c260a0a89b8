"""The end of a controller: guests take their memory back, and tasks end or are abandoned."""

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping

from balloon_daemon.controller.vm import Vm
from balloon_daemon.events import (
    MemoryNotGivenBack,
    NotGivenBack,
    Publish,
    StillToGiveBack,
    VmDoesNotEnd,
)
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.linux.systemd import notify
from balloon_daemon.units import MIB, PAGE_SIZE, VmId, format_size

GIVE_BACK_WITHIN_S = 2.0
"""balloond no longer waits for a guest whose balloon has not shrunk for this time."""

LOOK_S = 0.1
"""How often to check whether the guests take memory back."""

SAY_S = 5.0
"""How often to publish how much is left in the balloons (``StillToGiveBack``)."""

END_WITHIN_S = 7.0
"""How long to wait until all guests' tasks have ended: longer than one can wait at its end for a
device of our own that does not stop (1 s), or for an earlier controller's device (5 s)."""

GONE_WITHIN_S = 12.0
"""After this time SIGALRM kills this process, if its event loop hangs and so does not notice that
``END_WITHIN_S`` are over."""

ASK_AGAIN_S = 1.0
MORE_TIME_S = 20.0
"""How often to ask the service manager for more time (EXTEND_TIMEOUT_USEC=, sd_notify(3)), and for
how much: more than the times above."""


class _Return:
    """A guest that is taking its memory back, and its progress."""

    def __init__(self, vm: Vm, now_s: float) -> None:
        self.vm = vm
        self.task = asyncio.ensure_future(vm.guest.give_back())
        # Count a balloon as no larger than the host's memory. Its size ``actual`` comes from the
        # guest: one that claims 16 TiB could pretend to shrink for a very long time, and so delay
        # balloond's end.
        host_bytes = os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE
        self._least_bytes = min(vm.balloon_bytes, host_bytes)
        # Count only a step of this size as progress. A well-behaved driver takes back 1 MiB at a
        # time, but a guest that takes back page by page would delay balloond's end for days.
        self._step_bytes = max(1, min(MIB, self._least_bytes // 1024))
        self.moved_at_s = now_s

    def look(self, now_s: float) -> None:
        """Notes progress if the balloon is smaller than ever before."""
        # Compare with the least size so far, not with the last size: a guest whose balloon shrinks
        # and grows in turn must not count as making progress.
        actual_bytes = self.vm.balloon_bytes
        if actual_bytes <= self._least_bytes - self._step_bytes:
            self._least_bytes = actual_bytes
            self.moved_at_s = now_s

    @property
    def is_late(self) -> bool:
        """Whether the guest's balloon is not empty, and will not be emptied after balloond's end.

        A paused guest, or one whose driver is not bound yet, empties its balloon later, without
        balloond, if its VMM has accepted the target and keeps it.
        """
        kept = Ability.KEPT_BY_VMM in self.vm.can
        told = kept and self.task.done() and self.vm.state is not GuestState.RUNNING
        return self.vm.balloon_bytes > 0 and not told


async def give_back(
    vms: Iterable[Vm], hurry: "asyncio.Future[None]", publish: Publish, *, ending: bool = True
) -> None:
    """Asks the guests to take their memory back, and waits while any of them makes progress.

    Args:
        vms: whose balloons are to shrink to nothing.
        hurry: done when the operator does not want to wait any longer.
        publish: called with each event to be published.
        ending: True: balloond ends, and the service manager is asked for the time that this takes.
    """
    loop = asyncio.get_running_loop()
    now_s = loop.time()
    everyone = [_Return(vm, now_s) for vm in vms]
    left, asked_at_s, said_at_s = everyone, -ASK_AGAIN_S, now_s
    try:
        while left and not hurry.done():
            if ending and now_s - asked_at_s >= ASK_AGAIN_S:
                asked_at_s = now_s
                left_bytes = sum(one.vm.balloon_bytes for one in left)
                notify(
                    f"EXTEND_TIMEOUT_USEC={MORE_TIME_S * 1e6:.0f}",
                    f"STATUS=giving {format_size(left_bytes)} back to {len(left)} guests",
                    within_s=0,
                )
            if now_s - said_at_s >= SAY_S:
                said_at_s = now_s
                for one in left:
                    publish(StillToGiveBack(one.vm.guest.vm, one.vm.balloon_bytes))
            tasks = [one.task for one in left]
            await asyncio.wait(
                [*tasks, hurry], timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
            )
            now_s = loop.time()
            left = [one for one in left if not one.task.done()]
            for one in left:
                one.look(now_s)
            if all(now_s - one.moved_at_s >= GIVE_BACK_WITHIN_S for one in left):
                break
    finally:
        for one in everyone:
            one.task.cancel()
    late = [one.vm for one in everyone if one.is_late]
    for vm in late:
        publish(NotGivenBack(vm.guest.vm, vm.balloon_bytes))
    if late:
        publish(MemoryNotGivenBack(len(late)))


async def end_tasks(tasks: "Mapping[VmId, asyncio.Task[None]]", publish: Publish) -> bool:
    """Cancels the guests' tasks and waits for them.

    Returns:
        False where some tasks do not end: to wait for them would take for ever.
    """
    # If the event loop itself hangs, SIGALRM ends this process after GONE_WITHIN_S, by its default
    # action.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, GONE_WITHIN_S)
    for task in tasks.values():
        task.cancel()
    if not tasks:
        return True
    _, late = await asyncio.wait(tasks.values(), timeout=END_WITHIN_S)
    for vm, task in tasks.items():
        if task in late:
            publish(VmDoesNotEnd(vm))
    return not late


def leave_at_once(status: int) -> None:
    """Ends this process without waiting for any task; devices and template end with it."""
    os._exit(status)
