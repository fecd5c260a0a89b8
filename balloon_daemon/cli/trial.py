"""Runs one real device process through its whole work, jailed like every device, for ``--check``.

Whether a device can run on this host under this seccomp policy depends on more than the policy's
text: on the kernel's clock source, which the vDSO may not serve, on the C library, on the
namespaces and ids that are allowed. So a trial device is forked with a memfd of ours as guest
memory, gets a target and one buffer of pages, and the kernel is asked whether the pages are free.
At the end the device makes CPython allocate each kind of memory that it may need in a long life
(``device/rehearsal.py``), because Python versions differ in the system calls for that.
"""

import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import NoReturn

from balloon_daemon.device.process import Fork, spawn
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.errors import TrialError
from balloon_daemon.linux.jail import Identity
from balloon_daemon.linux.kernel_log import find_seccomp_kill
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.seccomp.filter import syscall_name
from balloon_daemon.tube.messages import Command, Fault, FaultKind, Ready, Stopped, Target, Up
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import CONFIG_CHANGE_MSG
from balloon_daemon.virtio.balloon import BalloonQueue
from balloon_daemon.virtio.split_queue import (
    DESCRIPTOR,
    USED_ELEMENT,
    available_bytes,
    descriptors_bytes,
)

WITHIN_S = 5.0
"""After this time a trial has failed; on an idle machine it takes some 20 ms."""

END_WITHIN_S = 1.0
"""How long to wait for a killed device to end."""

GIVEN_BYTES = 2 << 20
"""Bytes that the trial's guest puts into its balloon: a huge page's size, so that the kernel frees
all of it even where memfds consist of huge pages."""

NAME_WITHIN_S = 0.5
"""How long to wait for the kernel's record of a seccomp kill, which a thread of the kernel writes
later."""

CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")

_CLOCK_CALLS = {"clock_gettime", "gettimeofday", "time"}
_VDSO_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "xen"}
"""The clock sources that the vDSO of x86 can read without a system call: those with a
vdso_clock_mode in arch/x86."""

