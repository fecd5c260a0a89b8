"""What the log says of a VM's memory: when its rings begin to run, it changes or goes back."""

from balloon_daemon.linux.memory import memory_file_use
from balloon_daemon.linux.page_kind import describe_pages
from balloon_daemon.records.log import EventLog
from balloon_daemon.units import MIB, PAGE_SIZE, format_size
from balloon_daemon.vhost_user.memory_table import Fd, Region

NEVER_FREED_REMEDY = (
    "give the VM memory that can be freed: memory-backend-memfd, or a file on tmpfs, with share=on"
)

SHARED_WITHIN_POLLS = 60
"""How long a VMM may take to give its guest's memory before it is named, in times of the policy's
poll, which is 1 s. It does so when the guest's driver starts."""


def introduce_memory(regions: list[Region], log: EventLog) -> None:
    """Says what a VM's memory is made of, and warns of what will not work.

    Args:
        regions: its memory table.
        log: bound to the guest.
    """
    freed = [region for region in regions if not region.never_freed]
    files = [region.fd for region in freed if region.fd is not None]
    size = -(-sum(region.description.size_bytes for region in freed) // MIB) * MIB
    # How memory comes back depends on it: a huge page only as a whole, or after a split.
    kinds = sorted({describe_pages(file.fileno()) for file in files})
    if kinds:
        message = f"guest memory of {format_size(size)}: {'; '.join(kinds)}"
        log.info("memory", message, pages=kinds)
    for region in regions:
        if region.never_freed:
            place = region.description
            log.info(
                "memory",
                f"{format_size(place.size_bytes)} at {place.guest_addr:#x} are never freed: their "
                f"file {region.never_freed}",
            )
    if not freed:
        log.warning(
            "memory",
            f"nothing of its memory can be freed: this VM gets no balloon; {NEVER_FREED_REMEDY}",
        )
    elif any(region.page_bytes > PAGE_SIZE for region in freed):
        log.warning(
            "memory",
            "huge pages that it gives up go to the host's pool, not to available memory; if the "
            "pool has none left when it takes them back, its VMM dies of SIGBUS",
        )
    else:
        _warn_of_limits(files, log)


def _warn_of_limits(files: list[Fd], log: EventLog) -> None:
    """A tmpfs with a size limit: what a guest gives up there, another file may take."""
    warned = set[int]()
    for file in files:
        use = memory_file_use(file.fileno())
        device = use.identity[0]
        if use.limit_bytes is not None and device not in warned:
            warned.add(device)
            log.warning(
                "memory",
                "guest memory is a file on a tmpfs with a limit of "
                f"{format_size(use.limit_bytes)} ({format_size(use.free_bytes)} free): if other "
                "files there take what the guest gives up, its VMM dies of SIGBUS when the guest "
                "takes it back; use memory-backend-memfd, or a tmpfs without a limit",
            )


def not_shared(*, driver_runs: bool) -> str:
    """Why a VMM that is connected may not have given its guest's memory, and what to do."""
    driver = "" if driver_runs else "its guest has no balloon driver running yet, or "
    return (
        f"its VMM is connected but has not given its guest's memory so far: {driver}the memory is "
        "not shared (QEMU: share=on for the memory back-end; libvirt: <access mode='shared'/>); "
        "until then it has no balloon"
    )


def giving_back(balloon_bytes: int | None) -> str:
    """What a guest is told at the end, whose balloon is so large; None: nobody knows."""
    if balloon_bytes is None:
        return "giving all of a balloon of unknown size back to the guest"
    if not balloon_bytes:
        return "the guest need not give anything"
    return f"giving {format_size(balloon_bytes)} back to the guest"
