"""Signals that come while balloond starts: none ends it half-way, and none is lost."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.handover.keeper_start import keeper_path
from balloon_daemon.linux import asked_child, closing_child, reading_child
from balloon_daemon.linux.signals import END_SIGNALS, HANGS_AFTER_S
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.fd_keeper import keeper_pid
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, MakeGuest, StartDaemon
from tests.harness.marked_start import DEADLINE_S, MarkedStart
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, facts, wait_for_device

END = [signal.SIGTERM, signal.SIGINT]

MakeStart = Callable[..., MarkedStart]


@pytest.fixture
def start() -> Iterator[MakeStart]:
    started: list[MarkedStart] = []
    # Whoever runs the tests in the background has some of them ignored, and so would balloond.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (*END, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)

    def make(*options: str, **kwargs: object) -> MarkedStart:
        started.append(MarkedStart(*options, **kwargs))  # type: ignore[arg-type] # its own
        return started[-1]

    yield make
    for one in started:
        one.kill()
    for number, handler in before.items():
        signal.signal(number, handler)


def signals_of(pid: int, field: str) -> set[int]:
    """A process's signals of one kind: SigBlk, SigPnd, ShdPnd, SigIgn, SigCgt (proc(5))."""
    text = Path(f"/proc/{pid}/status").read_text()
    mask = int(text.partition(f"{field}:\t")[2].split("\n")[0], 16)
    return {number for number in range(1, 65) if mask & 1 << number - 1}


def holds(start: MarkedStart) -> bool:
    return set(END_SIGNALS) <= signals_of(start.pid, "SigBlk")


def first_line(start: MarkedStart, _socket: Path) -> bool:
    return holds(start)


def template(start: MarkedStart, _socket: Path) -> bool:
    return holds(start) and len(start.processes()) > 1


def bound(_start: MarkedStart, socket: Path) -> bool:
    return socket.exists()


def keeper(_start: MarkedStart, socket: Path) -> bool:
    return keeper_path(socket).exists()


MOMENTS = [first_line, template, bound, keeper]
Moment = Callable[[MarkedStart, Path], bool]


def send_at(moment: Moment, start: MarkedStart, socket: Path, number: signal.Signals) -> None:
    wait_until(
        lambda: moment(start, socket) or start.ended, deadline_s=DEADLINE_S, what="that moment"
    )
    os.kill(start.pid, number)


@fault("SIGTERM, SIGINT while it starts")
@pytest.mark.parametrize("number", END, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_signal_to_end_while_it_starts_ends_it_in_order_and_leaves_nothing(
    moment: Moment, number: signal.Signals, start: MakeStart, tmp_path: Path
) -> None:
    socket = tmp_path / "s"
    one = start("--socket", str(socket), "--keep-fds")
    send_at(moment, one, socket, number)

    assert one.end() == 0, one.said
    assert one.processes() == []
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in one.said
    assert f"{number.name}: ending" in one.said


@fault("SIGHUP while it starts")
@pytest.mark.parametrize("moment", MOMENTS[:3])
def test_sighup_while_it_starts_has_the_configuration_read_anew_once_it_listens(
    moment: Moment, start: MakeStart, tmp_path: Path
) -> None:
    socket = tmp_path / "s"
    one = start("--socket", str(socket))
    send_at(moment, one, socket, signal.SIGHUP)
    said = ""
    while "read anew" not in said and not one.ended:
        (said,) = one.next_lines(1)
    assert said.endswith("the configuration is read anew: nothing has changed")
    os.kill(one.pid, signal.SIGTERM)

    assert one.end() == 0, one.said
    assert "SIGHUP" not in one.said


@fault("SIGUSR1, or `systemctl restart`, while it starts")
@pytest.mark.parametrize("store", [False, True], ids=["without_store", "keep_fds"])
@pytest.mark.parametrize("moment", MOMENTS[:3])
def test_sigusr1_while_it_starts_makes_way_once_it_listens(
    moment: Moment, store: bool, start: MakeStart, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    socket = tmp_path / "balloond.sock"
    one = start("--socket", str(socket), *(["--keep-fds"] if store else []))
    send_at(moment, one, socket, signal.SIGUSR1)

    assert one.end() == 0, one.said
    assert one.said.index("listening on") < one.said.index("SIGUSR1: ending")
    # Its keeper has the socket, in whose queue a VM may wait.
    assert socket.exists() == store
    if store:
        start_daemon("--keep-fds")


@fault("SIGTERM, SIGINT while it starts")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("moment", [first_line, template])
def test_signal_while_it_takes_over_guests_is_obeyed_once_it_has_them(
    moment: Moment,
    number: signal.Signals,
    start: MakeStart,
    start_daemon: StartDaemon,
    make_guest: MakeGuest,
    low_mem: LowMemDir,
) -> None:
    first = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), first)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM, deadline_s=DEADLINE_S)
    first.kill()

    one = start(*first.config.command()[1:])
    send_at(moment, one, first.config.socket, number)
    if number is signal.SIGUSR1:
        # What the guest asks now would wait for a controller, and this test with it.
        assert one.end() == 0, one.said
        second = start_daemon("--keep-fds")
        run([guest], lambda: bool(facts(second, "taken-over")), deadline_s=DEADLINE_S)
        assert guest.driver.counters.deflate_buffers == 0
        assert guest.disconnected == ""
    else:
        run([guest], lambda: one.ended, deadline_s=DEADLINE_S)
        assert one.end() == 0, one.said
        assert guest.driver.actual == 0
        assert not keeper_path(first.config.socket).exists()


