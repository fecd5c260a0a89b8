"""Which calls libvirt's client makes, of a domain that behaves as libvirt's documents allow."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from balloon_daemon.guests.libvirt import process
from balloon_daemon.guests.libvirt.process import HANGS_AFTER_MS, CallError, Client
from tests.fakes.libvirt_library import (
    GIB_KIB,
    LIBRARY,
    NAME,
    UUID,
    LibvirtConnection,
    LibvirtDomain,
    LibvirtError,
)
from tests.harness.faults import fault

OCCUPIED, ERROR = LIBRARY.VIR_DOMAIN_CONTROL_OCCUPIED, LIBRARY.VIR_DOMAIN_CONTROL_ERROR
MONITOR = LIBRARY.VIR_DOMAIN_CONTROL_ERROR_REASON_MONITOR
INTERNAL = LIBRARY.VIR_DOMAIN_CONTROL_ERROR_REASON_INTERNAL
CALLS: list[tuple[str, dict[str, int]]] = [
    ("sample", {}),
    ("set", {"balloon_kib": 1024, "told_kib": GIB_KIB}),
    ("period", {"period_s": 1}),
]


class Scene:
    """A client, its domain, and what balloond is told."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._theirs = theirs
        self.client = Client(theirs)
        self.client._libvirt = LIBRARY
        self.domain = LibvirtDomain()
        self._connection = LibvirtConnection(self.domain)

    def open(self) -> object:
        return self.client.calls["open"](self._connection, name=NAME)

    def call(self, do: str, **arguments: int) -> object:
        return self.client.calls[do](self._connection, uuid=UUID, **arguments)

    def fault_of_open(self) -> str:
        with pytest.raises(CallError) as caught:
            self.open()
        return caught.value.fault

    def fault_of(self, do: str, **arguments: int) -> str:
        with pytest.raises(CallError) as caught:
            self.call(do, **arguments)
        return caught.value.fault

    def told(self) -> str:
        """The next event of which balloond is told."""
        self.client._tell_next()
        (line,) = self._ours.recv(4096).splitlines()
        event: str = json.loads(line)["event"]
        return event

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(process, "ENDING_LOOK_S", 0.0)
    scene = Scene()
    yield scene
    scene.close()


def test_domain_without_a_balloon_is_not_opened(scene: Scene) -> None:
    scene.domain.devices = "<memballoon model='none'/>"
    assert scene.fault_of_open() == "no-balloon"


def test_balloon_is_reckoned_without_virtio_mem(scene: Scene) -> None:
    """libvirt's maximum counts it, the balloon's size does not."""
    virtio_mem = f"<memory model='virtio-mem'><target><size>{2 * GIB_KIB}</size></target></memory>"
    scene.domain.devices += virtio_mem
    scene.domain.max_kib = 3 * GIB_KIB
    opened = scene.open()
    scene.call("set", balloon_kib=GIB_KIB // 4, told_kib=GIB_KIB)
    assert isinstance(opened, dict)
    assert (opened["size_kib"], opened["stats"]["actual"]) == (GIB_KIB, GIB_KIB)
    assert scene.domain.asked[-1] == ("setMemoryFlags", GIB_KIB * 3 // 4)


def test_statistics_of_a_domain_that_ends_have_no_size_and_no_resident_set(scene: Scene) -> None:
    """libvirt then says ``{'rss': 0}`` as success; ``rss`` is QEMU's, never the guest's."""
    scene.open()
    scene.domain.stats = {"rss": 0}
    sampled = scene.call("sample")
    assert isinstance(sampled, dict)
    assert sampled["stats"] == {}


@fault("a domain's QEMU does not answer")
@pytest.mark.parametrize("control", [(OCCUPIED, 0, HANGS_AFTER_MS + 1), (ERROR, MONITOR, 0)])
def test_nothing_is_asked_of_a_qemu_that_does_not_answer(
    scene: Scene, control: tuple[int, int, int]
) -> None:
    """Those calls have no time limit, and an earlier one that hangs delays them all."""
    scene.open()
    asked = len(scene.domain.asked)
    scene.domain.control = control
    assert [scene.fault_of(do, **arguments) for do, arguments in CALLS] == ["hangs"] * 3
    assert scene.fault_of_open() == "hangs"
    assert scene.domain.asked[asked:] == []


@fault("a domain ends while")
@pytest.mark.parametrize("reason", [MONITOR, INTERNAL])
@pytest.mark.parametrize(("do", "arguments"), CALLS)
def test_domain_that_libvirt_cannot_control_because_it_ends_does_not_hang(
    scene: Scene, do: str, arguments: dict[str, int], reason: int
) -> None:
    """``controlInfo`` says VIR_DOMAIN_CONTROL_ERROR until libvirt has removed the domain."""
    scene.open()
    asked = len(scene.domain.asked)
    scene.domain.control, scene.domain.control_looks = (ERROR, reason, 0), 2
    assert scene.fault_of(do, **arguments) == "gone"
    assert scene.domain.asked[asked:] == []


@fault("a domain ends while")
def test_domain_that_ends_while_it_is_opened_does_not_hang(scene: Scene) -> None:
    scene.domain.control, scene.domain.control_looks = (ERROR, INTERNAL, 0), 2
    assert scene.fault_of_open() == "gone"


@fault("a domain ends while")
@pytest.mark.parametrize(("do", "arguments"), CALLS)
def test_domain_that_ends_in_the_middle_of_a_call_is_gone(
    scene: Scene, do: str, arguments: dict[str, int]
) -> None:
    """The call's own error is "no such domain", as of a domain that never was."""
    scene.open()
    scene.domain.control_looks = 1
    assert scene.fault_of(do, **arguments) == "gone"


def test_domain_that_libvirt_can_control_again_is_asked(scene: Scene) -> None:
    """A job between two commands to QEMU looks like a lost monitor for a moment, too."""
    scene.domain.control_then = scene.domain.control
    scene.domain.control, scene.domain.control_looks = (ERROR, INTERNAL, 0), 1
    scene.open()
    assert scene.domain.asked == [("memoryStats", 0)]


@fault("a domain's QEMU does not answer")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        # Another program's call about the domain hangs: libvirt lets ours wait for 30 s.
        ("OPERATION_TIMEOUT", "hangs"),
        ("AUTH_FAILED", "no-permission"),
        ("AUTH_CANCELLED", "no-permission"),
        ("AUTH_UNAVAILABLE", "no-permission"),
        ("ACCESS_DENIED", "no-permission"),
        ("OPERATION_DENIED", "no-permission"),
        ("SYSTEM_ERROR", "not-there"),
        ("INVALID_ARG", "refused"),
    ],
)
def test_error_of_libvirts_is_one_of_our_faults(scene: Scene, name: str, fault: str) -> None:
    assert scene.client.fault(LibvirtError(getattr(LIBRARY, f"VIR_ERR_{name}"))) == fault
    assert scene.client.fault(ValueError(name)) is None