# The layout of the guest's memory: the pages that the guest gives, a page for its ring, and a page
# for its buffer of PFNs.
_RING = GIVEN_BYTES
_BUFFER = _RING + PAGE_SIZE
_MEMORY_BYTES = _BUFFER + PAGE_SIZE
_FRONTEND = FrontendAddr(0x7F00_0000_0000)
_RING_SIZE = 2
_AVAILABLE = _RING + descriptors_bytes(_RING_SIZE)
_USED = -(-(_AVAILABLE + available_bytes(_RING_SIZE)) // 4) * 4
_PFNS = GIVEN_BYTES // PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Outcome:
    """The times of a trial that succeeded.

    Attributes:
        ready_s: from the fork until the device was jailed and ready, in seconds.
        given_s: from the kick until the device's answer, in seconds.
    """

    ready_s: float
    given_s: float


def try_device(identity: Identity | None, fork: Fork) -> Outcome:
    """Forks a trial device as the controller would, and lets it do its work once.

    Takes ``WITHIN_S`` at most, and ``END_WITHIN_S`` for the end of a device that hangs.

    Args:
        identity: the user that the device becomes; None: it keeps its user.
        fork: forks the device.

    Raises:
        TrialError: in one line, how the trial failed, and the remedy.
    """
    with ExitStack() as stack:
        try:
            trial = _Trial(stack, identity, fork)
        except OSError as err:
            raise TrialError(f"a trial device cannot be made: {err.strerror}") from err
        return trial.run()


class _Trial:
    """A trial's guest and its device. The guest's memory is the pages that it gives, a page for
    its ring and a page for its PFNs.

    Args:
        stack: closes all descriptors opened here, and ends the device.

    Raises:
        OSError: no memory, descriptor or process is free.
    """

    def __init__(self, stack: ExitStack, identity: Identity | None, fork: Fork) -> None:
        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        self._memory = own(create_memfd("balloond-trial", size_bytes=_MEMORY_BYTES))
        os.pwrite(self._memory, b"\1" * GIVEN_BYTES, 0)
        os.pwrite(self._memory, struct.pack(f"<{_PFNS}I", *range(_PFNS)), _BUFFER)
        os.pwrite(self._memory, DESCRIPTOR.pack(_BUFFER, 4 * _PFNS, 0, 0), _RING)
        self._kick = own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._call = own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._channel, theirs = socket.socketpair()
        stack.callback(self._channel.close)
        stack.callback(theirs.close)
        self._channel.setblocking(False)
        self._reports: list[Up] = []
        self._code: int | None = None
        self._began = monotonic()
        self._device = spawn(
            DeviceSpec(
                name="balloon-trial",
                regions=(
                    RegionSpec(GuestAddr(0), _FRONTEND, _MEMORY_BYTES, 0, PAGE_SIZE, self._memory),
                ),
                vrings=(
                    VringSpec(
                        0,
                        BalloonQueue.INFLATEQ,
                        _RING_SIZE,
                        FrontendAddr(_FRONTEND + _RING),
                        FrontendAddr(_FRONTEND + _AVAILABLE),
                        FrontendAddr(_FRONTEND + _USED),
                        self._kick,
                        self._call,
                    ),
                ),
                channel_fd=theirs.fileno(),
                config_change=CONFIG_CHANGE_MSG,
                identity=identity,
                must_tell_host=True,
                rehearse=True,
            ),
            fork,
        )
        stack.callback(self._end)

    def run(self) -> Outcome:
        """Has the device do each part of its work, in the order in which a guest would ask for it.

        Raises:
            TrialError: the device ended, or did not do its work.
        """
        tube = self._device.tube
        self._wait(tube.fileno(), lambda: self._said(Ready), "was not ready")
        ready_s = monotonic() - self._began
        tube.send(Target(GIVEN_BYTES))
        self._wait(self._channel.fileno(), self._told, "did not tell its VMM of a target")
        # Wait for the call eventfd. Every device signals it once at its start, because an earlier
        # device may have died before it did.
        self._wait(self._call, self._called, "did not look at its ring")
        # Give one chain: set the available ring's ``idx`` to 1. The ring's first entry names the
        # chain's head, 0, and need not be written, as it is 0 already.
        os.pwrite(self._memory, struct.pack("<H", 1), _AVAILABLE + 2)
        kicked = monotonic()
        os.eventfd_write(self._kick, 1)
        self._wait(self._call, self._called, "did not answer a buffer")
        given_s = monotonic() - kicked
        self._check_given()
        # Wait until the device has read the kick eventfd too. The answered buffer does not prove
        # that: a device looks at its rings when it starts, and may have found the buffer before
        # the kick.
        self._wait(tube.fileno(), self._kick_taken, "did not take its guest's kick")
        tube.send(Command.STOP)
        self._wait(tube.fileno(), lambda: self._said(Stopped), "did not stop when told")
        self._wait(self._device.pidfd.fileno(), lambda: self.exit_code() == 0, "did not end")
        return Outcome(ready_s, given_s)

    def _wait(self, fd: int, happened: Callable[[], bool], missing: str) -> None:
        """Waits until ``happened`` is true; ``fd`` and the device's end wake this process.

        Some changes wake nobody, so ``happened`` is also checked every 5 ms.
        """
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(self._device.pidfd.fileno(), select.POLLIN)
        while not happened():
            left_s = self._began + WITHIN_S - monotonic()
            if left_s <= 0:
                raise TrialError(
                    f"a trial device {missing} within {WITHIN_S:.0f} s; is the machine overloaded?"
                )
            ready = dict(poller.poll(min(left_s, 0.005) * 1000))
            if self._device.pidfd.fileno() in ready and not happened():
                self._raise_death()

    def _said(self, kind: type[Up]) -> bool:
        while reports := self._device.tube.receive():
            self._reports += reports
        return any(isinstance(report, kind) for report in self._reports)

    def _told(self) -> bool:
        try:
            return self._channel.recv(len(CONFIG_CHANGE_MSG)) == CONFIG_CHANGE_MSG
        except BlockingIOError:
            return False

    def _called(self) -> bool:
        try:
            return os.eventfd_read(self._call) > 0
        except BlockingIOError:
            return False

    def _kick_taken(self) -> bool:
        poller = select.poll()
        poller.register(self._kick, select.POLLIN)
        return not poller.poll(0)

    def exit_code(self) -> int | None:
        """The device's exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = self._device.reap()
        return self._code

    def _end(self) -> None:
        """Kills the device if it still runs, and reaps it."""
        self._device.kill()
        if self.exit_code() is None:
            # Wait only for a limited time: a killed process that is busy in the kernel ends only
            # after that work is done, perhaps never.
            select.select([self._device.pidfd], [], [], END_WITHIN_S)
            self.exit_code()
        self._device.close()

    def _check_given(self) -> None:
        """Checks in the ring and with the kernel that the pages were freed.

        Raises:
            TrialError: the pages were not freed.
        """
        (used_idx,) = struct.unpack("<H", os.pread(self._memory, 2, _USED + 2))
        head, _ = USED_ELEMENT.unpack(os.pread(self._memory, USED_ELEMENT.size, _USED + 4))
        if (used_idx, head) != (1, 0):
            raise TrialError(f"a trial device answered chain {head} as number {used_idx}")
        if os.lseek(self._memory, 0, os.SEEK_DATA) >= GIVEN_BYTES:
            return
        self._said(Fault)
        refused = [
            os.strerror(report.code)
            for report in self._reports
            if isinstance(report, Fault) and report.kind is FaultKind.HOST
        ]
        why = refused[0] if refused else "it said nothing of an error"
        raise TrialError(
            f"the kernel did not free the memory that a trial device gave back: {why}"
        )

    def _raise_death(self) -> NoReturn:
        """Raises TrialError with the cause of death of a device that ended untimely."""
        code = self.exit_code()
        # Take the last line of the death record: it is the error at the end of a traceback, or the
        # step of the rehearsal in which the device died.
        said = self._device.read_death_record().rpartition(" | ")[2]
        if code == -signal.SIGSYS:
            raise TrialError(f"a trial device {_forbidden(self._device.pid, said)}")
        if code is not None and code < 0:
            at = f" at {said}; {_another_python()}" if said else ""
            raise TrialError(
                f"a trial device was killed by signal {-code} ({signal.strsignal(-code)}){at}"
            )
        raise TrialError(f"a trial device ended with status {code}: {said or 'without a word'}")


def _forbidden(pid: int, step: str) -> str:
    """For which call the filter killed a device, and the remedy.

    Args:
        pid: the device's process.
        step: the step of the rehearsal; empty where the device died before it.
    """
    until, number = monotonic() + NAME_WITHIN_S, find_seccomp_kill(pid)
    while number is None and monotonic() < until:
        sleep(NAME_WITHIN_S / 20)
        number = find_seccomp_kill(pid)
    killed = "was killed by its seccomp policy for"
    call = "a system call that the kernel's log does not name here"
    name = None if number is None else syscall_name(number)
    if name is not None:
        call = f"{name}()"
    if step:
        return f"{killed} {call} at {step}; {_another_python()}"
    return f"{killed} {call}{_remedy(name)}"


def _remedy(name: str | None) -> str:
    """The remedy for a call that a device's normal work needs; None: the call is not known."""
    try:
        clock = CLOCK_SOURCE.read_text().strip()
    except OSError:
        clock = "unknown"
    no_vdso = f"the clock source is {clock}, which the vDSO does not serve; use tsc or kvm-clock"
    if name is None:
        if clock in _VDSO_CLOCKS:
            return "; compare the policy file with the one that came with balloond"
        return f"; perhaps clock_gettime(): {no_vdso}"
    if name not in _CLOCK_CALLS:
        return "; allow it in the policy file"
    if clock in _VDSO_CLOCKS:
        # The vDSO can serve this clock source, and the device would then need no system call to
        # read the clock. As the device made that system call, the vDSO is switched off (vdso=0),
        # or does not serve the source here.
        no_vdso = f"the vDSO does not serve the clock, though its source is {clock}"
    return f": {no_vdso}, or allow the call in the policy file"


def _another_python() -> str:
    """The remedy where this Python makes a call, later in a device's life, that the seccomp policy
    forbids."""
    return (
        f"run balloond with another Python than {platform.python_version()}, or allow it in the "
        "policy file"
    )
