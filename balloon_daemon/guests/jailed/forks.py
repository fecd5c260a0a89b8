"""Has the template process (``device/template.py``) fork all VMs' devices, and never blocks.

Runs in the controller. For a fork the scheduler has to run two other processes, the template and
the new device: that takes milliseconds if all processors are busy, and seconds if the template
hangs. So the controller sends a request and does not wait; it reads the answer when the template's
socket becomes readable. The template gets one request at a time.

A device touches nothing of its guest before its first order. If a device is no longer wanted while
it is being forked, the controller closes its tube and sends no order, and the device ends by
itself. So nobody waits for the end of a fork, neither a VMM that stops its rings nor a controller
that hands over its VMs.

Users take turns, and each user has a share of the template's time (``peers.py``): neither a user's
many VMs nor a VMM that connects and hangs up in a loop delays another user's device for long.
"""

import asyncio
import contextlib
import errno
import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from balloon_daemon.device.process import AskedFor, DeviceProcess, NotYetError, ask_for
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.device.template import ANSWER_WITHIN_S
from balloon_daemon.guests.jailed.peers import MOST_HANGING, Peer
from balloon_daemon.named_tuple import NamedTuple

REAP_EACH_S = 0.02
"""Seconds between two checks (waitpid(2)) whether killed processes have ended, while there are
any."""


