"""Libvirt's library with one domain, as ``guests/libvirt/process.py`` uses it.

``test:///default`` of the real one has a domain whose QEMU never hangs, that has no jobs, no
statistics and no memory beside its RAM; what that domain cannot show is played here.
"""

from types import SimpleNamespace
from typing import Any

NAME, UUID = "web", "5a3d"
GIB_KIB = 1 << 20


class LibvirtError(Exception):
    """As libvirt raises it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self._code = code

    def get_error_code(self) -> int:
        return self._code


_CODES = (
    "SYSTEM_ERROR", "NO_DOMAIN", "NO_CONNECT", "OPERATION_TIMEOUT", "AUTH_FAILED",
    "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "ACCESS_DENIED", "OPERATION_DENIED", "INVALID_ARG",
    "OPERATION_INVALID",
)  # fmt: skip

LIBRARY: Any = SimpleNamespace(
    libvirtError=LibvirtError,
    VIR_DOMAIN_AFFECT_LIVE=1,
    VIR_DOMAIN_CONTROL_OK=0,
    VIR_DOMAIN_CONTROL_OCCUPIED=2,
    VIR_DOMAIN_CONTROL_ERROR=3,
    VIR_DOMAIN_CONTROL_ERROR_REASON_MONITOR=2,
    VIR_DOMAIN_CONTROL_ERROR_REASON_INTERNAL=3,
    VIR_DOMAIN_EVENT_STARTED=2,
    VIR_DOMAIN_EVENT_SUSPENDED=3,
    VIR_DOMAIN_EVENT_RESUMED=4,
    VIR_DOMAIN_EVENT_STOPPED=5,
    VIR_DOMAIN_JOB_OPERATION_SAVE=3,
    VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT=5,
    VIR_DOMAIN_JOB_OPERATION_SNAPSHOT=6,
    VIR_DOMAIN_JOB_OPERATION_DUMP=8,
    **{f"VIR_ERR_{name}": number for number, name in enumerate(_CODES, 1)},
)


class LibvirtDomain:
    """A domain, and every call about it that QEMU would have to answer.

    Attributes:
        number: libvirt's, another one after each start.
        max_kib: libvirt's maximum.
        devices: in its description.
        running: what `state` says: the state, and the reason for it.
        control: what ``controlInfo`` says: state, details, milliseconds.
        control_looks: how often it says that; 0: for ever.
        control_then: what it says afterwards; None: the domain has ended.
        ended: whether libvirt knows no such domain any more.
        stats: what ``memoryStats`` says.
        job: what ``jobStats`` says.
        asked: the calls, in order, with their first argument.
    """

    def __init__(self) -> None:
        self.number = 1
        self.max_kib = GIB_KIB
        self.devices = "<memballoon model='virtio'/>"
        self.running = [1, 1]
        self.control = (LIBRARY.VIR_DOMAIN_CONTROL_OK, 0, 0)
        self.control_looks = 0
        self.control_then: tuple[int, int, int] | None = None
        self.ended = False
        self.stats = {"actual": GIB_KIB, "last_update": 7, "rss": 99}
        self.job: dict[str, int] = {"type": 0}
        self.asked: list[tuple[str, int]] = []

    def name(self) -> str:
        return NAME

    def UUIDString(self) -> str:  # libvirt's name, as those below
        return UUID

    def ID(self) -> int:
        return self.number

    def maxMemory(self) -> int:
        return self.max_kib

    def XMLDesc(self) -> str:
        return f"<domain><devices>{self.devices}</devices></domain>"

    def state(self) -> list[int]:
        return self.running

    def check_runs(self) -> None:
        """Raises libvirt's error where the domain has ended."""
        if self.ended:
            raise LibvirtError(LIBRARY.VIR_ERR_NO_DOMAIN)

    def controlInfo(self) -> tuple[int, int, int]:
        self.check_runs()
        control = self.control
        if self.control_looks:
            self.control_looks -= 1
            if not self.control_looks:
                self.ended = self.control_then is None
                self.control = self.control_then or control
        return control

    def jobStats(self) -> dict[str, int]:
        return self.job

    def memoryStats(self) -> dict[str, int]:
        self.asked.append(("memoryStats", 0))
        self.check_runs()
        return self.stats

    def setMemoryFlags(self, size_kib: int, flags: int) -> None:
        self.asked.append(("setMemoryFlags", size_kib))
        self.check_runs()

    def setMemoryStatsPeriod(self, period_s: int, flags: int) -> None:
        self.asked.append(("setMemoryStatsPeriod", period_s))
        self.check_runs()


class LibvirtConnection:
    """A connection to a libvirt with this one domain."""

    def __init__(self, domain: LibvirtDomain) -> None:
        self._domain = domain

    def isAlive(self) -> bool:
        return True

    def lookupByName(self, name: str) -> LibvirtDomain:
        return self._domain

    def lookupByUUIDString(self, uuid: str) -> LibvirtDomain:
        self._domain.check_runs()
        return self._domain