def test_qemu_that_has_been_busy_for_a_moment_is_asked(scene: Scene) -> None:
    scene.domain.control = (OCCUPIED, 0, HANGS_AFTER_MS)
    scene.open()
    assert scene.domain.asked == [("memoryStats", 0)]


@pytest.mark.parametrize("job", ["SAVE", "MIGRATION_OUT", "SNAPSHOT", "DUMP"])
def test_nothing_is_changed_while_libvirt_saves_or_migrates_the_domain(
    scene: Scene, job: str
) -> None:
    """libvirt would wait for the job's end, for 30 s."""
    scene.open()
    operation = getattr(LIBRARY, f"VIR_DOMAIN_JOB_OPERATION_{job}")
    scene.domain.job = {"type": 2, "operation": operation}
    changes = CALLS[1:]
    assert [scene.fault_of(do, **arguments) for do, arguments in changes] == ["refused"] * 2
    scene.call("sample")
    assert scene.domain.asked == [("memoryStats", 0)] * 2


def test_domain_that_was_started_anew_is_another_one(scene: Scene) -> None:
    scene.open()
    scene.domain.number = 2
    assert [scene.fault_of(do, **arguments) for do, arguments in CALLS] == ["gone"] * 3


def test_reason_for_which_a_domain_runs_is_passed_on(scene: Scene) -> None:
    scene.domain.running = [1, 3]
    opened = scene.open()
    assert isinstance(opened, dict)
    assert (opened["state"], opened["reason"]) == (1, 3)


@fault("a snapshot or a migration to a file")
def test_memory_that_libvirt_has_read_is_told(scene: Scene) -> None:
    client, domain = scene.client, scene.domain
    saved = {"operation": LIBRARY.VIR_DOMAIN_JOB_OPERATION_SAVE}
    client._job_completed(None, domain, saved, None)
    completed = scene.told()
    # A save that was given up is no completed job; the domain is resumed all the same.
    client._lifecycle(None, domain, LIBRARY.VIR_DOMAIN_EVENT_RESUMED, 0, None)
    given_up = scene.told()
    client._lifecycle(None, domain, LIBRARY.VIR_DOMAIN_EVENT_SUSPENDED, 0, None)
    assert (completed, given_up, scene.told()) == ("refilled", "refilled", "changed")


class Stopped(Exception):
    """Ends a loop that never ends by itself."""


@fault("a QEMU of libvirt's sends events without end")
def test_flood_of_events_is_told_once_in_the_order_of_the_last_ones(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, domain, another = scene.client, scene.domain, LibvirtDomain()
    monkeypatch.setattr(another, "UUIDString", lambda: "another")
    client._tell("reset", domain)
    for _ in range(10_000):
        client._tell("balloon", domain)
    client._tell("balloon", another)
    client._tell("reset", domain)
    assert [scene.told() for _ in range(3)] == ["balloon", "balloon", "reset"]
    # What comes later is told again, and after each event the teller rests.
    client._tell("balloon", domain)
    rests_s: list[float] = []

    def rest(seconds: float) -> None:
        rests_s.append(seconds)
        if len(rests_s) == 2:
            raise Stopped
        client._tell("balloon", another)

    monkeypatch.setattr(time, "sleep", rest)
    with pytest.raises(Stopped):
        client._tell_all()
    assert rests_s == [process.TOLD_EVERY_S] * 2
