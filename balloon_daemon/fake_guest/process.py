"""A fake guest as a process of its own, controlled by JSON lines.

Each line on stdin is a command, ``{"command": "touch", "bytes": 1048576, "id": 7}``; each line on
stdout is an answer, which repeats the command's ``id`` and has ``error`` where it failed, or an
event, ``{"event": "inflated", "actual": 256, ...}``. The process ends when its stdin ends, so that
it never outlives the process that started it.

Commands: ``status``, ``check``, ``touch`` (bytes), ``stats``, ``report-free-pages`` (block_pages),
``stop`` and ``start`` (the driver is unbound and bound), ``pause`` and ``resume`` (the machine),
``reboot``, ``disconnect`` and ``connect`` (the machine is killed and started again), ``quit``.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import or_

from balloon_daemon.errors import BalloondError, ConfigError
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, step
from balloon_daemon.fake_guest.page_reporting import REPORT_BLOCK_PAGES
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import STYLES
from balloon_daemon.fake_guest.wire import DEFAULT_TIMEOUT_S
from balloon_daemon.units import parse_size
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature

STDIN = 0
STDOUT = 1

_FEATURE_NAMES = {
    feature.name.lower().replace("_", "-"): feature
    for feature in BalloonFeature
    if feature.name is not None and feature is not BalloonFeature.VERSION_1
}


def main(argv: Sequence[str]) -> int:
    """Runs a fake guest until its stdin ends.

    Returns:
        0 at the end; 1 when there is no usable daemon; 2 for contradicting settings.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        guest = FakeGuest(settings_of(args), _send_event)
    except ConfigError as err:
        parser.error(str(err))
    try:
        _connect(guest, args.socket, args.wait)
        guest.bind()
    except (OSError, BalloondError) as err:
        print(f"fake guest: {args.socket}: {err}", file=sys.stderr)
        return 1
    _send({"event": "ready", "pid": os.getpid(), "memfd": guest.ram.fd} | guest.status())
    try:
        _serve(guest, args.socket)
    except BrokenPipeError:
        # The process that started us is gone, so nobody would read an error.
        return 0
    finally:
        guest.close()
    return 0


