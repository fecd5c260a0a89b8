import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence

import pytest

from balloon_daemon.handover import outbox as outbox_module
from balloon_daemon.handover.outbox import Outbox
from balloon_daemon.linux.events import OwnedFd
from tests.harness.faults import fault


def fill(outbox: Outbox, guest: str) -> None:
    """Sends until nothing is taken any more."""
    while not len(outbox):
        outbox.send(bytes(1000), (), guest)


async def soon(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.001)


@fault("sends an eventfd or a pipe that somebody watches by epoll")
def test_what_waited_is_closed_by_whoever_can_wait() -> None:
    async def scene() -> tuple[int, list[str]]:
        there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outbox, late = Outbox(here, lambda: None), list[str]()

        def close(fds: Sequence[int]) -> None:
            for fd in fds:
                late.append(os.readlink(f"/proc/self/fd/{fd}"))
                os.close(fd)

        outbox.close_late = close
        at_once, waiting = (OwnedFd(os.eventfd(0)) for _ in range(2))
        outbox.send(b"at once", (at_once.fileno(),), "vm1")
        closed_at_once = len(late)
        fill(outbox, "vm1")
        outbox.send(b"late", (waiting.fileno(),), "vm2")
        waiting.close()
        while late == []:
            there.recv(2000)
            await asyncio.sleep(0.001)
        there.close()
        here.close()
        return closed_at_once, late

    assert asyncio.run(scene()) == (0, ["anon_inode:[eventfd]"])


@fault("sends a file with many locks")
def test_what_is_sent_at_once_has_no_duplicate_to_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there, here, open(os.devnull) as file:
        closed = list[int]()
        monkeypatch.setattr("balloon_daemon.linux.events.os.close", closed.append)

        Outbox(here, lambda: None).send(b"at once", (file.fileno(),), "vm1")

        monkeypatch.undo()
        assert closed == []
        (fd,) = socket.recv_fds(there, 10, 1)[1]
        assert os.readlink(f"/proc/self/fd/{fd}") == os.devnull
        os.close(fd)


def test_messages_of_each_guest_are_counted_while_they_wait() -> None:
    async def scene() -> list[int]:
        there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outbox = Outbox(here, lambda: None)
        fill(outbox, "vm1")
        for _ in range(3):
            outbox.send(b"later", (), "vm2")
        counts = [outbox.waiting_of(name) for name in ("vm1", "vm2", "vm3")]
        while len(outbox):
            there.recv(2000)
            await asyncio.sleep(0.001)
        counts.append(outbox.waiting_of("vm2"))
        there.close()
        here.close()
        return counts

    assert asyncio.run(scene()) == [1, 3, 0, 0]


def test_users_take_turns_where_the_store_is_slow() -> None:
    async def scene() -> list[bytes]:
        there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outbox, heard = Outbox(here, lambda: None), list[bytes]()
        for guest, user in (("vm1", 1), ("vm2", 1), ("vm3", 2)):
            outbox.set_user(guest, user)
        fill(outbox, "vm1")
        for number in range(50):
            outbox.send(b"vm1 %d" % number, (), "vm1")
            outbox.send(b"vm2 %d" % number, (), "vm2")
        outbox.send(b"vm3 0", (), "vm3")
        outbox.send(b"vm3 1", (), "vm3")
        while len(outbox):
            heard.append(there.recv(2000))
            await asyncio.sleep(0.001)
        there.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(there.recv(2000))
        there.close()
        here.close()
        return [message for message in heard if message.startswith(b"vm")]

    heard = asyncio.run(scene())
    assert {heard.index(b"vm3 0"), heard.index(b"vm3 1")} <= set(range(4))
    # Each user's in their order.
    rest = [message for message in heard if not message.startswith(b"vm3")]
    assert rest == [b"vm%d %d" % (vm, number) for number in range(50) for vm in (1, 2)]


def test_store_that_is_gone_is_said_once_and_nothing_waits_for_it() -> None:
    async def scene() -> tuple[list[str], list[int]]:
        there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said, closed = list[str](), list[int]()
        outbox = Outbox(here, lambda: said.append("lost"))
        fill(outbox, "vm1")
        outbox.close_late = lambda fds: closed.extend(fds)
        outbox.send(b"late", (here.fileno(),), "vm1")
        there.close()
        while len(outbox):
            await asyncio.sleep(0.001)
        here.close()
        return said, closed

    said, (closed,) = asyncio.run(scene())
    assert said == ["lost"]
    os.close(closed)


@fault("one user has much to say, over however many connections")
def test_queue_of_a_store_that_takes_everything_is_sent_over_many_turns_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Even of a turn without any time one message is sent.
    monkeypatch.setattr(outbox_module, "WORK_S", 0.0)

    async def scene() -> list[int]:
        there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outbox, lengths = Outbox(here, lambda: None), list[int]()
        with there, here:
            fill(outbox, "vm1")
            for _ in range(3):
                outbox.send(b"late", (), "vm1")
            with contextlib.suppress(BlockingIOError):
                while there.recv(2000, socket.MSG_DONTWAIT):
                    pass
            while not lengths or lengths[-1]:
                if [len(outbox)] != lengths[-1:]:
                    lengths.append(len(outbox))
                await asyncio.sleep(0)
        return lengths

    assert asyncio.run(scene()) == [4, 3, 2, 1, 0]
