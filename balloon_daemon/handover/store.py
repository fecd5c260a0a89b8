"""Stores: they hold descriptors while no controller runs.

``SocketStore`` uses sd_notify(3)'s messages: ``FDSTORE=1`` with a name stores a descriptor,
``FDSTOREREMOVE=1`` removes a name. systemd returns all of them when it starts the service again;
our own ``fd_keeper`` does when asked. A store never blocks the controller: messages are queued
while its socket is full. ``NoStore`` keeps nothing.
"""

import asyncio
import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.fd_keeper import FORGET
from balloon_daemon.handover.keeper_process import KeeperProcess
from balloon_daemon.handover.outbox import RETRY_S, Outbox
from balloon_daemon.handover.room import NAMES_BYTES, Room
from balloon_daemon.linux.events import OwnedFd

KEEPER_ENDS_WITHIN_S = 1.0
TAKEN_WITHIN_S = 2.0
"""How long a VMM's answer waits for the store to receive the state behind the answer."""

MANY_WAITING = 64
WAITING_OF_A_VM = 8
"""Messages queued for the store, of one user's VMs and of one VM: above these numbers, states that
can wait are not sent."""


class HasFileno(Protocol):
    """An object with a descriptor."""

    def fileno(self) -> int: ...


class Store(Protocol):
    """Holds descriptors for another controller, by name.

    A name is ``<group>.<what>``, where the group stands for one VM (``keys``); a name without a
    dot belongs to no VM.

    Attributes:
        kept: the descriptors that the store held when this controller started; a caller who
            removes one from the dictionary owns that descriptor.
        room: counts the names in the store.
    """

    kept: dict[str, OwnedFd]
    room: Room

    @property
    def keeps(self) -> bool:
        """Whether another controller will find the descriptors that are put in."""

    def is_behind(self, group: str) -> bool:
        """Whether so many messages about the VMs of this VM's user are queued that a state of
        theirs which can wait should wait."""

    def is_behind_with(self, group: str) -> bool:
        """Whether many messages of this VM are queued."""

    def has_all_of(self, group: str) -> bool:
        """Whether all messages of this VM have been sent."""

    def set_user(self, group: str, user: int | None) -> None:
        """Sets a VM's user: while the store is slow, messages are sent in turns between users, and
        each user has a part of the room. None: the VM is gone."""

    def queued_fds_of(self, user: int) -> int:
        """How many descriptors of this process are duplicates in the queue for the store, for one
        user's VMs, those that are gone included."""

    def watch(self, gone: Callable[[], None]) -> None:
        """Calls ``gone`` once, within the running event loop, when the store is gone."""

    def on_loss(self, group: str, lost: Callable[[str, int], None] | None) -> None:
        """Calls ``lost`` for each name of a VM that could not be kept.

        Args:
            group: the VM's (``keys.group_of``).
            lost: called with the name, and with how many names of the VM were lost so far; None:
                nothing is called any more.
        """

    def close_late_by(self, close: Callable[[Sequence[int]], None]) -> None:
        """Closes the queued duplicates by ``close`` once they are sent: the close of a duplicate
        may be the last close of a VMM's file, and block."""

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        """Stores a duplicate of the descriptor under a name.

        Args:
            name: the name.
            fd: the descriptor.
            vmm: True: it is the connection to the VM's VMM; if the VMM hangs up while no balloond
                runs, our own keeper drops all of that VM. systemd keeps the VM until the next
                balloond removes it.

        Raises:
            OSError: the message has to wait, and no descriptor is free for a duplicate.
        """

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        """Stores a VM's new state, and then removes the names that the state replaces.

        Args:
            name: the state's name.
            fd: the state's memory.
            gone: the names that it replaces.
            losses: how many names of this VM were lost so far, by the last call of the function
                that ``on_loss`` was given.
            stay: after a loss, when it is unknown which names the store has: all names of the VM
                that are to stay. Else None.

        Raises:
            OSError: as for ``put``.
        """

    def remove(self, name: str) -> None:
        """Removes a name."""

    def forget(self) -> None:
        """Removes everything, at an orderly end."""

    async def drained(self, group: str | None = None) -> None:
        """Waits until all messages have been sent to the store; at most 2 s.

        Args:
            group: waits for this VM's messages only; None: for all.

        Raises:
            TimeoutError: the store receives nothing. Raised once; until the store receives a
                message again, calls return at once.
        """

    def close(self) -> None:
        """Sends queued messages until the socket is full, and disconnects; the content stays."""

    def abandon(self) -> None:
        """Disconnects from a store into which nothing has been put."""


