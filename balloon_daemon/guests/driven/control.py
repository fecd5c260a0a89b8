"""What a VMM's control interface must offer for its VMs' balloons to be driven.

Pure values and one Protocol. A ``Control`` is one connection to one VMM about one VM. It speaks
the VMM's language and knows its quirks; ``guests/driven/vm.py`` has everything that all VMMs have
in common: when to connect again, which target is next, what is reported over the seam.

A ``Control`` does not trust its VMM: it checks the types, signs and bounds of all figures, limits
each message in size and each wait in time, and raises ``ControlError`` where a check fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from balloon_daemon.errors import BalloondError
from balloon_daemon.events.driven import Fault as Fault  # Exported again, for drivers.
from balloon_daemon.guests.seam import Ability, GuestState, Stats

CALL_WITHIN_S = 5.0
"""How long one call may take before its VMM counts as hanging."""


class ControlError(BalloondError):
    """A VMM's control interface cannot be used.

    Attributes:
        fault: why.
        detail: the VMM's or the kernel's own words, printable and of one line; "" where it has
            none.
    """

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault.value}: {detail}" if detail else fault.value)
        self.fault = fault
        self.detail = detail

    def anew(self) -> "ControlError":
        """Another error that says the same, to be raised in place of this one where this one is
        kept: an error that was raised refers to the local variables of all calls that it has gone
        through, so these, the error and whoever keeps it stay until the garbage collector finds
        them. It looks at old objects once in a minute or so, for as long as there are many."""
        return ControlError(self.fault, self.detail)


@dataclass(frozen=True, slots=True)
class Found:
    """A VM as its VMM describes it.

    Attributes:
        vm_mem_bytes: all memory that it could have, plugged memory included.
        balloon_bytes: the size of its balloon now; None: not known (no driver yet, or after a
            reset).
        state: its state.
        can: what its balloon and its guest can do (``seam.Ability``).
        pid: its VMM's process id, as the kernel knows it (SO_PEERCRED); None: unknown.
        memory_file: the path (``/proc/PID/fd/N``) of the VMM's descriptor for the file that the
            VM's memory is; the file's blocks are what the memory occupies on the host. "": no
            file.
        vm_uuid: its UUID, as its VMM says it; "": unknown.
        restored: whether its VMM's process has restored a saved VM, with the balloon that the VM
            had when it was saved; None: its VMM does not tell. VMMs that tell give no two VMs of a
            host the same UUID.
        against: why the VM must not be driven, although its balloon can be set; None: it may be
            driven. A VM that must not be driven gets back the memory that an earlier balloond has
            taken of it, and is told nothing else.
    """

    vm_mem_bytes: int
    balloon_bytes: int | None
    state: GuestState
    can: frozenset[Ability]
    pid: int | None = None
    memory_file: str = ""
    vm_uuid: str = ""
    restored: bool | None = None
    against: ControlError | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A VM's figures at one moment.

    Attributes:
        vm_mem_bytes: all memory that it could have, plugged memory included.
        balloon_bytes: the size of its balloon; None: not known.
        state: its state.
        stats: its guest's statistics, with the time at which the *guest* sent them; None where it
            has sent none, or none since the last sample.
        at_s: when the other figures were read, on CLOCK_MONOTONIC.
        apart_bytes: memory of the guest's that ``vm_mem_bytes`` leaves out, such as virtio-mem's,
            because the VMM leaves it out when it computes the balloon's size.
    """

    vm_mem_bytes: int
    balloon_bytes: int | None
    state: GuestState
    stats: Stats | None
    at_s: float
    apart_bytes: int = 0


class Notice(Enum):
    """What a VMM has reported without being asked; the figures follow with the next sample."""

    RESET = "reset"
    """The guest was reset: it has all its memory back until its next kernel's driver listens."""

    REFILLED = "refilled"
    """The VMM has read all of the guest's memory (migration, snapshot), by which the host has
    allocated again what the balloon had freed."""

    CHANGED = "changed"
    """Anything else that may have changed the figures: the VM's task reads a sample soon."""


Noticed = Callable[[Notice], None]


class Control(Protocol):
    """One VM's balloon, by way of its VMM. All calls but ``close`` raise ``ControlError``.

    The caller makes one call at a time, and none after ``close`` or after a ``ControlError`` whose
    fault is ``GONE``, ``HANGS`` or ``NONSENSE``: the caller then closes this ``Control`` and opens
    a new one.
    """

    async def open(self, noticed: Noticed) -> Found:
        """Connects, and finds out about the VM.

        Args:
            noticed: called with each ``Notice`` from then on, in the event loop.
        """

    async def set_balloon(self, balloon_bytes: int) -> None:
        """Sets the balloon's wanted size, in whole pages of 4 KiB; returns when the VMM has taken
        it.

        Some VMMs take the VM's size without the balloon instead. For these the ``Control``
        subtracts the balloon from the VM's size, which it reads anew before each call where memory
        can be plugged.
        """

    async def sample(self) -> Sample:
        """Reads the VM's figures."""

    async def watch(self, every_s: float | None) -> None:
        """Sets how often the guest sends statistics, in seconds; None: balloond needs none."""

    async def gone(self) -> ControlError | None:
        """Waits until the connection has ended; raises nothing.

        Returns:
            Why it has ended, where that is another reason than ``GONE``: a VMM that breaks its
            protocol between two calls is disconnected.
        """

    def close(self) -> None:
        """Disconnects at once; never blocks. The VM keeps the balloon that it has."""