@fault("a file that never answers")
@pytest.mark.parametrize("number", END, ids=lambda number: number.name)
def test_start_that_hangs_is_ended_all_the_same(
    number: signal.Signals, start: MakeStart, tmp_path: Path
) -> None:
    # Nobody ever writes into it.
    os.mkfifo(tmp_path / "policy")
    one = start("--socket", str(tmp_path / "s"), "--policy", str(tmp_path / "policy"))
    wait_until(
        lambda: holds_but(one, END),
        deadline_s=DEADLINE_S,
        what="it waits for the policy file",
    )
    os.kill(one.pid, number)

    assert HANGS_AFTER_S < DEADLINE_S
    assert one.end() == 0, one.said
    assert one.said == ""
    assert one.processes() == []
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end of a pipe that takes nothing any more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


@fault("a file that never answers")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("stream", "status", "options"),
    [(1, 0, "--keep-fds"), (1, 0, "--check"), (2, 2, "--keep-fds --policy /nonexistent")],
)
def test_start_whose_output_nobody_takes_is_ended_all_the_same(
    stream: int, status: int, options: str, unbuffered: str, full_pipe: int, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [str(BALLOOND), "--socket", str(tmp_path / "s"), *options.split()],
        stdout=full_pipe if stream == 1 else subprocess.DEVNULL,
        stderr=full_pipe if stream == 2 else subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    try:
        wait_until(lambda: writes_to(process.pid, stream), deadline_s=DEADLINE_S, what="it prints")
        process.terminate()
        assert process.wait(DEADLINE_S) == status
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


def writes_to(pid: int, fd: int) -> bool:
    """Whether a process is in write(2) (proc(5), syscall)."""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return words[:2] == ["1", hex(fd)]


def holds_but(start: MarkedStart, numbers: list[signal.Signals]) -> bool:
    """Whether it holds SIGUSR1 and, by a handler, takes these."""
    held, caught = signals_of(start.pid, "SigBlk"), signals_of(start.pid, "SigCgt")
    return signal.SIGUSR1 in held and set(numbers) <= caught - held


@fault("SIGTERM, SIGINT while it starts")
def test_no_child_has_inherited_held_signals(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), daemon)
    device = wait_for_device([guest], daemon, "vm1")

    # One that closes what a VMM sent, reads a file of its process or looks paths up has no use for
    # signals, and is ended by SIGKILL alone.
    brief = (closing_child.NAME, reading_child.NAME, asked_child.NAME)

    def lasting() -> list[str]:
        children = psutil.Process(daemon.pid).children()
        with contextlib.suppress(psutil.NoSuchProcess):
            return [str(child.pid) for child in children if child.name() not in brief]
        return []  # One of them has just ended.

    # Template, device, keeper; for a moment also a child that has no name of its own yet.
    children = wait_until(lambda: found if len(found := lasting()) == 3 else [], what="3 last")
    assert {str(device), str(keeper_pid(daemon))} < set(children)
    for pid in [daemon.pid, *map(int, children)]:
        assert signals_of(pid, "SigBlk") == set()
