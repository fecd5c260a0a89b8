"""Events about VMs' devices, and the devices' reports. Pure."""

from enum import Enum

from balloon_daemon.errors import Rule
from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId


@fact
class DeviceStarted(NamedTuple):
    """A device was forked, to serve the VM's queues.

    Attributes:
        pid: the device's process id.
        queues: the names of the queues.
    """

    vm: VmId
    pid: int
    queues: tuple[str, ...]
    quiet: bool = False


@fact
class DeviceLooks(NamedTuple):
    """A device was forked only to read the ``used.idx`` of the VM's rings.

    Attributes:
        pid: the device's process id.
        queues: the names of the queues.
    """

    vm: VmId
    pid: int
    queues: tuple[str, ...]
    quiet: bool = False


@fact
class ReportsNotFreed(NamedTuple):
    """A device answers its guest's reports of free pages without removing the pages.

    Attributes:
        poison_val: the u32 with which the guest fills free pages (VIRTIO_BALLOON_F_PAGE_POISON),
            and which it may later expect to find there; None: its driver has not said what free
            pages hold.
    """

    vm: VmId
    poison_val: int | None


@fact
class DeviceReady(NamedTuple):
    """A device has loaded its filter and begins to serve the rings."""

    vm: VmId


@fact
class DeviceNotForked(NamedTuple):
    """A device could not be forked; balloond tries again.

    Attributes:
        error: the kernel's text.
    """

    vm: VmId
    error: str
    suppressed: int = 0


class Death(Enum):
    """How a device's process ended."""

    FILTER = "filter"
    """Its seccomp filter killed the device."""
    SIGNAL = "signal"
    """Another signal killed the device."""
    FAILED = "failed"
    """The device met an error, described it on its standard error, and ended."""
    STATUS = "status"
    """The device ended with an exit status that no device uses."""


@fact
class DeviceDied(NamedTuple):
    """A device ended without having been told to.

    Attributes:
        pid: the device's process id.
        exit_code: its exit status, or a negative signal number.
        death: the meaning of the exit code.
        by: the signal's name, such as ``SIGKILL``; for a filter's kill the system call's name, or
            "" where the kernel's log does not tell it.
        last_words: the last line of its standard error; "" where it wrote nothing.
        deaths: 0: another device is forked. Else how many of this VM's devices have died within
            ``within_s``: too many, so no other device is forked until the VMM reconnects.
        within_s: the time in which ``deaths`` were counted, in seconds.
    """

    vm: VmId
    pid: int
    exit_code: int
    death: Death
    by: str
    last_words: str
    deaths: int
    within_s: float


@fact
class DeviceDoesNotStop(NamedTuple):
    """A device was told to stop and has not; it is killed."""

    vm: VmId
    pid: int


@fact
class DeviceHangs(NamedTuple):
    """A killed device does not end, because the kernel is still busy with it."""

    vm: VmId
    pid: int


@fact
class DeviceSendsGarbage(NamedTuple):
    """A device has sent a message that no device sends, or has closed its tube and has not ended;
    it is killed.

    Attributes:
        pid: the device's process id.
        found: the message, as the tube's decoder describes it, or that the tube is closed.
    """

    vm: VmId
    pid: int
    found: str


@fact
class DeviceStalled(NamedTuple):
    """A device has for seconds read none of the controller's messages (its orders): its process is
    stopped, or gets no processor time."""

    vm: VmId
    pid: int


@fact
class DeviceTakesOrders(NamedTuple):
    """A device that had stalled reads the controller's messages again."""

    vm: VmId
    pid: int


@fact
class RingsUnknown(NamedTuple):
    """No device could be forked to read the ``used.idx`` of the VM's rings."""

    vm: VmId
    suppressed: int = 0


# --- devices' reports ---------------------------------------------------------------------------


@fact
class GuestFault(NamedTuple):
    """The guest broke a rule of virtio.

    Attributes:
        queue: the queue's name.
        rule: the rule.
        found: the value that broke it.
        head: the chain's head descriptor index, or ``errors.NO_HEAD``.
        stops_queue: True: the ring cannot be trusted, and its queue is served no more; False: only
            this chain was dropped.
    """

    vm: VmId
    queue: str
    rule: Rule
    found: int
    head: int
    stops_queue: bool
    suppressed: int = 0


@fact
class HostFault(NamedTuple):
    """The host's kernel refused to free guest memory.

    Attributes:
        addr: the guest-physical address.
        errno: the kernel's errno.
    """

    vm: VmId
    addr: int
    errno: int
    suppressed: int = 0


@fact
class GuestStats(NamedTuple):
    """The guest's statistics have arrived.

    Attributes:
        values: names and values (bytes or counts); a name is the specification's in lower case, or
            the number of an unknown statistic.
    """

    vm: VmId
    values: tuple[tuple[str, int], ...]


DeviceEvent = (
    DeviceStarted
    | DeviceLooks
    | ReportsNotFreed
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
"""The union of all events about devices."""