def _connect(guest: FakeGuest, path: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            guest.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _send(message: Mapping[str, object]) -> None:
    rest = memoryview(json.dumps(message).encode() + b"\n")
    while rest:
        rest = rest[os.write(STDOUT, rest) :]


def _send_event(name: str, figures: Mapping[str, int | str]) -> None:
    _send({"event": name, **figures})


def _serve(guest: FakeGuest, path: str) -> None:
    commands = _commands(guest, path)
    pending = b""
    while True:
        if not step([guest], 3600.0, [STDIN]):
            continue
        data = os.read(STDIN, 65536)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in filter(None, lines):
            if not _obey(line, commands):
                return


def _obey(line: bytes, commands: Mapping[str, "Command"]) -> bool:
    """Carries out one command; False after ``quit``."""
    answer: dict[str, object] = {}
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ConfigError(f"{line!r} is not a JSON object")
        answer["id"] = request.get("id")
        name = str(request.get("command"))
        if name == "quit":
            _send(answer)
            return False
        if name not in commands:
            raise ConfigError(f"command {name!r}: allowed are {', '.join(commands)}, quit")
        answer |= commands[name](request)
    except (OSError, ValueError, KeyError, TypeError, BalloondError) as err:
        answer["error"] = f"{type(err).__name__}: {err}"
    _send(answer)
    return True


Command = Callable[[Mapping[str, object]], Mapping[str, object]]


def _number(request: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = request.get(key, default)
    if not isinstance(value, int) or value < 0:
        raise ConfigError(f"{key}: {value!r} is not a number of at least 0")
    return value


def _commands(guest: FakeGuest, path: str) -> dict[str, Command]:
    def then_status(action: Callable[[], None]) -> Command:
        def command(_request: Mapping[str, object]) -> Mapping[str, object]:
            action()
            return guest.status()

        return command

    def connect_and_bind() -> None:
        guest.connect(path)
        guest.bind()

    def touch(request: Mapping[str, object]) -> Mapping[str, object]:
        return {"touched_bytes": guest.driver.pages.touch_free(_number(request, "bytes"))}

    def report(request: Mapping[str, object]) -> Mapping[str, object]:
        block_pages = _number(request, "block_pages", REPORT_BLOCK_PAGES)
        return {"blocks": guest.driver.reporting.start(block_pages)}

    return {
        "status": then_status(lambda: None),
        "check": lambda _request: asdict(guest.ram.check()),
        "touch": touch,
        "stats": lambda _request: {
            tag.name: value for tag, value in guest.driver.statistics.values().items()
        },
        "report-free-pages": report,
        "stop": then_status(guest.unbind),
        "start": then_status(guest.bind),
        "pause": then_status(guest.pause),
        "resume": then_status(guest.resume),
        "reboot": then_status(guest.reboot),
        "disconnect": then_status(guest.hang_up),
        "connect": then_status(connect_and_bind),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line of the fake guest's process."""
    parser = argparse.ArgumentParser(
        prog="python -m balloon_daemon.fake_guest",
        description="A guest made of a memfd: a vhost-user front-end and a balloon driver, "
        "told what to do by JSON lines on stdin.",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--socket", required=True, metavar="PATH", help="the daemon's socket")
    machine.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="wait so long for a listener"
    )
    machine.add_argument("--mem", type=_size, default="4G", metavar="SIZE")
    machine.add_argument(
        "--low-mem", type=_size, metavar="SIZE", help="memory below 4 GiB; q35's rule if left out"
    )
    machine.add_argument("--vga-hole", action="store_true", help="QEMU's hole below 1 MiB")
    machine.add_argument("--style", choices=STYLES, default="qemu")
    machine.add_argument("--num-vqs", type=int, default=5, metavar="N")
    machine.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS")
    driver = parser.add_argument_group("driver")
    driver.add_argument(
        "--features",
        type=_features,
        default=OFFERED_FEATURES,
        metavar="NAMES",
        help=f"comma-separated, or none; of {', '.join(_FEATURE_NAMES)}",
    )
    driver.add_argument("--queue-size", type=int, default=128, metavar="N")
    driver.add_argument("--in-flight", type=int, default=1, metavar="N")
    driver.add_argument("--parts", type=int, default=1, metavar="N")
    driver.add_argument("--stat-tags", type=int, default=10, metavar="N")
    driver.add_argument("--no-interrupts", action="store_true", help="suppress calls and poll")
    driver.add_argument(
        "--poison-val", type=lambda text: int(text, 0), metavar="N", help="fills free pages with N"
    )
    driver.add_argument("--refill", action="store_true", help="touch what leaves the balloon")
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--order",
        default="descending",
        metavar="ORDER",
        help="in which pages are given up: descending, fragmented, random or a trace's path",
    )
    memory.add_argument("--run-pages", type=int, default=16, metavar="N")
    memory.add_argument("--touched", type=_size, default=0, metavar="SIZE")
    memory.add_argument(
        "--share", type=float, default=1, help="touched share of what is given up first"
    )
    memory.add_argument("--pinned", type=_size, default=0, metavar="SIZE")
    memory.add_argument("--seed", type=int, default=1, metavar="N")
    return parser


def settings_of(args: argparse.Namespace) -> GuestSettings:
    """The guest's settings. Raises ConfigError for impossible ones."""
    return GuestSettings(
        mem_bytes=args.mem,
        low_bytes=args.low_mem,
        vga_hole=args.vga_hole,
        style=STYLES[args.style],
        num_vqs=args.num_vqs,
        driver=DriverSettings(
            features=args.features | BalloonFeature.VERSION_1,
            queue_size=args.queue_size,
            in_flight=args.in_flight,
            parts=args.parts,
            stat_tags=args.stat_tags,
            interrupts=not args.no_interrupts,
            refill=args.refill,
            poison_val=args.poison_val,
        ),
        population=Population(
            order=args.order,
            run_pages=args.run_pages,
            touched_bytes=args.touched,
            share=args.share,
            pinned_bytes=args.pinned,
            seed=args.seed,
        ),
        timeout_s=args.timeout,
    )


def _size(text: str) -> int:
    try:
        return 0 if text == "0" else parse_size(text)
    except ConfigError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def _features(text: str) -> int:
    names = [] if text == "none" else text.split(",")
    unknown = [name for name in names if name not in _FEATURE_NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown features {', '.join(unknown)}")
    return reduce(or_, (_FEATURE_NAMES[name] for name in names), BalloonFeature(0))
