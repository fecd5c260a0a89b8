"""What a VMM's control interface must offer for its VMs' balloons to be driven.

Pure values and one Protocol. A ``Control`` is one connection to one VMM about one VM. It speaks
the VMM's language and knows its quirks; ``guests/driven/vm.py`` has everything that all VMMs have
in common: when to connect again, which target is next, what is reported over the seam.

What a VMM says is trusted no further than a number in range: a ``Control`` checks types, signs
and bounds, limits each message in size and each wait in time, and raises ``ControlError`` for all
else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from balloon_daemon.errors import BalloondError
from balloon_daemon.events.driven import Fault as Fault  # Drivers take it from here, too.
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


@dataclass(frozen=True, slots=True)
class Found:
    """A VM as its VMM describes it.

    Attributes:
        vm_mem_bytes: all memory that it could have, plugged memory included.
        balloon_bytes: the size of its balloon now; None: not known (no driver yet, or after a
            reset).
        state: its state.
        can: its abilities.
        pid: its VMM's process, as the kernel knows it (SO_PEERCRED); None: unknown.
        memory_file: a descriptor's path of the file that its memory is (``/proc/PID/fd/N``), whose
            blocks count what the host holds; "" where its memory is not a file.
        vm_uuid: its UUID, as its VMM says it; "": unknown.
    """

    vm_mem_bytes: int
    balloon_bytes: int | None
    state: GuestState
    can: frozenset[Ability]
    pid: int | None = None
    memory_file: str = ""
    vm_uuid: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A VM's figures at one moment.

    Attributes:
        vm_mem_bytes: as in ``Found``.
        balloon_bytes: as in ``Found``.
        state: its state.
        stats: its guest's statistics, with the time at which the *guest* sent them; None where it
            has sent none, or none since the last sample.
        at_s: when the rest was read, on CLOCK_MONOTONIC.
        apart_bytes: memory that the guest has beside ``vm_mem_bytes``, of which the balloon's size
            is not reckoned, such as virtio-mem's.
    """

    vm_mem_bytes: int
    balloon_bytes: int | None
    state: GuestState
    stats: Stats | None
    at_s: float
    apart_bytes: int = 0


class Notice(Enum):
    """News from a VMM that needs no figure."""

    RESET = "reset"
    """The guest was reset: it has all its memory back until its next kernel's driver listens."""

    REFILLED = "refilled"
    """The VMM has read all of the guest's memory (migration, snapshot), which allocates anew what
    the balloon had freed."""

    CHANGED = "changed"
    """Anything else: read a sample."""


Noticed = Callable[[Notice], None]


class Control(Protocol):
    """One VM's balloon, by way of its VMM. All calls but ``close`` raise ``ControlError``.

    The caller makes one call at a time, and none after ``close`` or after a ``ControlError`` whose
    fault is ``GONE``, ``HANGS`` or ``NONSENSE``: it closes then, and opens a new ``Control``.
    """

    async def open(self, noticed: Noticed) -> Found:
        """Connects, and finds out about the VM.

        Args:
            noticed: takes news from then on, in the event loop.
        """

    async def set_balloon(self, balloon_bytes: int) -> None:
        """Sets the balloon's wanted size, in whole pages of 4 KiB; returns when the VMM has taken
        it.

        A VMM that takes the VM's size instead gets the difference to the size as it is now, which
        is read anew before each call where it can change.
        """

    async def sample(self) -> Sample:
        """Reads the VM's figures."""

    async def watch(self, every_s: float | None) -> None:
        """Has the guest send statistics so often; None: never, or as seldom as the VMM allows."""

    async def gone(self) -> None:
        """Waits until the VMM has closed the connection. Raises nothing."""

    def close(self) -> None:
        """Disconnects at once; never blocks. The VM keeps the balloon that it has."""