class NoStore:
    """Keeps nothing: the VMs' balloons end with this controller."""

    keeps = False

    def __init__(self) -> None:
        self.kept: dict[str, OwnedFd] = {}
        self.room = Room(0)

    def is_behind(self, group: str) -> bool:
        return False

    def is_behind_with(self, group: str) -> bool:
        return False

    def has_all_of(self, group: str) -> bool:
        return True

    def set_user(self, group: str, user: int | None) -> None:
        pass

    def queued_fds_of(self, user: int) -> int:
        return 0

    def watch(self, gone: Callable[[], None]) -> None:
        pass

    def on_loss(self, group: str, lost: Callable[[str, int], None] | None) -> None:
        pass

    def close_late_by(self, close: Callable[[Sequence[int]], None]) -> None:
        pass

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        pass

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        pass

    def remove(self, name: str) -> None:
        pass

    def forget(self) -> None:
        pass

    async def drained(self, group: str | None = None) -> None:
        pass

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class SocketStore:
    """A store at the other end of a socket: systemd's, or our own keeper's.

    Args:
        sock: connected to systemd's notification socket or to a keeper.
        kept: the descriptors that the store held, by name.
        capacity: how many descriptors the store holds at most.
        is_keeper: True: the store is our own keeper.
        answers: True: the store reports descriptors that it could not keep, and itself removes the
            names that a state replaces.
        started: the keeper's process and its path, where this process has started it.
    """

    def __init__(
        self,
        sock: socket.socket,
        kept: dict[str, OwnedFd],
        *,
        capacity: int,
        is_keeper: bool,
        answers: bool = False,
        started: tuple[KeeperProcess, Path] | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.kept = kept
        # A keeper sends each name in a message of its own.
        self.room = Room(capacity, tuple(kept), math.inf if is_keeper else NAMES_BYTES)
        self._on_loss: dict[str, Callable[[str, int], None]] = {}
        self._is_keeper, self._answers = is_keeper, answers
        self._started = started
        self._forgotten = self._watched = self._gone = False
        self._outbox = Outbox(sock, self._lose)
        self._on_gone: Callable[[], None] = lambda: None

    @property
    def keeps(self) -> bool:
        return not self._gone

    def watch(self, gone: Callable[[], None]) -> None:
        self._on_gone = gone
        if self._is_keeper:
            self._watched = True
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._hear)

    def _hear(self) -> None:
        """Handles a keeper's later messages: a name that it could not keep, or its hang-up."""
        try:
            message = self._sock.recv(fd_keeper.MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        words = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
        name, losses = words.get("FDLOST"), words.get("FDLOSSES", "")
        if name is None:
            self._lose()
            return
        self.room.remove(name)
        lost = self._on_loss.get(name.partition(".")[0])
        if lost is not None:
            lost(name, int(losses))

    def on_loss(self, group: str, lost: Callable[[str, int], None] | None) -> None:
        self._on_loss.pop(group, None)
        if lost is not None:
            self._on_loss[group] = lost

    def set_user(self, group: str, user: int | None) -> None:
        self._outbox.set_user(group, user)
        self.room.set_user(group, user)

    def queued_fds_of(self, user: int) -> int:
        return self._outbox.fds_of(user)

    def _lose(self) -> None:
        if not self._gone:
            self._gone = True
            self._unwatch()
            self._on_gone()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def has_all_of(self, group: str) -> bool:
        return not self._outbox.waiting_of(group)

    def is_behind(self, group: str) -> bool:
        return self._outbox.waiting_with(group) > MANY_WAITING

    def is_behind_with(self, group: str) -> bool:
        return self.is_behind(group) and self._outbox.waiting_of(group) > WAITING_OF_A_VM

    def close_late_by(self, close: Callable[[Sequence[int]], None]) -> None:
        self._outbox.close_late = close

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        # FDPOLL=0 tells systemd to keep a descriptor after EPOLLHUP or EPOLLERR (sd_notify(3)).
        # Otherwise systemd would drop the pipe of a device's standard error, which hangs up when
        # the device has ended.
        words = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}"
        self._put(name, words + ("\nFDVMM=1" if vmm and self._is_keeper else ""), fd)

    def _put(self, name: str, words: str, fd: HasFileno) -> None:
        self._outbox.send(words.encode(), (fd.fileno(),), name.partition(".")[0])
        self.room.put(name)

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        # With a keeper process that answers, one message is enough: the keeper removes ``gone``
        # itself, and only once it has kept the state. It removes nothing if it has lost a
        # descriptor of this VM that this process does not know of yet.
        for each in gone:
            self.room.remove(each)
        if self._answers:
            list_ = f"FDREPLACES={' '.join(gone)}" if stay is None else f"FDKEEPS={' '.join(stay)}"
            self._put(name, f"FDSTORE=1\nFDNAME={name}\n{list_}\nFDLOSSES={losses}", fd)
        else:
            # systemd never says that it has kept a descriptor, but handles datagrams in order. So
            # put the new state first and remove the old descriptors after it: a usable state is
            # there at any time. ``room`` ensures that the store has room for the new state, so it
            # is lost only if PID 1 lacks memory or descriptors.
            self.put(name, fd)
            for each in gone:
                self.remove(each)

    def remove(self, name: str) -> None:
        self.room.remove(name)
        group = name.partition(".")[0]
        self._outbox.send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), (), group)

    def forget(self) -> None:
        # Tell only a keeper process to close its descriptors: systemd empties its store itself
        # when a unit stops.
        if self._is_keeper:
            # The keeper process ends when it reads FORGET. Do not report that end as the loss of
            # the store.
            self._on_gone = lambda: None
            self._forgotten = True
            self._outbox.send(FORGET, (), "")

    async def drained(self, group: str | None = None) -> None:
        deadline = time.monotonic() + TAKEN_WITHIN_S
        outbox = self._outbox
        while not outbox.stalled and (outbox if group is None else outbox.waiting_of(group)):
            if time.monotonic() > deadline:
                outbox.stalled = True
                raise TimeoutError(f"the store has taken nothing for {TAKEN_WITHIN_S:.0f} s")
            await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        """Sends queued messages until the socket is full, and disconnects; the store keeps its
        content.

        A keeper that was sent FORGET has ended on return, unless it hangs.
        """
        self._outbox.flush()
        self._unwatch()
        if self._forgotten and not self._gone:
            poller = select.poll()
            poller.register(self._sock, select.POLLIN)
            poller.poll(KEEPER_ENDS_WITHIN_S * 1000)
        self._sock.close()
        if self._forgotten and self._started is not None:
            self._started[0].wait(KEEPER_ENDS_WITHIN_S)

    def abandon(self) -> None:
        """Disconnects from a store that got nothing; ends a keeper that this process started."""
        self._sock.close()
        if self._started is not None:
            end_keeper(*self._started)


def end_keeper(process: KeeperProcess, path: Path) -> None:
    """Kills a keeper that this process has started and that holds nothing."""
    process.kill()
    with contextlib.suppress(OSError):
        if fd_keeper.is_dead_keepers(os.fspath(path)):
            path.unlink()
