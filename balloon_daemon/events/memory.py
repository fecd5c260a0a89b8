"""What is noticed of VMs' memory: its kind, its size, what of it comes back. Pure."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from balloon_daemon.units import VmId


class PageKind(NamedTuple):
    """What a memory file is made of.

    Attributes:
        page_bytes: the size of its pages; more than 4 KiB: hugetlbfs.
        huge: for the others, the kernel's word for when there are transparent huge pages
            (``always``, ``within_size``, ``advise``, ``never``).
    """

    page_bytes: int
    huge: str


@dataclass(frozen=True, slots=True)
class MemoryKnown:
    """A VMM has given a memory table.

    Attributes:
        size_bytes: the memory that can be freed, in whole MiB.
        kinds: what its files are made of.
    """

    vm: VmId
    size_bytes: int
    kinds: frozenset[PageKind]


@dataclass(frozen=True, slots=True)
class MemoryNeverFreed:
    """A memory region cannot be freed.

    Attributes:
        size_bytes: the region's size.
        guest_addr: the region's guest-physical address.
        why: what its file is or does, for "their file …".
    """

    vm: VmId
    size_bytes: int
    guest_addr: int
    why: str


@dataclass(frozen=True, slots=True)
class NothingFreeable:
    """No memory region of a VM can be freed."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class GivesHugePages:
    """A VM's memory is of hugetlbfs: what its guest gives goes to the pool of huge pages."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class TmpfsLimited:
    """A VM's memory is a file on a tmpfs with a size limit.

    Attributes:
        limit_bytes: the limit.
        free_bytes: what is free below it.
    """

    vm: VmId
    limit_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryNotShared:
    """A VMM is connected for long and has given no memory table.

    Attributes:
        driver_runs: its guest's driver runs, so that it should have given one.
    """

    vm: VmId
    driver_runs: bool


# --- its size -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryOutOfReach:
    """Part of a VM's memory lies at 16 TiB or above: 32-bit page numbers do not reach it."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class MemoryNotFreeable:
    """None of a VM's memory that looks like RAM can be freed."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class SizesDiffer:
    """Sources contradict each other on a VM's size.

    Attributes:
        flag_bytes: what ``--vm-mem`` says; None: nothing.
        table_bytes: what the memory table says.
        guest_bytes: what the guest says, where that is the size that counts; else None.
        size_bytes: the size that counts.
    """

    vm: VmId
    flag_bytes: int | None
    table_bytes: int
    guest_bytes: int | None
    size_bytes: int


# --- what comes back ----------------------------------------------------------------------------


class LossCause(Enum):
    """Why pages that a guest gave were not freed."""

    NEVER_FREED = "never-freed"
    """They lie in a memory region whose file cannot be freed."""
    NOT_SHARED = "not-shared"
    """They lie in no memory region that the VMM shares."""
    REFUSED = "refused"
    """The kernel refused."""
    IN_PIECES = "in-pieces"
    """They are parts of huge pages whose other parts are still the guest's."""


@dataclass(frozen=True, slots=True)
class PagesLost:
    """Pages that a guest gave were not freed, for a cause that shows for the first time.

    Attributes:
        cause: why they were not.
        lost_bytes: how much came to nothing by this cause so far.
        reasons: for ``NEVER_FREED``, what the files are or do; empty where nothing is known.
        out_of_reach: for ``NEVER_FREED``, page numbers cannot be trusted, so nothing is freed.
    """

    vm: VmId
    cause: LossCause
    lost_bytes: int
    reasons: tuple[str, ...] = ()
    out_of_reach: bool = False


@dataclass(frozen=True, slots=True)
class Fruitless:
    """Less than half of what a guest gave lately was freed: it is asked for no more."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class BalloonNotFreed:
    """A VM's memory files hold pages that its balloon holds too: it is asked for no more.

    Attributes:
        missing_bytes: what the host has not got.
    """

    vm: VmId
    missing_bytes: int


MemoryEvent = (
    MemoryKnown
    | MemoryNeverFreed
    | NothingFreeable
    | GivesHugePages
    | TmpfsLimited
    | MemoryNotShared
    | MemoryOutOfReach
    | MemoryNotFreeable
    | SizesDiffer
    | PagesLost
    | Fruitless
    | BalloonNotFreed
)
"""All that is noticed of VMs' memory."""
