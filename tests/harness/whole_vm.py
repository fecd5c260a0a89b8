"""A VM of a whole daemon: VMMs that differ from the usual, and the log about a VM."""

import fcntl
import os
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.vhost_user.messages import FrontendRequest, RegionDescription
from tests.harness.daemon import Daemon
from tests.harness.waiting import HANG_S

Shared = tuple[RegionDescription, int]
"""A memory region with the descriptor of its file."""

Twist = Callable[[bytes, Sequence[int]], tuple[bytes, Sequence[int]]]
"""(payload, descriptors) of a request -> those to send in their place."""


def run_until(guests: Sequence[FakeGuest], until: Callable[[], bool]) -> None:
    """Lets guests run until a condition holds. Raises TimeoutError."""
    run(guests, until, deadline_s=HANG_S)


def balloon_bytes(guest: FakeGuest) -> int:
    """The size of a guest's balloon."""
    return guest.driver.actual * PAGE_SIZE


ENDED = ("vmm-hung-up", "connection-closed", "connection-failed")
"""Event words of a VMM's connection that has ended."""

OF_VMM = (*ENDED, "request-not-served", "vm-not-served", "no-backend-channel", "memory-not-shared")
"""Event words for faults of a VMM, besides the end of its connection."""

LOST = ("pages-lost", "fruitless", "balloon-not-freed")
"""Event words for a balloon whose pages the host does not get."""


def facts(daemon: Daemon, *events: str) -> list[dict[str, Any]]:
    """The log's records of these events."""
    return [record for record in daemon.records() if record["event"] in events]


def said(daemon: Daemon, *events: str, vm: str = "vm1") -> list[str]:
    """The log's lines of one VM, of these events or of all."""
    return [
        record["message"]
        for record in daemon.records()
        if record.get("vm") == vm and (not events or record["event"] in events)
    ]


def decisions(daemon: Daemon, vm: str = "vm1") -> list[tuple[str, int]]:
    """The decisions on one VM: why, and the target in bytes."""
    return [
        (record["reason"], record["target_bytes"])
        for record in daemon.records()
        if record.get("vm") == vm and record["event"] == "decided"
    ]


def errors(daemon: Daemon) -> list[str]:
    """The log's errors, of all VMs."""
    return [record["message"] for record in daemon.records() if record["level"] == "error"]


def share_beside(guest: FakeGuest, *more: Shared) -> None:
    """Adds regions to a guest's memory table, from the next ``bind`` or ``resume`` on."""
    own = guest.ram.shared
    guest.ram.shared = lambda: [*own(), *more]  # type: ignore[method-assign]  # for this guest


def keep_ram_in(make: Callable[[int], int], size_bytes: int, patch: pytest.MonkeyPatch) -> None:
    """Gives the next guest of this size another kind of memory file than a memfd."""
    create = os.memfd_create

    def choose(name: str, flags: int = 0) -> int:
        return make(size_bytes) if name == "fake-guest-ram" else create(name, flags)

    patch.setattr(os, "memfd_create", choose)


def twist(
    frontend: FakeFrontend, request: FrontendRequest, how: Twist, patch: pytest.MonkeyPatch
) -> None:
    """Lets a VMM send other content whenever it sends this request."""
    tell = frontend.requests.tell

    def say(what: FrontendRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        if what is request:
            payload, fds = how(payload, fds)
        tell(what, payload, fds)

    patch.setattr(frontend.requests, "tell", say)


def ready_device(daemon: Daemon, vm: str) -> int | None:
    """The process id of a guest's present device, once it is jailed and ready.

    A front-end's last messages may still cause another device to replace it.
    """
    said = [r for r in daemon.records() if r.get("vm") == vm]
    ready = False
    for record in reversed(said):
        ready = ready or record["event"] == "device-ready"
        if record["event"] == "device-started":
            alive = os.path.exists(f"/proc/{record['pid']}")
            return int(record["pid"]) if ready and alive else None
    return None


def wait_for_device(guests: list[FakeGuest], daemon: Daemon, vm: str) -> int:
    """Lets the guests run until the device of one of them is ready. Returns its process id."""
    found: list[int] = []

    def look() -> bool:
        device = ready_device(daemon, vm)
        found.extend([] if device is None else [device])
        return bool(found)

    run(guests, look)
    return found[0]


def attach(guest: FakeGuest, daemon: Daemon) -> FakeGuest:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    return guest


def events(daemon: Daemon, *names: str) -> list[str]:
    return [record["message"] for record in facts(daemon, *names)]


def run_until_event(guests: list[FakeGuest], daemon: Daemon, *names: str) -> None:
    """Lets the guests run until one of these events is in the log."""
    run(guests, lambda: facts(daemon, *names) != [])


def run_until_logged(guests: list[FakeGuest], daemon: Daemon, text: str) -> None:
    """Lets the guests run until a line with this text is in the log."""
    run(guests, lambda: any(text in r["message"] for r in daemon.records()))


def assert_all_back(guest: FakeGuest, daemon: Daemon) -> None:
    """Asserts that an orderly end returned all memory, unless a guest was held up for too long."""
    assert facts(daemon, "giving-back") != []
    late = [record["vms"] for record in facts(daemon, "memory-not-given-back")]
    assert guest.driver.actual == 0 or late == [1]


def unread_bytes(wire: Wire) -> int:
    """The bytes that the other end has not read yet, as the kernel counts them (unix(7),
    SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(wire.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
