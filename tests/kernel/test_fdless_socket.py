"""A VMM that sends descriptors over a connection that balloond makes holds nobody up."""

import array
import asyncio
import contextlib
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from balloon_daemon.guests.driven import lookups, unix_socket, vmm_process
from balloon_daemon.guests.driven.cloud_hypervisor import CloudHypervisorControl
from balloon_daemon.guests.driven.control import Control, ControlError, Fault
from balloon_daemon.guests.driven.crosvm import CrosvmControl
from balloon_daemon.guests.driven.firecracker import FirecrackerControl
from balloon_daemon.guests.driven.qmp import QmpControl
from balloon_daemon.guests.driven.unix_socket import connect
from balloon_daemon.linux import fdless_socket, socket_holder
from balloon_daemon.linux.closing_child import NAME
from balloon_daemon.linux.credentials import Credentials, peer_of
from balloon_daemon.linux.fdless_socket import LeftSockets
from balloon_daemon.linux.passed_fds import DescriptorsSentError
from tests.fakes.listening_vmm import ListeningVmm
from tests.harness.faults import fault
from tests.harness.slow_close import lingering_pair
from tests.harness.waiting import HANG_S, wait_until

STREAM, PACKETS = socket.SOCK_STREAM, socket.SOCK_SEQPACKET


def closing_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == NAME]


def older_kernel(patch: pytest.MonkeyPatch) -> None:
    """Has all go as before Linux 6.16, which refuses no descriptors."""
    patch.setattr(fdless_socket, "refuse_descriptors", lambda sock: False)


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Iterator[LeftSockets]:
    """An older kernel, and who closes what is left there."""
    older_kernel(monkeypatch)
    left = LeftSockets()
    monkeypatch.setattr(fdless_socket, "LEFT", left)
    yield left
    for child in closing_children():
        child.kill()
        os.waitpid(child.pid, 0)


