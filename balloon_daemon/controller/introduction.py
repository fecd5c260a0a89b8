"""What the log says of a VM whose rings begin to run, and how large it is."""

from balloon_daemon.linux.page_kind import describe_pages
from balloon_daemon.log import EventLog
from balloon_daemon.units import MIB, PAGE_SIZE, format_size
from balloon_daemon.vhost_user.backend import Backend


def introduce(backend: Backend, wanted_bytes: int | None, log: EventLog) -> int:
    """Says what is worth knowing of a VM, and warns of what will not work.

    Args:
        backend: with its memory table.
        wanted_bytes: what ``--vm-mem`` says; None: nothing.
        log: bound to the guest.

    Returns:
        The size that its balloon policy goes by, in bytes.
    """
    regions = backend.memory.regions
    # A PC's memory table lacks the 128 KiB of VGA below 1 MiB: a VM is of whole MiB.
    table_bytes = -(-backend.memory.size_bytes // MIB) * MIB
    size_bytes = wanted_bytes or table_bytes
    if abs(size_bytes - table_bytes) >= MIB:
        log.warning(
            "size",
            f"--vm-mem says {format_size(size_bytes)}, the VMM's memory table "
            f"{format_size(table_bytes)}; going by --vm-mem",
        )
    if backend.channel is None:
        log.warning("vmm", "the VMM gives no back-end channel: no target can reach it")
    # How memory comes back depends on it: a huge page only as a whole, or after a split.
    kinds = sorted({describe_pages(region.fd.fileno()) for region in regions})
    log.info(
        "memory", f"guest memory of {format_size(table_bytes)}: {'; '.join(kinds)}", pages=kinds
    )
    if any(region.page_bytes > PAGE_SIZE for region in regions):
        log.warning(
            "memory",
            "huge pages that it gives up go to the host's pool, not to available memory; if the "
            "pool has none left when it takes them back, its VMM dies of SIGBUS",
        )
    return size_bytes
