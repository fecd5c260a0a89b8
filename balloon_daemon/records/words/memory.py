"""The log's sentences for events about VMs' memory. Pure."""

from collections.abc import Iterable
from typing import assert_never

from balloon_daemon.events import (
    BalloonNotFreed,
    Fruitless,
    GivesHugePages,
    LossCause,
    MemoryEvent,
    MemoryKnown,
    MemoryNeverFreed,
    MemoryNotFreeable,
    MemoryNotShared,
    MemoryOutOfReach,
    NothingFreeable,
    PageKind,
    PagesLost,
    SizesDiffer,
    TmpfsLimited,
)
from balloon_daemon.records.line import Level
from balloon_daemon.units import MIB, PAGE_SIZE, format_size

_REMEDY = (
    "give the VM memory that can be freed: memory-backend-memfd, or a file on tmpfs, with share=on"
)

# What the kernel's settings for transparent huge pages in shared memory mean (Linux,
# admin-guide/mm/transhuge.rst, "Shmem / tmpfs").
_HUGE = {
    "always": "4 KiB pages, transparent huge pages wherever they fit",
    "within_size": "4 KiB pages, transparent huge pages wherever they fit",
    "advise": "4 KiB pages, transparent huge pages where the VMM asks for them",
}


def said_of_memory(event: MemoryEvent) -> tuple[Level, str]:
    """The level and the sentence of an event."""
    match event:
        case MemoryKnown(_, size_bytes, kinds):
            message = f"guest memory of {format_size(size_bytes)}: {'; '.join(page_kinds(kinds))}"
            return Level.INFO, message
        case MemoryNeverFreed(_, size_bytes, guest_addr, why, others):
            message = f"{format_size(size_bytes)} at {guest_addr:#x} are never freed: their file"
            further = f"; nor are {others} further regions" if others else ""
            return Level.INFO, f"{message} {why}{further}"
        case NothingFreeable():
            message = "nothing of its memory can be freed: this VM gets no balloon"
            return Level.WARNING, f"{message}; {_REMEDY}"
        case GivesHugePages():
            return Level.WARNING, (
                "huge pages that it gives up go to the host's pool, not to available memory; if "
                "the pool has none left when it takes them back, its VMM dies of SIGBUS; keep as "
                "many free there, or give the VM memory of small pages"
            )
        case TmpfsLimited(_, limit_bytes, free_bytes):
            return Level.WARNING, (
                "guest memory is a file on a tmpfs with a limit of "
                f"{format_size(limit_bytes)} ({format_size(free_bytes)} free): if other "
                "files there take what the guest gives up, its VMM dies of SIGBUS when the guest "
                "takes it back; use memory-backend-memfd, or a tmpfs without a limit"
            )
        case MemoryNotShared(_, driver_runs):
            driver = "" if driver_runs else "its guest has no balloon driver running yet, or "
            return Level.WARNING, (
                f"its VMM is connected but has not given its guest's memory so far: {driver}the "
                "memory is not shared (QEMU: share=on for the memory back-end; libvirt: <access "
                "mode='shared'/>); until then it has no balloon"
            )
        case MemoryOutOfReach():
            return Level.WARNING, (
                "part of its memory lies at 16 TiB or above, where a balloon's page numbers of "
                "32 bits do not reach: this VM gets no balloon"
            )
        case MemoryNotFreeable():
            message = "none of its memory can be freed: this VM gets no balloon"
            return Level.WARNING, f"{message}; {_REMEDY}"
        case SizesDiffer():
            return Level.WARNING, _sizes(event)
        case PagesLost():
            return (
                Level.WARNING,
                f"{format_size(event.lost_bytes)} that it gave are {_lost(event)}",
            )
        case Fruitless():
            message = "less than half of what it gave last was freed: not asking it for more"
            return Level.WARNING, message
        case BalloonNotFreed(_, missing_bytes):
            return Level.WARNING, (
                f"the host has not got {format_size(missing_bytes)} of its balloon: the VM's "
                "memory files hold them still (huge pages given up in parts, pages pinned for a "
                "device, or a copy that something else reads); not asking it for more"
            )
        case _:
            assert_never(event)


def page_kinds(kinds: Iterable[PageKind]) -> list[str]:
    """The kinds of memory files in words, each kind once."""
    return sorted({_page_kind(kind) for kind in kinds})


def _page_kind(kind: PageKind) -> str:
    if kind.page_bytes > PAGE_SIZE:
        return f"hugetlbfs pages of {kind.page_bytes // MIB} MiB"
    return _HUGE.get(kind.huge, "4 KiB pages")


def _sizes(event: SizesDiffer) -> str:
    said = {
        "--vm-mem": event.flag_bytes,
        "the VMM's memory table": event.table_bytes,
        "the guest": event.guest_bytes,
    }
    known = {name: size for name, size in said.items() if size is not None}
    by = next(name for name, size in known.items() if size == event.size_bytes)
    says = ", ".join(f"{name} says {format_size(size)}" for name, size in known.items())
    return f"{says}; going by {by}"


def _lost(event: PagesLost) -> str:
    match event.cause:
        case LossCause.NEVER_FREED if event.out_of_reach:
            return (
                "not freed: part of its memory lies at 16 TiB or above, where a page number of 32 "
                "bits names another page"
            )
        case LossCause.NEVER_FREED:
            why = ", ".join(event.reasons) or "cannot be freed"
            return f"not freed, as their file {why}; {_REMEDY}"
        case LossCause.NOT_SHARED:
            return (
                "in no memory that its VMM shares with balloond, so they cannot be freed; share "
                "all of the VM's memory (share=on for each memory back-end, plugged ones too)"
            )
        case LossCause.REFUSED:
            return "not freed: the kernel refused (the event host-fault says why)"
        case LossCause.IN_PIECES:
            return (
                "not freed: they are parts of huge pages, which the kernel frees only as a whole; "
                "give the VM memory of small pages"
            )
        case _:
            assert_never(event.cause)
