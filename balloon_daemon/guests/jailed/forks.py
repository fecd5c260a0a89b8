"""Has all VMs' devices forked, one after another, while the event loop goes on.

Runs in the controller. A fork takes two wake-ups of other processes, the template's and the
device's: milliseconds where all processors are busy, seconds where the template hangs. Nobody
waits for it: the request is sent, and the answer is read when it has come.

A device touches nothing of its guest before its first order, so one that is wanted no longer is
simply never given one: its tube is closed, and whatever comes of the request ends by itself. Hence
nobody waits for a fork that is under way, neither a VMM that stops its rings nor a controller that
leaves.

Users take turns, and each has a share of the template's time (``peers.py``): neither a user's many
VMs nor a VMM that attaches and leaves in a loop holds up another user's device for long.
"""

import asyncio
import contextlib
import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from balloon_daemon.device.process import AskedFor, DeviceProcess, NotYetError, ask_for
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.device.template import ANSWER_WITHIN_S
from balloon_daemon.guests.jailed.peers import Peer

REAP_EACH_S = 0.02
"""How often to look whether a process that was killed has ended, while there is one."""


class Forker(Protocol):
    """What ``Forks`` needs of a ``Template``."""

    def ask(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> None: ...

    def fileno(self) -> int: ...

    def answer(self) -> int | None: ...

    def give_up(self) -> OSError: ...

    def reap(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A device that a guest wants. One of ``forked`` and ``failed`` is called, unless it is
    dropped or has no spec.

    Attributes:
        spec: called when its turn has come; None: there is nothing to serve.
        forked: called with the device, which waits for its first order.
        failed: called with the error where none is forked.
    """

    spec: Callable[[], DeviceSpec | None]
    forked: Callable[[DeviceProcess], None]
    failed: Callable[[OSError], None]


class PendingFork:
    """A wanted device that has not come yet.

    Args:
        wanted: whose it is.
        line: the waiting requests of its user, which it joins.
    """

    def __init__(self, wanted: Wanted, line: "OrderedDict[PendingFork, None]") -> None:
        self.wanted: Wanted | None = wanted
        """None once it is dropped or has come."""
        self.asked: AskedFor | None = None
        """The device, once the template was asked for it."""
        self._line = line
        line[self] = None

    def drop(self) -> None:
        """Wants the device no longer; a device that comes nevertheless touches nothing."""
        self.wanted = None
        self._line.pop(self, None)
        if self.asked is not None:
            self.asked.close()


Ask = Callable[[Wanted], PendingFork]
"""Asks for a device; the answer comes in a later turn of the event loop."""


class _Line(NamedTuple):
    """The requests of one user that wait."""

    peer: Peer
    waiting: "OrderedDict[PendingFork, None]"


class _Sent(NamedTuple):
    """The request that the template has.

    Attributes:
        fd: the descriptor that becomes readable with the answer.
        began_s: when it was sent, in the event loop's time.
        late: ends the template where it does not answer.
    """

    pending: PendingFork
    peer: Peer
    fd: int
    began_s: float
    late: asyncio.TimerHandle


class Forks:
    """The template, as all VMs of an event loop share it.

    Args:
        template: forks; nobody else asks it for anything meanwhile.
        before_first: called once, before the first device is asked for.
    """

    def __init__(self, template: Forker, before_first: Callable[[], None] = lambda: None) -> None:
        self._template = template
        self._before_first: Callable[[], None] | None = before_first
        self._lines: dict[int, _Line] = {}
        """By user; the user at the beginning is next."""
        self._sent: _Sent | None = None
        self._next: asyncio.TimerHandle | None = None
        self._no_template_until_s = 0.0
        self._strays: list[int] = []
        """Devices that were dropped while they were forked, to be reaped."""
        self._reaping: asyncio.TimerHandle | None = None
        self._closed = False

    def ask(self, peer: Peer, wanted: Wanted) -> PendingFork:
        """Asks for a device of one user; never calls back before it has returned."""
        line = self._lines.setdefault(peer.uid, _Line(peer, OrderedDict()))
        pending = PendingFork(wanted, line.waiting)
        self._go_on()
        return pending

    def close(self) -> None:
        """Forks nothing more, and drops all requests: this controller leaves its VMs to another,
        so it must give no device an order that the stored state knows nothing of."""
        self._closed = True
        for line in self._lines.values():
            for pending in list(line.waiting):
                pending.drop()
        if self._sent is not None:
            self._sent.pending.drop()

    # --- whose turn it is -----------------------------------------------------------------------

    def _go_on(self, after_s: float = 0.0) -> None:
        """Looks whose turn it is, unless the template has a request already."""
        if self._sent is not None or self._closed or not self._lines:
            return
        if self._next is not None:
            self._next.cancel()
        loop = asyncio.get_running_loop()
        at_s = max(loop.time() + after_s, self._no_template_until_s)
        self._next = loop.call_at(at_s, self._take_turn)

    def _take_turn(self) -> None:
        self._next = None
        rests_s: list[float] = []
        for uid, line in list(self._lines.items()):
            if not line.waiting:
                del self._lines[uid]
            elif rest_s := line.peer.forks_again_in_s():
                rests_s.append(rest_s)
            else:
                # Its next request comes after those of all other users.
                self._lines[uid] = self._lines.pop(uid)
                self._serve(line)
                return
        if rests_s:
            self._go_on(min(rests_s))

    def _serve(self, line: _Line) -> None:
        """Asks for the first device of a line."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        pending, _ = line.waiting.popitem(last=False)
        try:
            if self._send(pending):
                late = loop.call_later(ANSWER_WITHIN_S, self._late)
                fd = self._template.fileno()
                self._sent = _Sent(pending, line.peer, fd, began_s, late)
                loop.add_reader(fd, self._answered)
        except NotYetError as err:
            self._no_template_until_s = loop.time() + err.retry_s
            line.waiting[pending] = None
            line.waiting.move_to_end(pending, last=False)
        except OSError as err:
            self._fail(pending, err)
        finally:
            if self._sent is None:
                line.peer.charge_fork(loop.time() - began_s)
                self._look_after_ended()
                self._go_on()

    def _send(self, pending: PendingFork) -> bool:
        """Sends a request; False where its guest has nothing to serve."""
        assert pending.wanted is not None
        spec = pending.wanted.spec()
        if spec is None:
            return False
        if self._before_first is not None:
            self._before_first()
            self._before_first = None
        _, pending.asked = ask_for(spec, self._template.ask)
        return True

    # --- the answer -----------------------------------------------------------------------------

    def _late(self) -> None:
        self._done(self._template.give_up)

    def _answered(self) -> None:
        self._done(self._template.answer)

    def _done(self, outcome: Callable[[], int | OSError | None]) -> None:
        """Ends the request that the template has."""
        assert self._sent is not None
        sent, loop = self._sent, asyncio.get_running_loop()
        # Before anything else: the template's socket may be closed next, and its number another
        # file's.
        loop.remove_reader(sent.fd)
        try:
            answer = outcome()
        except OSError as err:
            answer = err
        if answer is None:
            loop.add_reader(sent.fd, self._answered)
            return
        self._sent = None
        sent.late.cancel()
        sent.peer.charge_fork(loop.time() - sent.began_s)
        try:
            if isinstance(answer, OSError):
                self._fail(sent.pending, answer)
            else:
                self._born(sent.pending, answer)
        finally:
            self._look_after_ended()
            self._go_on()

    def _fail(self, pending: PendingFork, err: OSError) -> None:
        wanted = pending.wanted
        pending.drop()
        if wanted is not None:
            wanted.failed(err)

    def _born(self, pending: PendingFork, pid: int) -> None:
        wanted, pending.wanted = pending.wanted, None
        assert pending.asked is not None
        if wanted is None:
            self._strays.append(pid)
            return
        try:
            device = pending.asked.device(pid)
        except OSError as err:
            self._strays.append(pid)
            pending.asked.close()
            wanted.failed(err)
        else:
            wanted.forked(device)

    def _look_after_ended(self) -> None:
        """Ends and reaps devices that were dropped, and reaps templates that were killed."""
        if self._reaping is None:
            self._reap()

    def _reap(self) -> None:
        self._reaping = None
        for pid in self._strays:
            # Not reaped yet, so the number is still that of this child.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._strays = [pid for pid in self._strays if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        if not self._template.reap() or self._strays:
            loop = asyncio.get_running_loop()
            self._reaping = loop.call_later(REAP_EACH_S, self._reap)
