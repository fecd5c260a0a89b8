"""Stores: where descriptors are kept while no controller runs.

``SocketStore`` speaks sd_notify(3)'s language: ``FDSTORE=1`` with a name puts a descriptor in,
``FDSTOREREMOVE=1`` takes a name out. systemd hands everything back when it starts the service
again; our own ``fd_keeper`` does when it is asked. A store never blocks the controller: what its
socket does not take now waits in line. ``NoStore`` keeps nothing.
"""

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.fd_keeper import FORGET
from balloon_daemon.handover.outbox import RETRY_S, Outbox
from balloon_daemon.handover.room import Room
from balloon_daemon.linux.events import OwnedFd

KEEPER_ENDS_WITHIN_S = 1.0
TAKEN_WITHIN_S = 2.0
"""How long a VMM's answer waits for what it says to be kept."""

MANY_WAITING = 64
WAITING_OF_A_VM = 8
"""Messages on their way in, of all VMs and of one: then what can wait should."""


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int: ...


class Store(Protocol):
    """Where descriptors are kept for another controller, by name.

    A name is ``<group>.<what>``, where a group is all of one VM (``keys``); what has no dot in its
    name belongs to no VM.

    Attributes:
        kept: what it held when this controller came; whoever takes a descriptor out of it owns it.
        room: counts what is in it.
    """

    kept: dict[str, OwnedFd]
    room: Room

    @property
    def keeps(self) -> bool:
        """Whether another controller finds there what is put in."""

    @property
    def is_behind(self) -> bool:
        """Whether it has been slow to take what is sent; what can wait should."""

    def is_behind_with(self, group: str) -> bool:
        """Whether much of what this VM has put in is still on its way."""

    def has_all_of(self, group: str) -> bool:
        """Whether all that this VM has put in has been sent."""

    def is_of(self, group: str, user: int | None) -> None:
        """Names a VM's user: users take turns where the store is slow. None: the VM is gone."""

    def watch(self, gone: Callable[[], None]) -> None:
        """Calls ``gone``, once, when the store is gone; within the running event loop."""

    def on_loss(self, group: str, lost: Callable[[str, int], None] | None) -> None:
        """Calls ``lost`` for each name of a VM that could not be kept.

        Args:
            group: the VM's.
            lost: gets the name, and how many of that VM's were lost so far; None: calls nobody.
        """

    def close_late_by(self, close: Callable[[Sequence[int]], None]) -> None:
        """Closes by ``close`` what has waited: that may be the last close of a VMM's file."""

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        """Keeps a duplicate of the descriptor under a name.

        Args:
            name: what to keep it as.
            fd: the descriptor.
            vmm: it leads to the VM's VMM: should that hang up while no balloond runs, our own
                keeper drops all of that VM. systemd keeps it until the next balloond says so.

        Raises:
            OSError: there is no descriptor left for the duplicate.
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
        """Keeps a VM's new state, and then nothing more of what it replaces.

        Args:
            name: of the state.
            fd: its memory.
            gone: what it replaces.
            losses: how often ``lost`` was called for this VM.
            stay: all that is to stay, where it is not known what the store has; else None.

        Raises:
            OSError: as ``put``.
        """

    def remove(self, name: str) -> None:
        """Keeps nothing under that name any more."""

    def forget(self) -> None:
        """Keeps nothing at all any more: an orderly end."""

    async def drained(self, group: str | None = None) -> None:
        """Waits until the store has been sent all that it is to keep; at most for 2 s.

        Args:
            group: waits for what is this VM's alone; None: for all.

        Raises:
            TimeoutError: it takes nothing. Said once; until it takes something again nobody waits.
        """

    def close(self) -> None:
        """Sends what waits, as far as it goes, and disconnects; the store keeps all it has."""

    def abandon(self) -> None:
        """Disconnects where nothing has been put in."""


class NoStore:
    """Keeps nothing: with this controller its VMs' balloons end."""

    keeps = is_behind = False

    def __init__(self) -> None:
        self.kept: dict[str, OwnedFd] = {}
        self.room = Room(0)

    def is_behind_with(self, group: str) -> bool:
        return False

    def has_all_of(self, group: str) -> bool:
        return True

    def is_of(self, group: str, user: int | None) -> None:
        pass

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
        kept: what it held for us, by name.
        capacity: how many descriptors it keeps at most.
        is_keeper: it is our own keeper.
        answers: it says what it could not keep, and takes out what a state replaces by itself.
        started: that keeper's process and its path, where this process has started it.
    """

    def __init__(
        self,
        sock: socket.socket,
        kept: dict[str, OwnedFd],
        *,
        capacity: int,
        is_keeper: bool,
        answers: bool = False,
        started: "tuple[subprocess.Popen[bytes], Path] | None" = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.kept = kept
        self.room = Room(capacity, tuple(kept))
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
        """What a keeper says after its first answer: what it could not keep; or it hangs up."""
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

    def is_of(self, group: str, user: int | None) -> None:
        self._outbox.is_of(group, user)

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

    @property
    def is_behind(self) -> bool:
        return len(self._outbox) > MANY_WAITING

    def is_behind_with(self, group: str) -> bool:
        return self.is_behind and self._outbox.waiting_of(group) > WAITING_OF_A_VM

    def close_late_by(self, close: Callable[[Sequence[int]], None]) -> None:
        self._outbox.close_late = close

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        # FDPOLL=0: systemd else drops what hangs up, and the pipe of a device's standard error is
        # kept because it hangs up when that device has ended.
        words = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}"
        self._put(name, words + ("\nFDVMM=1" if vmm and self._is_keeper else ""), fd)

    def _put(self, name: str, words: str, fd: HasFileno) -> None:
        # The caller may close its descriptor before this one is sent.
        duplicate = OwnedFd(os.dup(fd.fileno()))
        self.room.put(name)
        self._outbox.send(words.encode(), (duplicate,), name.partition(".")[0])

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        # A keeper does both or neither: it takes nothing out where it could not keep the state, or
        # has lost something of this VM that we do not know of yet. systemd answers nothing: it
        # closes what it has no room for, or could not receive, and BARRIER=1 would only say that
        # it has read so far. It takes our datagrams in their order, and by our own count (room)
        # there is a place for the state; what is left is a PID 1 without memory or descriptors.
        for each in gone:
            self.room.remove(each)
        if self._answers:
            list_ = f"FDREPLACES={' '.join(gone)}" if stay is None else f"FDKEEPS={' '.join(stay)}"
            self._put(name, f"FDSTORE=1\nFDNAME={name}\n{list_}\nFDLOSSES={losses}", fd)
        else:
            self.put(name, fd)
            for each in gone:
                self.remove(each)

    def remove(self, name: str) -> None:
        self.room.remove(name)
        group = name.partition(".")[0]
        self._outbox.send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), (), group)

    def forget(self) -> None:
        # systemd empties its store by itself when a unit stops.
        if self._is_keeper:
            # The keeper ends then, as it was told to.
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
        """Sends what waits, as far as it goes, and disconnects; the store keeps all it has.

        A keeper that was told to forget has ended on return, unless it hangs.
        """
        self._outbox.flush()
        self._unwatch()
        if self._forgotten and not self._gone:
            poller = select.poll()
            poller.register(self._sock, select.POLLIN)
            poller.poll(KEEPER_ENDS_WITHIN_S * 1000)
        self._sock.close()
        if self._forgotten and self._started is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started[0].wait(KEEPER_ENDS_WITHIN_S)

    def abandon(self) -> None:
        """Disconnects where nothing has been put in; a keeper that we have started ends."""
        self._sock.close()
        if self._started is not None:
            end_keeper(*self._started)


def end_keeper(process: "subprocess.Popen[bytes]", path: Path) -> None:
    """Ends a keeper that we have started and that keeps nothing."""
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        if fd_keeper.is_dead_keepers(os.fspath(path)):
            path.unlink()
