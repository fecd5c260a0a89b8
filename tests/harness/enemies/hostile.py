"""Enemies of a running balloond: VMMs that send anything, and a guest that writes anything.

The hostile guest has kept pages, which none of its writes ever names. They hold a pattern, which
must stay intact while the guest lives. No word of the pattern is a PFN of the guest, so even a
device that reads the pattern as PFNs may not remove a kept page for it.
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
from balloon_daemon.virtio.balloon import (
    OFFERED_FEATURES,
    BalloonFeature,
    BalloonQueue,
    queue_numbers,
)
from tests.fakes.raw_ring import RawRing, area_offsets
from tests.harness.enemies.choices import Choices
from tests.harness.enemies.descriptors import POOL, usual_fd
from tests.harness.enemies.messages import FRONTEND_BASE, random_message
from tests.harness.invariants import require

PAGE = 4096
PAGES = 2048
FIRST_NAMED, FIRST_KEPT = 16, 1024
"""Lower pages hold rings and buffers; those in between are named in writes; pages from FIRST_KEPT
on never are."""

RING_SIZE = 64
BUFFERS_AT = 8 * PAGE
_FEATURES = OFFERED_FEATURES & ~BalloonFeature.PAGE_POISON
"""Without PAGE_POISON, as it writes no ``poison_val``: so what it reports is removed."""
QUEUES = queue_numbers(_FEATURES)
PATIENCE_S = 60.0


def converse(path: str, random: Random) -> int:
    """One front-end's connection, from its first byte to its sudden end. Returns messages sent."""
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
            # Half a message, then a hang-up.
            with contextlib.suppress(OSError):
                vmm.send(random.randbytes(random.randrange(1, 12)))
    return sent


def never_read(path: str) -> int:
    """A front-end that sends requests and reads no answer. Returns attacks made."""
    requests = encode_request(FrontendRequest.GET_FEATURES) * 256
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.settimeout(PATIENCE_S)
        vmm.connect(path)
        with contextlib.suppress(ConnectionError):
            # Far more answers than a socket and a back-end's buffer hold.
            for _ in range(400):
                vmm.sendall(requests)
    return 1


def shrink_memory(path: str, random: Random) -> int:
    """A VMM that truncates its guest's memory while the device runs. Returns attacks made."""
    guest = HostileGuest(path, random)
    try:
        guest.misbehave(2)
        guest.shrink()
        guest.misbehave_blindly(20)
    finally:
        guest.close()
    return 22


def send_something(vmm: socket.socket, choices: Choices) -> bool:
    """Sends one message with random descriptors; False where the connection is closed."""
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
    """A guest of a well-behaved VMM that writes anything into its rings.

    Args:
        path: balloond's socket.
        random: decides everything.

    Raises:
        OSError, BalloondError: balloond does not accept it.
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
                _FEATURES,
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
        """Writes chains and garbage, kicks, and sometimes lets its VMM send an invalid message."""
        for _ in range(times):
            for n in QUEUES:
                self._write_chains(n)
            self._write_garbage()
            for n in QUEUES:
                with contextlib.suppress(BlockingIOError):
                    self.frontend.kick(n)

    def shrink(self) -> None:
        """Truncates its memory to nothing; from then on nobody may touch it, this class
        included."""
        os.ftruncate(self._memory, 0)

    def misbehave_blindly(self, times: int) -> None:
        """Kicks without new chains."""
        for _ in range(times):
            for n in QUEUES:
                with contextlib.suppress(BlockingIOError):
                    self.frontend.kick(n)

    def go_mad(self) -> None:
        """Lets its VMM send a message that it should not send while rings run."""
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
        """A PFN: mostly of a page that may be given, sometimes of none, never of a kept page."""
        if self._random.random() < 0.05:
            return self._random.randrange(1 << 32) | 0x80808080
        return self._random.randrange(FIRST_NAMED, FIRST_KEPT)

    def _write_garbage(self) -> None:
        """Writes garbage among rings and buffers, without any byte that could name a kept page.

        Every byte has its highest bit set, so no two, four or eight of them are a kept page's PFN
        or address, wherever they are written.
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
                    # A report of a kept page would hand it over.
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
        """Checks the pattern of every kept page. Returns how many kept pages there are."""
        for page in range(FIRST_KEPT, PAGES):
            kept = self._map[page * PAGE : (page + 1) * PAGE]
            require(kept == self._pattern, "a page went that its guest never handed over", page)
        return PAGES - FIRST_KEPT
