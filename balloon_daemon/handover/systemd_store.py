"""systemd's store of this service."""

from balloon_daemon.handover.keys import LISTENER, parse_key
from balloon_daemon.handover.store import NoStore, SocketStore, Store
from balloon_daemon.linux.systemd import connect_manager, store_capacity, take_stored_fds


def systemd_store() -> Store:
    """The store that the service manager keeps for this service, with what it has handed over.

    A store that keeps nothing where no manager started us, or where the unit stores nothing
    (``FileDescriptorStoreMax=0``, systemd's default).
    """
    kept = take_stored_fds()
    manager = connect_manager()
    if manager is None:
        return NoStore()
    # What a socket unit passes, which we have none of, comes the same way and proves no store.
    has_stored = any(name == LISTENER or parse_key(name) is not None for name in kept)
    capacity = store_capacity(manager, has_stored=has_stored)
    if not capacity:
        manager.close()
        return NoStore()
    return SocketStore(manager, kept, capacity=capacity, is_keeper=False)