@pytest.fixture
def no_child(older: LeftSockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older kernel, on which no child may be forked."""

    def fork(fds: list[int]) -> None:
        pytest.fail(f"a child was to close {fds}")

    monkeypatch.setattr(fdless_socket, "ClosingChild", fork)


def send(sock: socket.socket, content: bytes, fds: list[int], flags: int = 0) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    sock.sendmsg([content], [rights] if fds else [], flags)


@contextlib.contextmanager
def connected(
    path: Path, kind: socket.SocketKind
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """One of the module's sockets, and the socket of the VMM that it is connected to."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        listener.listen(1)
        ours = fdless_socket.fdless_socket(kind)
        ours.connect(str(path))
        ours.setblocking(False)
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def told_of_close() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A descriptor to send, the last but for the receiver's, and whether it is closed."""
    reading, writing = os.pipe()
    poll = select.poll()
    poll.register(reading, 0)
    try:
        yield writing, lambda: bool(poll.poll(0))
    finally:
        os.close(reading)


# --- older kernels: what is read, and who closes ------------------------------------------------


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
def test_descriptor_stays_where_it_is_and_nothing_more_is_read(
    tmp_path: Path, older: LeftSockets, flags: int, into: bool
) -> None:
    buffer = bytearray(64)

    def read(sock: socket.socket) -> bytes:
        return bytes(buffer[: sock.recv_into(buffer)]) if into else sock.recv(64)

    with (
        told_of_close() as (fd, is_closed),
        connected(tmp_path / "vmm", STREAM) as (ours, theirs),
    ):
        send(theirs, b"abc", [])
        assert read(ours) == b"abc"
        with pytest.raises(BlockingIOError):
            read(ours)
        send(theirs, b"d", [fd], flags)
        send(theirs, b"e", [])
        os.close(fd)

        for _ in range(2):
            with pytest.raises(DescriptorsSentError):
                read(ours)
        assert not is_closed()
        ours.close()
        wait_until(is_closed, what="a child has closed it")
        assert len(closing_children()) == 1


def test_packet_with_a_descriptor_behind_empty_ones_is_left_to_a_child(
    tmp_path: Path, older: LeftSockets
) -> None:
    with (
        told_of_close() as (fd, is_closed),
        connected(tmp_path / "vmm", PACKETS) as (ours, theirs),
    ):
        send(theirs, b"abc", [])
        send(theirs, b"", [])
        send(theirs, b"", [fd])
        os.close(fd)

        assert ours.recv(64) == b"abc"
        ours.close()

        wait_until(is_closed, what="a child has closed it")
        assert len(closing_children()) == 1


@pytest.mark.parametrize("kind", [STREAM, PACKETS])
@pytest.mark.parametrize("ends_first", [False, True])
def test_connection_without_descriptors_is_closed_here(
    tmp_path: Path, no_child: None, kind: socket.SocketKind, ends_first: bool
) -> None:
    with connected(tmp_path / "vmm", kind) as (ours, theirs):
        for content in (b"abc", b"", b"d" * 4096, b""):
            send(theirs, content, [])
        assert ours.recv(3) == b"abc"
        if ends_first:
            ours.send(b"unread, so that the end of the other side is an error here")
            theirs.close()

        ours.close()


@pytest.mark.parametrize("kind", [STREAM, PACKETS])
def test_socket_that_was_never_connected_is_closed_here_and_takes_nothing_later(
    tmp_path: Path, no_child: None, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener, told_of_close() as (fd, _):
        listener.bind(str(tmp_path / "vmm"))
        listener.listen(1)
        ours = fdless_socket.fdless_socket(kind)
        with socket.socket(fileno=os.dup(ours.fileno())) as in_a_child:
            ours.close()
            # A child that looks the path up may connect it only then.
            in_a_child.connect(str(tmp_path / "vmm"))
            with listener.accept()[0] as theirs, pytest.raises(BrokenPipeError):
                send(theirs, b"x", [fd])
        os.close(fd)


def test_children_that_hang_are_bounded_and_the_others_wait(
    tmp_path: Path, older: LeftSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fdless_socket, "MOST_CHILDREN", 1)
    monkeypatch.setattr(fdless_socket, "MOST_OF_AN_OWNER", 2)
    lingers, reader = lingering_pair()
    with reader, told_of_close() as (fd, is_closed):
        for number, sent in enumerate((lingers.detach(), fd)):
            with connected(tmp_path / f"vmm{number}", STREAM) as (ours, theirs):
                fdless_socket.leads_to(ours, 4711)
                send(theirs, b"x", [sent])
                os.close(sent)
            assert older.refused() == ([4711] if number else [])
        wait_until(lambda: len(closing_children()) == 1, what="a child has its name")
        assert not is_closed()

        reader.close()

        wait_until(lambda: older.refused() == [], what="one of the two is closed")
        wait_until(is_closed, what="the other one is closed")


# --- whole controls -----------------------------------------------------------------------------


@dataclass
class Passing(ListeningVmm):
    """A VMM that sends a TCP socket whose close never ends to whoever connects.

    Attributes:
        flags: with which it sends.
        refused: what the kernel said to that.
        kept: the other ends, which keep the closes from ending.
    """

    flags: int = 0
    refused: int = 0
    kept: tuple[socket.socket, ...] = ()

    def pass_one(self, client: socket.socket) -> None:
        """Sends one, and leaves its last close to whoever gets it."""
        lingers, other = lingering_pair()
        with lingers:
            try:
                send(client, b"x", [lingers.fileno()], self.flags)
            except OSError as err:
                self.refused = err.errno or 0
                # The last close is here: it must not last.
                lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
        self.kept += (other,)

    async def serve(self, client: socket.socket) -> None:
        self.pass_one(client)
        while not self.refused and await asyncio.get_running_loop().sock_recv(client, 4096):
            pass


@dataclass
class PassingPackets(Passing):
    """As crosvm's control socket is one."""

    socket_type = PACKETS


def apart(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Plays a scene in another process, which alone hangs where the scene does."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(scene())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    ended: list[int] = []

    def has_ended() -> bool:
        which, status = os.waitpid(pid, os.WNOHANG)
        if which:
            ended.append(status)
        return bool(ended)

    try:
        wait_until(has_ended, what="the scene is over")
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert ended == [0]


CONTROLS: dict[str, Callable[[str], Control]] = {
    "qmp": QmpControl,
    "firecracker": FirecrackerControl,
    "cloud_hypervisor": CloudHypervisorControl,
    "crosvm": CrosvmControl,
}


@fault("the VMM of a driven VM sends descriptors")
@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
@pytest.mark.parametrize("kernel", ["this", "older"])
@pytest.mark.parametrize("name", CONTROLS)
def test_vmm_that_sends_a_socket_that_lingers_holds_up_no_controller(
    tmp_path: Path, name: str, kernel: str, flags: int
) -> None:
    if name == "crosvm" and flags:
        flags = socket.MSG_EOR  # Packets have no urgent ones.

    async def scene() -> None:
        patch = pytest.MonkeyPatch()
        if kernel == "older":
            older_kernel(patch)
        # Children of this process's own, which is waited for however busy the processors are.
        patch.setattr(lookups, "WITHIN_S", HANG_S)
        looks = lookups.Lookups()
        patch.setattr(unix_socket, "LOOKUPS", looks)
        patch.setattr(vmm_process, "LOOKUPS", looks)
        kind = PassingPackets if name == "crosvm" else Passing
        async with kind(tmp_path / "vmm", flags=flags) as vmm:
            control = CONTROLS[name](str(vmm.path))
            with pytest.raises(ControlError) as caught:
                await control.open(lambda notice: None)
            control.close()
            if vmm.refused:
                assert (kernel, caught.value.fault) == ("this", Fault.GONE)
            else:
                assert caught.value.fault is Fault.NONSENSE
                assert caught.value.detail == "it sends descriptors"
                while not closing_children():
                    await asyncio.sleep(0)

    apart(scene)


@fault("the VMM of a driven VM sends descriptors")
def test_user_whose_descriptors_are_not_closed_yet_is_not_connected_to(
    tmp_path: Path, older: LeftSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fdless_socket, "MOST_OF_AN_OWNER", 1)
    monkeypatch.setattr(unix_socket, "LEFT", older)
    monkeypatch.setattr(lookups, "WITHIN_S", HANG_S)

    async def scene() -> None:
        async with Passing(tmp_path / "vmm") as vmm:
            sock = await connect(str(vmm.path), STREAM)
            while not vmm.kept:
                await asyncio.sleep(0)
            sock.close()
            with pytest.raises(ControlError) as caught:
                await connect(str(vmm.path), STREAM)
            assert caught.value.fault is Fault.NONSENSE
            assert caught.value.detail.startswith("its user has sent descriptors")

            vmm.kept[0].close()

            while older.refused():
                await asyncio.sleep(0)
            (await connect(str(vmm.path), STREAM)).close()
        for other in vmm.kept:
            other.close()

    asyncio.run(asyncio.wait_for(scene(), HANG_S))


@pytest.mark.parametrize("kernel", ["this", "older"])
def test_listener_that_sends_a_socket_that_lingers_at_once_does_not_hold_up_a_start(
    tmp_path: Path, kernel: str
) -> None:
    async def scene() -> None:
        patch = pytest.MonkeyPatch()
        if kernel == "older":
            older_kernel(patch)
        vmm = Passing(tmp_path / "vmm")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(vmm.path))
            listener.listen(1)

            def peer_after_it_has_sent(probe: socket.socket) -> Credentials:
                """In time, before the probe hangs up."""
                with listener.accept()[0] as client:
                    vmm.pass_one(client)
                return peer_of(probe)

            patch.setattr(socket_holder, "peer_of", peer_after_it_has_sent)
            assert socket_holder.holder_of(vmm.path).startswith("a running process listens there")
        while not vmm.refused and not closing_children():
            await asyncio.sleep(0)

    apart(scene)
