"""Events about VMs' memory: its kind, its size, and how much of it is freed. Pure."""

from enum import Enum

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId


class PageKind(NamedTuple):
    """The kind of pages of a memory file.

    Attributes:
        page_bytes: the size of its pages; more than 4 KiB: hugetlbfs.
        huge: for other files, the kernel's word for when it uses transparent huge pages
            (``always``, ``within_size``, ``advise``, ``never``).
    """

    page_bytes: int
    huge: str


@fact
class MemoryKnown(NamedTuple):
    """A VMM has sent a memory table.

    Attributes:
        size_bytes: how much of its memory can be freed, in bytes, rounded up to whole MiB.
        kinds: the kinds of pages of the files that this memory lies in.
    """

    vm: VmId
    size_bytes: int
    kinds: frozenset[PageKind]


@fact
class MemoryNeverFreed(NamedTuple):
    """A memory region cannot be freed.

    Attributes:
        size_bytes: the region's size.
        guest_addr: the region's guest-physical address.
        why: the end of the log's sentence after "their file", such as "is sealed against writing".
        others: how many further regions cannot be freed either, which no event is about.
    """

    vm: VmId
    size_bytes: int
    guest_addr: int
    why: str
    others: int = 0


@fact
class NothingFreeable(NamedTuple):
    """No memory region of a VM can be freed."""

    vm: VmId


@fact
class GivesHugePages(NamedTuple):
    """A VM's memory is of hugetlbfs: pages that its guest gives return to the huge page pool."""

    vm: VmId


@fact
class TmpfsLimited(NamedTuple):
    """A VM's memory is a file on a tmpfs with a size limit.

    Attributes:
        limit_bytes: the limit.
        free_bytes: how much of the limit is free.
    """

    vm: VmId
    limit_bytes: int
    free_bytes: int


@fact
class MemoryNotShared(NamedTuple):
    """A VMM has been connected for long without sending a memory table.

    Attributes:
        driver_runs: True: its guest's driver runs, so the VMM should have sent one.
    """

    vm: VmId
    driver_runs: bool


# --- a VM's size --------------------------------------------------------------------------------


@fact
class MemoryOutOfReach(NamedTuple):
    """Part of a VM's memory lies at 16 TiB or above: 32-bit page numbers do not reach it."""

    vm: VmId


@fact
class MemoryNotFreeable(NamedTuple):
    """None of a VM's memory that could be RAM can be freed."""

    vm: VmId


@fact
class SizesDiffer(NamedTuple):
    """The sources of a VM's size contradict each other.

    Attributes:
        flag_bytes: the size given by ``--vm-mem``; None: not given.
        table_bytes: the size of the memory table.
        guest_bytes: the size that the guest reports, where that is the one used; else None.
        size_bytes: the size that is used.
    """

    vm: VmId
    flag_bytes: int | None
    table_bytes: int
    guest_bytes: int | None
    size_bytes: int


# --- freed and lost pages -----------------------------------------------------------------------


class LossCause(Enum):
    """Why pages that a guest gave were not freed."""

    NEVER_FREED = "never-freed"
    """The pages lie in a memory region whose file cannot be freed."""
    NOT_SHARED = "not-shared"
    """The pages lie in no memory region that the VMM shares."""
    REFUSED = "refused"
    """The kernel refused to free the pages."""
    IN_PIECES = "in-pieces"
    """The pages are parts of huge pages of which the guest still uses other parts."""


@fact
class PagesLost(NamedTuple):
    """Pages that a guest gave were not freed, for a cause seen for the first time.

    Attributes:
        cause: the cause.
        lost_bytes: how many bytes were not freed for this cause so far.
        reasons: for ``NEVER_FREED``, why their files cannot be freed; empty where that is not
            known.
        out_of_reach: for ``NEVER_FREED``, True: page numbers cannot be trusted, so nothing is
            freed.
    """

    vm: VmId
    cause: LossCause
    lost_bytes: int
    reasons: tuple[str, ...] = ()
    out_of_reach: bool = False


@fact
class Fruitless(NamedTuple):
    """Less than half of the memory that a guest gave lately was freed: it is asked for no more."""

    vm: VmId


@fact
class BalloonNotFreed(NamedTuple):
    """A VM's memory files still hold pages that its balloon holds: the VM is asked for no more.

    Attributes:
        missing_bytes: how many bytes of the balloon are still allocated on the host.
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
"""The union of all events about VMs' memory."""
