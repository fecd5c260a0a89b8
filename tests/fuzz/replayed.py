"""A back-end told anew: whatever a front-end made of it, the next controller gets the same."""

import os

from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import right_kind
from balloon_daemon.vhost_user.memory_table import Fd, MemoryTable
from balloon_daemon.vhost_user.replay import replay
from tests.harness.invariants import InvariantBrokenError, require


def check_replay(backend: Backend, memory: MemoryTable) -> None:
    """Tells a fresh back-end what leads to this one's state, and compares the two.

    Args:
        backend: any that came to be by messages.
        memory: an empty table for the fresh one.
    """
    fresh = Backend(memory, right_kind=right_kind)
    try:
        for content, fds in replay(backend):
            request, flags, size = wire.HEADER.unpack_from(content)
            message = wire.Message(request, flags, content[wire.HEADER.size :])
            require(size == len(message.payload), "a message that is not whole", message)
            try:
                fresh.handle(message, [OwnedFd(os.dup(fd.fileno())) for fd in fds])
            except FrontendError as err:
                raise InvariantBrokenError(f"a state that cannot be told: {err}") from err
        require(_state(fresh) == _state(backend), "told otherwise", _state(fresh), _state(backend))
    finally:
        fresh.close()


def _state(backend: Backend) -> list[object]:
    # A vring that cannot be served is told without its kick, and so it stays that way.
    vrings = [
        (v.size, v.base, v.addr, v.started and not v.unusable, v.enabled, *map(_file, fds))
        for v in backend.vrings
        for fds in [(None if v.unusable else v.kick, v.call, v.err)]
    ]
    # Of a file that was let go of only that is known.
    regions = [
        (region.description, _file(region.fd), region.page_bytes, region.never_freed)
        if region.fd is not None
        else (region.description, bool(region.never_freed))
        for region in backend.memory.regions
    ]
    negotiated = (backend.acknowledged, backend.protocol_features, backend.status)
    ready = [(vring.index, vring.queue) for vring in backend.ready_vrings()]
    return [negotiated, vrings, _file(backend.channel), regions, ready]


def _file(fd: Fd | None) -> tuple[int, int] | None:
    """Which file a descriptor is of, whatever its number."""
    if fd is None:
        return None
    status = os.fstat(fd.fileno())
    return status.st_dev, status.st_ino
