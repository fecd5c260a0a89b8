"""Enemies of a running balloond: VMMs that say anything, and a guest that writes anything.

The hostile guest knows its own memory: pages that none of its writes ever named hold a pattern,
and must hold it for as long as it lives. No word of the pattern is a PFN that it has, so not even
a device that is made to read the pattern as PFNs has a right to one of them.
"""

import array
import contextlib
import mmap
import os
import select
import socket
from random import Random

from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.styles import STYLES, Ring
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    FrontendRequest,
    RegionDescription,
    encode_request,
)
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonQueue, queue_numbers
from tests.fakes.raw_ring import RawRing, area_offsets
from tests.harness.enemies.choices import Choices
from tests.harness.enemies.descriptors import POOL, usual_fd
from tests.harness.enemies.messages import FRONTEND_BASE, random_message
from tests.harness.invariants import require

PAGE = 4096
PAGES = 2048
FIRST_NAMED, FIRST_KEPT = 16, 1024
"""Pages below hold rings and buffers; those between are named; those from here on never."""

RING_SIZE = 64
BUFFERS_AT = 8 * PAGE
QUEUES = queue_numbers(OFFERED_FEATURES)
PATIENCE_S = 60.0


def converse(path: str, random: Random) -> int:
    """One front-end's visit, from its first byte to its sudden end. Returns messages sent."""
    choices = Choices(random.randbytes(random.choice((16, 200, 1500))))
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.settimeout(PATIENCE_S)
        vmm.connect(path)
        vmm.setblocking(False)
        reads = random.random() < 0.9
        while choices and send_something(vmm, choices):
            sent += 1
            if reads:
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    vmm.recv(1 << 16)
        if random.random() < 0.2:
            # Half a message, and the end.
            with contextlib.suppress(OSError):
                vmm.send(random.randbytes(random.randrange(1, 12)))
    return sent


def never_read(path: str) -> int:
    """A front-end that asks and asks and reads no answer. Returns attacks made."""
    requests = encode_request(FrontendRequest.GET_FEATURES) * 256
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.settimeout(PATIENCE_S)
        vmm.connect(path)
        with contextlib.suppress(ConnectionError):
            # Far more answers than a socket and a patient back-end hold.
            for _ in range(400):
                vmm.sendall(requests)
    return 1


def shrink_memory(path: str, random: Random) -> int:
    """A VMM that takes its guest's memory away under the device. Returns attacks made."""
    guest = HostileGuest(path, random)
    try:
        guest.misbehave(2)
        guest.shrink()
        guest.misbehave_blindly(20)
    finally:
        guest.close()
    return 22


def send_something(vmm: socket.socket, choices: Choices) -> bool:
    """Sends one message with whatever descriptors; False where nobody takes it any more."""
    message, expected = random_message(choices)
    count = choices.below(10) if choices.chance(16) else expected
    usual = usual_fd(message)
    fds = [POOL[choices.below(len(POOL))] if choices.chance(64) else usual for _ in range(count)]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        vmm.sendmsg([message], rights)
    except BlockingIOError:
        poller = select.poll()
        poller.register(vmm, select.POLLOUT)
        return bool(poller.poll(100))
    except OSError:
        return False
    return True


