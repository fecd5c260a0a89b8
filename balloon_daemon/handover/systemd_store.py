"""systemd's store of this service."""

from balloon_daemon.handover.keys import is_listener, parse_key
from balloon_daemon.handover.store import NoStore, SocketStore, Store
from balloon_daemon.linux.systemd import connect_manager, store_capacity, take_stored_fds


def systemd_store() -> Store:
    """The store that the service manager keeps for this service, with the descriptors in it.

    A ``NoStore`` where no manager has started us, or where the unit stores nothing
    (``FileDescriptorStoreMax=0``, systemd's default).
    """
    kept = take_stored_fds()
    manager = connect_manager()
    if manager is None:
        return NoStore()
    # Passed descriptors alone do not prove that systemd has a store for balloond: a socket unit
    # would pass its sockets in the same way. Names that only balloond gives prove it, as they can
    # come from the store only.
    has_stored = any(is_listener(name) or parse_key(name) is not None for name in kept)
    capacity = store_capacity(manager, has_stored=has_stored)
    if not capacity:
        manager.close()
        return NoStore()
    return SocketStore(manager, kept, capacity=capacity, is_keeper=False)