class Forker(Protocol):
    """The methods of ``Template`` that ``Forks`` uses."""

    def ask(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> None: ...

    def fileno(self) -> int: ...

    def answer(self) -> int | None: ...

    def give_up(self) -> OSError: ...

    def reap(self) -> bool: ...

    def tend(self) -> None: ...


class Wanted(NamedTuple):
    """A guest's request for a device. Either ``forked`` or ``failed`` is called, unless the
    request is dropped or ``spec`` returns None.

    Attributes:
        spec: called when the request's turn has come; returns None if no vring is ready.
        forked: called with the device, which waits for its first order.
        failed: called with the error if no device was forked.
    """

    spec: Callable[[], DeviceSpec | None]
    forked: Callable[[DeviceProcess], None]
    failed: Callable[[OSError], None]


class PendingFork:
    """A request for a device that is not forked yet.

    Args:
        wanted: the request.
        line: the waiting requests of the same user; this request is added.
    """

    def __init__(self, wanted: Wanted, line: "OrderedDict[PendingFork, None]") -> None:
        self.wanted: Wanted | None = wanted
        """The request; None once it is dropped or the device is forked."""
        self.asked: AskedFor | None = None
        """The controller's ends of the device's tube and stderr pipe; None until the request is
        sent to the template."""
        self._line = line
        line[self] = None

    def drop(self) -> None:
        """Drops the request. If the device is forked nevertheless, it gets no order, and touches
        nothing of its guest."""
        self.wanted = None
        self._line.pop(self, None)
        if self.asked is not None:
            self.asked.close()


Ask = Callable[[Wanted], PendingFork]
"""Asks for a device; the answer comes in a later turn of the event loop."""


class _Line(NamedTuple):
    """One user's requests that were not sent to the template yet."""

    peer: Peer
    waiting: "OrderedDict[PendingFork, None]"


class _Sent(NamedTuple):
    """The request that was sent to the template, which has not answered yet.

    Attributes:
        fd: the descriptor that becomes readable with the answer.
        began_s: when the request was sent, in the event loop's time.
        late: kills the template if it does not answer in time.
    """

    pending: PendingFork
    peer: Peer
    fd: int
    began_s: float
    late: asyncio.TimerHandle


class Forks:
    """All VMs' requests to the template process.

    Args:
        template: forks the devices; only this object sends it requests.
        before_first: called once, before the first request.
    """

    def __init__(self, template: Forker, before_first: Callable[[], None] = lambda: None) -> None:
        self._template = template
        self._before_first: Callable[[], None] | None = before_first
        self._lines: dict[int, _Line] = {}
        """Waiting requests by user id; the first user's turn is next."""
        self._sent: _Sent | None = None
        self._next: asyncio.TimerHandle | None = None
        self._no_template_until_s = 0.0
        self._strays: list[tuple[int, Peer]] = []
        """Process ids of devices that nobody wants or can watch, to be killed and reaped, each
        with its user."""
        self._reaping: asyncio.TimerHandle | None = None
        self._closed = False

    def ask(self, peer: Peer, wanted: Wanted) -> PendingFork:
        """Asks for a device for a VM of this user. Calls the functions in ``wanted`` only after
        ``ask`` has returned."""
        line = self._lines.setdefault(peer.uid, _Line(peer, OrderedDict()))
        pending = PendingFork(wanted, line.waiting)
        self._go_on()
        return pending

    def tend(self) -> None:
        """Replaces a template that has ended; a template that has a request in hand is watched
        anyway."""
        if self._sent is None and not self._closed:
            self._template.tend()

    def close(self) -> None:
        """Sends no further request to the template, and drops all requests. Another controller
        takes over the VMs by their stored states, so no device may begin that no state names."""
        self._closed = True
        for line in self._lines.values():
            for pending in list(line.waiting):
                pending.drop()
        if self._sent is not None:
            self._sent.pending.drop()

    # --- whose turn it is -----------------------------------------------------------------------

    def _go_on(self, after_s: float = 0.0) -> None:
        """Schedules the next request, unless the template has not answered the last one yet."""
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
                # Move this user to the end: all other users' turns come before its next one.
                self._lines[uid] = self._lines.pop(uid)
                self._serve(line)
                return
        if rests_s:
            self._go_on(min(rests_s))

    def _serve(self, line: _Line) -> None:
        """Sends the first request of a user to the template."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        pending, _ = line.waiting.popitem(last=False)
        try:
            if line.peer.hanging >= MOST_HANGING:
                raise OSError(errno.EAGAIN, f"{line.peer.hanging} of its user's do not end")
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
        """Sends a request; False where its guest has no vring to serve."""
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
        """Handles the template's answer, or the lack of an answer.

        Args:
            outcome: returns the device's process id, an error, or None: no answer has come yet.
        """
        assert self._sent is not None
        sent, loop = self._sent, asyncio.get_running_loop()
        # Stop watching the descriptor before anything else: ``outcome`` may close the template's
        # socket, and the kernel may then use the number for another file.
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
        try:
            if isinstance(answer, OSError):
                self._fail(sent.pending, answer)
            else:
                self._born(sent.pending, sent.peer, answer)
        finally:
            # Charge the fork only now, so that the charge includes the time in which the guest
            # begins with its device (``_born``): where the VMM has sent another memory table, the
            # table's files are looked at, of which there may be 256, and perhaps the host's mounts
            # are read.
            sent.peer.charge_fork(loop.time() - sent.began_s)
            self._look_after_ended()
            self._go_on()

    def _fail(self, pending: PendingFork, err: OSError) -> None:
        wanted = pending.wanted
        pending.drop()
        if wanted is not None:
            wanted.failed(err)

    def _born(self, pending: PendingFork, peer: Peer, pid: int) -> None:
        wanted, pending.wanted = pending.wanted, None
        assert pending.asked is not None
        if wanted is None:
            self._stray(pid, peer)
            return
        try:
            device = pending.asked.device(pid)
        except OSError as err:
            self._stray(pid, peer)
            pending.asked.close()
            wanted.failed(err)
        else:
            wanted.forked(device)

    def _stray(self, pid: int, peer: Peer) -> None:
        # A device that was given no order may hang at its end, too: where nobody else has an
        # eventfd open any more, its end is that eventfd's last close (``closing.py``).
        self._strays.append((pid, peer))
        peer.hold_hanging(1)

    def _look_after_ended(self) -> None:
        """Kills and reaps devices that nobody wants, and reaps templates that were killed."""
        if self._reaping is None:
            self._reap()

    def _reap(self) -> None:
        self._reaping = None
        strays, self._strays = self._strays, []
        for pid, peer in strays:
            # The child is not reaped yet, so no other process can have its process id.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                self._strays.append((pid, peer))
            else:
                peer.hold_hanging(-1)
        if not self._template.reap() or self._strays:
            loop = asyncio.get_running_loop()
            self._reaping = loop.call_later(REAP_EACH_S, self._reap)