class HostileGuest:
    """A guest behind a well-behaved VMM that writes into its rings what it likes.

    Args:
        path: balloond's socket.
        random: decides everything.

    Raises:
        OSError, BalloondError: balloond does not take it in.
    """

    def __init__(self, path: str, random: Random) -> None:
        self._random = random
        self._memory = os.memfd_create("hostile-guest")
        os.ftruncate(self._memory, PAGES * PAGE)
        self._map = mmap.mmap(self._memory, PAGES * PAGE)
        self._pattern = bytes(0x80 | random.randrange(1, 128) for _ in range(PAGE))
        for page in range(FIRST_KEPT, PAGES):
            self._map[page * PAGE : (page + 1) * PAGE] = self._pattern
        whole = memoryview(self._map)
        self._rings = [RawRing(whole[n * PAGE :], RING_SIZE) for n in QUEUES]
        style = random.choice(list(STYLES.values()))
        self.frontend = FakeFrontend(Wire.connect(path, timeout_s=PATIENCE_S), style)
        try:
            self.frontend.negotiate()
            region = RegionDescription(GuestAddr(0), PAGES * PAGE, FrontendAddr(FRONTEND_BASE), 0)
            available, used, _ = area_offsets(RING_SIZE)
            self.frontend.start(
                OFFERED_FEATURES,
                [(region, self._memory)],
                [
                    Ring(
                        n,
                        RING_SIZE,
                        GuestAddr(n * PAGE),
                        GuestAddr(n * PAGE + available),
                        GuestAddr(n * PAGE + used),
                    )
                    for n in QUEUES
                ],
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hangs up; to be called after the last ``check``."""
        self.frontend.close()
        os.close(self._memory)

    def misbehave(self, times: int) -> None:
        """Writes chains and garbage, kicks, and now and then lets its VMM go mad."""
        for _ in range(times):
            for n in QUEUES:
                self._write_chains(n)
            self._write_garbage()
            for n in QUEUES:
                with contextlib.suppress(BlockingIOError):
                    self.frontend.kick(n)

    def shrink(self) -> None:
        """Its memory ends where it began; nothing of it may be touched any more, by us neither."""
        os.ftruncate(self._memory, 0)

    def misbehave_blindly(self, times: int) -> None:
        """Kicks, with nothing new behind them."""
        for _ in range(times):
            for n in QUEUES:
                with contextlib.suppress(BlockingIOError):
                    self.frontend.kick(n)

    def go_mad(self) -> None:
        """Its VMM says something that it should not say with rings running."""
        choices = Choices(self._random.randbytes(64))
        with socket.socket(fileno=os.dup(self.frontend.requests.wire.fileno())) as wire:
            send_something(wire, choices)

    def _write_chains(self, n: int) -> None:
        random, ring = self._random, self._rings[n]
        for _ in range(random.randrange(4)):
            at = BUFFERS_AT + random.randrange(8) * 1024
            parts = []
            for part in range(random.choice((1, 1, 2, 5))):
                if QUEUES[n] is BalloonQueue.REPORTING_VQ:
                    page = random.randrange(FIRST_KEPT - 600)
                    parts.append((page * PAGE, random.randrange(8) * PAGE))
                    continue
                pfns = [self._pfn() for _ in range(random.randrange(32))]
                content = b"".join(pfn.to_bytes(4, "little") for pfn in pfns)
                addr = at + 128 * part
                self._map[addr : addr + len(content)] = content
                parts.append((addr, len(content)))
            indices = random.sample(range(RING_SIZE), len(parts))
            reporting = QUEUES[n] is BalloonQueue.REPORTING_VQ
            ring.offer(ring.chain(indices, (), parts) if reporting else ring.chain(indices, parts))

    def _pfn(self) -> int:
        """Mostly a page that it may give; sometimes one that nobody has. Never a kept one."""
        if self._random.random() < 0.05:
            return self._random.randrange(1 << 32) | 0x80808080
        return self._random.randrange(FIRST_NAMED, FIRST_KEPT)

    def _write_garbage(self) -> None:
        """Anything, anywhere among rings and buffers, but no byte that could name a kept page.

        Every byte has its highest bit set: no two, four or eight of them are a kept page's PFN
        or address, wherever they land.
        """
        random = self._random
        match random.randrange(6):
            case 0:
                ring = random.choice(self._rings)
                ring.avail_idx = ring.avail_idx + random.choice((1, 3, 64, 65, 30000))
            case 1:
                random.choice(self._rings).used_idx = random.randrange(1 << 16)
            case 2:
                random.choice(self._rings).offer(random.randrange(2 * RING_SIZE))
            case 3:
                n, index = random.choice(list(QUEUES)), random.randrange(RING_SIZE)
                addr = random.choice((0, BUFFERS_AT, FIRST_KEPT * PAGE, PAGES * PAGE, 1 << 63))
                if QUEUES[n] is BalloonQueue.REPORTING_VQ:
                    # To report a kept page would be to hand it over.
                    addr = min(addr, BUFFERS_AT)
                length = random.choice((0, 3, 4, 4096, 65536, 1 << 31))
                following = random.randrange(2 * RING_SIZE)
                self._rings[n].describe(index, addr, length, random.randrange(8), following)
            case _:
                at = random.randrange(BUFFERS_AT + 8 * 1024 - 64)
                length = random.randrange(1, 64)
                self._map[at : at + length] = bytes(
                    random.randrange(128, 256) for _ in range(length)
                )

    def check(self) -> int:
        """Holds every kept page to its pattern. Returns how many there are."""
        for page in range(FIRST_KEPT, PAGES):
            kept = self._map[page * PAGE : (page + 1) * PAGE]
            require(kept == self._pattern, "a page went that its guest never handed over", page)
        return PAGES - FIRST_KEPT
