"""The requests that describe the guest's memory. Pure.

Source: QEMU's "Vhost-user Protocol", "Front-end message types".
"""

from collections.abc import Callable, Sequence

from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.effects import RESTART, Effect, not_served
from balloon_daemon.vhost_user.memory_table import Fd, MemoryTable
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import Message


def _set_mem_table(memory: MemoryTable, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    memory.set(message.name, wire.decode_memory_table(message), fds)
    return [*RESTART]


def _add_mem_reg(memory: MemoryTable, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    memory.add(wire.decode_single_region(message), fds[0] if fds else None)
    return [*RESTART]


def _rem_mem_reg(memory: MemoryTable, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    there = memory.remove(wire.decode_single_region(message))
    # Old front-ends send a descriptor with REM_MEM_REG, which the specification allows. The
    # descriptor is not needed, because the region is found by its addresses and size.
    for fd in fds:
        fd.close()
    if there or memory.unsound:
        return [*RESTART]
    return [not_served(message, "there is no such region"), *RESTART]


MEMORY_HANDLERS: dict[int, Callable[[MemoryTable, Message, Sequence[Fd]], list[Effect]]] = {
    Request.SET_MEM_TABLE: _set_mem_table,
    Request.ADD_MEM_REG: _add_mem_reg,
    Request.REM_MEM_REG: _rem_mem_reg,
}
"""Requests that describe the memory table or one region of it."""
