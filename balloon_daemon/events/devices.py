"""What happens with the devices of VMs, and what they report. Pure."""

from dataclasses import dataclass
from enum import Enum

from balloon_daemon.errors import Rule
from balloon_daemon.units import VmId


@dataclass(frozen=True, slots=True)
class DeviceStarted:
    """A device was forked, to serve the VM's queues.

    Attributes:
        pid: the device's process id.
        queues: the names of the queues.
    """

    vm: VmId
    pid: int
    queues: tuple[str, ...]
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class DeviceLooks:
    """A device was forked only to look where the VM's rings stand.

    Attributes:
        pid: the device's process id.
        queues: the names of the queues.
    """

    vm: VmId
    pid: int
    queues: tuple[str, ...]
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class DeviceReady:
    """A device has loaded its filter and begins with the rings."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class DeviceNotForked:
    """A device could not be forked; it is tried again.

    Attributes:
        error: the kernel's text.
    """

    vm: VmId
    error: str
    suppressed: int = 0


class Death(Enum):
    """How a device's process ended."""

    FILTER = "filter"
    """Its seccomp filter killed it."""
    SIGNAL = "signal"
    """Another signal killed it."""
    FAILED = "failed"
    """It met an error of its own that it could not go on from."""
    STATUS = "status"
    """It ended with an exit status that no device has."""


@dataclass(frozen=True, slots=True)
class DeviceDied:
    """A device ended that nobody had told to.

    Attributes:
        pid: the device's process id.
        exit_code: its exit status, or a negative signal number.
        death: what the exit code means.
        by: the signal's name, such as ``SIGKILL``; for a filter's kill the system call's, or ""
            where the kernel's log does not say it.
        last_words: the last line of its standard error; "" where it wrote nothing.
        deaths: how many devices of this VM died within ``within_s``; 0: few enough, and another
            is forked; else too many, and none is until the VMM reconnects.
        within_s: the time that ``deaths`` were counted in, in seconds.
    """

    vm: VmId
    pid: int
    exit_code: int
    death: Death
    by: str
    last_words: str
    deaths: int
    within_s: float


@dataclass(frozen=True, slots=True)
class DeviceDoesNotStop:
    """A device was told to stop and has not; it is killed."""

    vm: VmId
    pid: int


@dataclass(frozen=True, slots=True)
class DeviceHangs:
    """A device was killed and does not end: the kernel holds it."""

    vm: VmId
    pid: int


@dataclass(frozen=True, slots=True)
class DeviceSendsGarbage:
    """A device sends what no device sends; it is killed.

    Attributes:
        pid: the device's process id.
        found: what it sent, as the tube's decoder says it.
    """

    vm: VmId
    pid: int
    found: str


@dataclass(frozen=True, slots=True)
class DeviceStalled:
    """A device has taken no order for seconds: it was stopped, or gets no processor time."""

    vm: VmId
    pid: int


@dataclass(frozen=True, slots=True)
class DeviceTakesOrders:
    """A device that was stalled takes orders again."""

    vm: VmId
    pid: int


@dataclass(frozen=True, slots=True)
class RingsUnknown:
    """No device could be had to look where the VM's rings stand."""

    vm: VmId
    suppressed: int = 0


# --- what a device reports ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GuestFault:
    """The guest broke a rule of virtio.

    Attributes:
        queue: the queue's name.
        rule: the rule.
        found: the value that broke it.
        head: the chain's head descriptor index, or ``errors.NO_HEAD``.
        stops_queue: the ring cannot be trusted and its queue is stopped; else that chain is
            dropped.
    """

    vm: VmId
    queue: str
    rule: Rule
    found: int
    head: int
    stops_queue: bool
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class HostFault:
    """The host's kernel refused to free guest memory.

    Attributes:
        addr: the guest-physical address.
        errno: the kernel's.
    """

    vm: VmId
    addr: int
    errno: int
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class GuestStats:
    """The guest's statistics came.

    Attributes:
        values: the statistics' names in the specification, in small letters (an unknown one's
            number), and their values: bytes or counts.
    """

    vm: VmId
    values: tuple[tuple[str, int], ...]


DeviceEvent = (
    DeviceStarted
    | DeviceLooks
    | DeviceReady
    | DeviceNotForked
    | DeviceDied
    | DeviceDoesNotStop
    | DeviceHangs
    | DeviceSendsGarbage
    | DeviceStalled
    | DeviceTakesOrders
    | RingsUnknown
    | GuestFault
    | HostFault
    | GuestStats
)
"""All that happens with devices."""
