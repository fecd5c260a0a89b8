"""What a hostile VMM user does: each attack a generator that goes on for ever, step by step."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.memory_table import MAX_MEM_SLOTS
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import encode_request
from tests.fakes.slow_close import lingering_pair
from tests.fuzz.choices import Choices
from tests.fuzz.hostile import send_something
from tests.fuzz.messages import FRONTEND_BASE, rightful_start
from tests.soak.enemy import Attack, Enemy, Line
from tests.soak.hostile_device import flood_with_garbage, flood_with_reports

PAGE = 4096
LINGERING = 40
"""More sockets that linger than balloond has children to wait for them."""

FDS_A_MESSAGE = 250
"""Nearly as many as the kernel lets a message carry (SCM_MAX_FD)."""

CROWD = 1000
TIMES_TRIED = 3
STORED_AT_A_TIME = 64
"""Connections of 256 regions: with as many each a store of 16,384 is full."""

TURN_S = 1.0
"""How long each attack goes on where one user makes all of them."""

Said = list[tuple[bytes, Sequence[int]]]

_FEATURES = wire.U64.pack(wire.VHOST_USER_F_PROTOCOL_FEATURES)
_PROTOCOL = wire.U64.pack(wire.OFFERED_PROTOCOL_FEATURES)
_HELLO: Said = [
    (encode_request(Request.SET_FEATURES, _FEATURES), ()),
    (encode_request(Request.SET_PROTOCOL_FEATURES, _PROTOCOL), ()),
]
_ILLEGAL = wire.HEADER.pack(Request.SET_OWNER, wire.VERSION, wire.MAX_PAYLOAD_BYTES + 1)
_ERR = encode_request(Request.SET_VRING_ERR, wire.U64.pack(0))


def _ring(request: Request, number: int, index: int = 0) -> bytes:
    return encode_request(request, wire.VringState(index, number).encode())


_CONFIG = wire.ConfigAccess(0, 0, bytes(16)).encode()
_CHANGES = b"".join(_ring(Request.SET_VRING_NUM, 1 << (n % 8)) for n in range(200))
"""4 KB of requests that nobody answers, and that all have to be kept."""

_QUESTIONS = b"".join(
    encode_request(request, payload, ack=ack)
    for ack in (False, True)
    for request, payload in (
        (Request.GET_FEATURES, b""),
        (Request.GET_PROTOCOL_FEATURES, b""),
        (Request.GET_QUEUE_NUM, b""),
        (Request.GET_MAX_MEM_SLOTS, b""),
        (Request.GET_CONFIG, _CONFIG),
        (Request.SET_CONFIG, _CONFIG),
        (Request.SET_VRING_NUM, wire.VringState(1, 8).encode()),
        (Request.SET_VRING_BASE, wire.VringState(1, 0).encode()),
        (Request.SET_OWNER, b""),
    )
)


def linger(enemy: Enemy) -> Iterator[None]:
    """Sockets whose close waits for the enemy, then as many descriptors as a message carries."""
    for number in range(LINGERING):
        ours, theirs = lingering_pair()
        enemy.held.append(theirs)
        line = enemy.connect()
        try:
            if line is None:
                raise ConnectionRefusedError
            if number % 2:
                # Behind what ends the connection: it is never received, and goes with the socket.
                line.push(_ILLEGAL)
            line.push(_ERR, [ours.fileno()])
        except OSError:
            # It was not sent, so we are the one who would wait.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        # Where balloond has closed its descriptor already, this close is the last one, and waits.
        threading.Thread(target=ours.close, daemon=True).start()
        enemy.leave(line)
        yield
    nothing = os.open(os.devnull, os.O_RDWR)
    while True:
        if line := enemy.connect():
            with contextlib.suppress(OSError):
                line.push(_ERR, [nothing] * FDS_A_MESSAGE)
                enemy.counts["descriptors"] += FDS_A_MESSAGE
            enemy.leave(line)
        enemy.at_work = enemy.counts["connections"] + enemy.counts["refused"] > LINGERING + 20
        yield


def crowd(enemy: Enemy) -> Iterator[None]:
    """A thousand connections, with as many requests in each as its queue takes."""
    lines: list[Line | None] = [None] * CROWD
    for number in [*range(CROWD)] * TIMES_TRIED:
        # All of them before anything is said: afterwards balloond may be too busy to take more.
        if lines[number] is None:
            lines[number] = enemy.connect()
            yield
    while True:
        idle = True
        for number, line in enumerate(lines):
            try:
                if line is None:
                    line = lines[number] = enemy.connect()
                taken = 0
                while line is not None and taken < 16 and line.push(_CHANGES):
                    taken += 1
                idle &= not taken
                enemy.counts["messages"] += 200 * taken
            except OSError:
                enemy.counts["cut"] += 1
                enemy.leave(line)
                lines[number] = None
            if number % 20 == 0:
                yield
        enemy.at_work = True
        if idle:
            enemy.pause()


def come_and_go(enemy: Enemy) -> Iterator[None]:
    """Connects and hangs up as fast as it can."""
    while True:
        if line := enemy.connect():
            with contextlib.suppress(OSError):
                line.push(encode_request(Request.GET_FEATURES))
            enemy.leave(line)
        enemy.at_work = enemy.counts["connections"] + enemy.counts["refused"] > 20
        yield


def regions(enemy: Enemy) -> Iterator[None]:
    """As many memory regions as there may be, then requests that have them all kept anew."""
    memory = os.memfd_create("regions")
    os.ftruncate(memory, MAX_MEM_SLOTS * PAGE)
    said: Said = [*_HELLO, *((_region(n, n * PAGE), [memory]) for n in range(MAX_MEM_SLOTS))]
    while True:
        line = enemy.connect()
        try:
            if line is not None:
                yield from enemy.say(line, said)
                enemy.at_work = True
                while True:
                    yield from enemy.say(line, [(_CHANGES, ())])
                    enemy.counts["messages"] += 199
        except OSError:
            enemy.counts["cut"] += 1
        enemy.at_work |= enemy.counts["refused"] > 20
        enemy.leave(line)
        yield


def _region(number: int, offset: int = 0) -> bytes:
    place = GuestAddr(number * PAGE), PAGE, FrontendAddr(FRONTEND_BASE + number * PAGE), offset
    region = wire.RegionDescription(*place)
    return encode_request(Request.ADD_MEM_REG, region.encode_single())


def store(enemy: Enemy) -> Iterator[None]:
    """Connections of 256 regions, each region of a file of its own: all of that is to be kept."""
    lines: deque[Line] = deque()
    tried = 0
    while True:
        tried += 1
        line = enemy.connect()
        try:
            if line is not None:
                lines.append(line)
                yield from enemy.say(line, _HELLO)
                for number in range(MAX_MEM_SLOTS):
                    memory = os.memfd_create("stored")
                    try:
                        os.ftruncate(memory, PAGE)
                        yield from enemy.say(line, [(_region(number), [memory])])
                    finally:
                        os.close(memory)
        except OSError:
            enemy.counts["cut"] += 1
        while len(lines) > STORED_AT_A_TIME:
            enemy.leave(lines.popleft())
        enemy.at_work = tried > 8
        yield


def requests(enemy: Enemy) -> Iterator[None]:
    """Requests of all kinds, right ones and wrong ones, and not one answer is ever read."""
    lines: list[Line | None] = [None] * 8
    while True:
        idle = True
        for number, line in enumerate(lines):
            try:
                if line is None:
                    line = lines[number] = enemy.connect()
                    if line is not None and number % 4:
                        yield from enemy.say(line, _HELLO, reads=False)
                if line is None:
                    continue
                if number % 2:
                    taken = line.push(_QUESTIONS)
                    enemy.counts["messages"] += 18 * taken
                    idle &= not taken
                elif send_something(line.sock, Choices(enemy.random.randbytes(64))):
                    enemy.counts["messages"] += 1
                    idle = False
                else:
                    raise ConnectionResetError
            except OSError:
                enemy.counts["cut"] += 1
                enemy.leave(line)
                lines[number] = None
            yield
        enemy.at_work = True
        if idle:
            enemy.pause()


def attach_and_leave(enemy: Enemy) -> Iterator[None]:
    """A VM that attaches as it should, and is gone again."""
    said = _whole_vm()
    # Whoever has read the answer behind it knows that a device was forked.
    waited = [*said, (encode_request(Request.GET_FEATURES), ())]
    while True:
        waits = enemy.random.random() < 0.5
        line = enemy.connect()
        try:
            if line is not None:
                yield from enemy.say(line, waited if waits else said, reads=False)
                while waits and not line.read():
                    enemy.pause()
                    yield
                enemy.counts["attached"] += 1
        except OSError:
            enemy.counts["cut"] += 1
        enemy.leave(line)
        enemy.at_work = sum(enemy.counts[name] for name in ("attached", "refused", "cut")) > 8
        yield


def rings(enemy: Enemy) -> Iterator[None]:
    """Rings that are set up and taken down: a device is forked each time."""
    said = _whole_vm()
    down: Said = [(_ring(Request.GET_VRING_BASE, 0, index), ()) for index in range(4)]
    up = [each for each in said if _is_of_ring(each[0])]
    while True:
        line = enemy.connect()
        try:
            if line is not None:
                yield from enemy.say(line, said)
                while True:
                    yield from enemy.say(line, [*down, *up])
                    enemy.counts["turns"] += 1
                    enemy.at_work = enemy.counts["turns"] > 4
        except OSError:
            enemy.counts["cut"] += 1
        enemy.at_work |= enemy.counts["refused"] + enemy.counts["cut"] > 20
        enemy.leave(line)
        yield


def _is_of_ring(message: bytes) -> bool:
    return _request_of(message) in range(Request.SET_VRING_NUM, Request.SET_VRING_ENABLE + 1)


def _request_of(message: bytes) -> Request:
    return Request(wire.HEADER.unpack_from(message)[0])


def _whole_vm() -> Said:
    """What a VMM says to share its memory and to start four rings."""
    memory = os.memfd_create("hostile-vm")
    os.ftruncate(memory, 64 * PAGE)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    ours, _theirs = (each.detach() for each in socket.socketpair())
    fds = {Request.SET_MEM_TABLE: memory, Request.SET_BACKEND_REQ_FD: ours}
    return [
        (content, [fds.get(_request_of(content), event)] * count)
        for content, count in rightful_start(4)
    ]


def nothing(enemy: Enemy) -> Iterator[None]:
    """Only takes a processor: what a neighbour waits longer beside this is the machine's."""
    while True:
        enemy.counts["sums"] += bool(sum(range(10_000)))
        enemy.at_work = True
        yield


def everything(enemy: Enemy) -> Iterator[None]:
    """All of a user's attacks, one after the other."""
    while True:
        for act in BY_A_USER.values():
            until = time.monotonic() + TURN_S
            for _ in act(enemy):
                yield
                if time.monotonic() > until:
                    break
            enemy.leave_all()
        enemy.at_work = True


BY_A_USER: dict[str, Attack] = {
    "linger": linger,
    "crowd": crowd,
    "come-and-go": come_and_go,
    "regions": regions,
    "store": store,
    "requests": requests,
    "attach-and-leave": attach_and_leave,
    "rings": rings,
}
BY_A_DEVICE: dict[str, Attack] = {
    "device-reports": flood_with_reports,
    "device-garbage": flood_with_garbage,
}
ACTS: dict[str, Attack] = {
    "nothing": nothing,
    **BY_A_USER,
    "everything": everything,
    **BY_A_DEVICE,
}
