"""A device is forked, which takes long: everything else goes on meanwhile, and may end."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import psutil
import pytest

from balloon_daemon.device.forker import NAME
from balloon_daemon.fake_guest.machine import FakeGuest, run
from tests.fakes.another_template import another_template
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.jail_watch import DEVICE_NAME, is_alive, template_of
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, MakeGuest, StartDaemon
from tests.harness.other_user import NOBODY, as_user
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, facts, run_until_event, wait_for_device

STOPS_ONCE = """
import os, signal, sys
from balloon_daemon.device import forker

read, left = os.read, [1]

def stop_and_read(fd, size):
    if left and sys._getframe(1).f_code is forker._clone.__code__:
        left.pop()
        os.kill(os.getpid(), signal.SIGSTOP)
    return read(fd, size)

os.read = stop_and_read
"""
"""A template that stops between its first device's clone and the answer, until it is continued."""

PATIENT = f"""
import sys
sys.argv = sys.argv[1:]
from balloon_daemon.device import template
template.PROGRAM = {another_template(STOPS_ONCE)!r}
template.ANSWER_WITHIN_S = 600.0
from balloon_daemon.__main__ import main
sys.exit(main())
"""
"""Starts a balloond that waits for this template as long as a test may need."""

LAUNCHER = (sys.executable, "-c", PATIENT)

WHILE_FORKED = "a VMM stops its rings or hangs up, or balloond is told to end"


class Forking:
    """A guest whose device was cloned, but whose template does not tell that.

    Attributes:
        daemon: its balloond.
        guest: the guest, attached.
        template: the process id of the template, which is stopped.
        device: that of the device.
    """

    def __init__(self, daemon: Daemon, guest: FakeGuest) -> None:
        self.daemon = daemon
        self.template = template_of(daemon.pid)
        self.guest = attach(guest, daemon)
        wait_until(
            lambda: psutil.Process(self.template).status() == psutil.STATUS_STOPPED,
            what="the template is stopped",
        )
        (self.device,) = self.children() - {self.template}

    def children(self) -> set[int]:
        """The template and the devices; other children close descriptors, and end soon."""
        found = set()
        for child in psutil.Process(self.daemon.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith((NAME, DEVICE_NAME)):
                    found.add(child.pid)
        return found

    def go_on(self) -> None:
        """Has the template answer."""
        os.kill(self.template, signal.SIGCONT)

    def wait_device_gone(self) -> None:
        wait_until(lambda: not is_alive(self.device), what="the device without an order has ended")


@pytest.fixture
def open_daemon(start_daemon: StartDaemon) -> Iterator[Daemon]:
    """A balloond whose template stops, and whose socket is open to everybody."""
    # Not below pytest's own directory, which each pytest of this user closes to others.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        daemon = start_daemon(name=f"{directory}/balloond", launcher=LAUNCHER)
        os.chmod(daemon.config.socket, 0o666)
        yield daemon


@fault("template hangs (SIGSTOP)")
@pytest.mark.parametrize("user", ["same user", "another user"])
def test_while_the_template_hangs_no_vm_waits_for_its_config_space(
    user: str, open_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    if user == "another user" and os.geteuid() != 0:
        pytest.skip("only root can connect as another user")
    forking = Forking(open_daemon, make_guest(SETTINGS))
    with as_user(NOBODY) if user == "another user" else contextlib.nullcontext():
        guests = [forking.guest, attach(make_guest(SETTINGS), forking.daemon)]

    for guest in guests * 10:
        assert guest.frontend is not None
        assert guest.frontend.read_config(0, 8) == bytes(8)

    assert facts(forking.daemon, "device-started") == []
    forking.go_on()
    low_mem.set_low()
    run(guests, lambda: min(guest.driver.actual for guest in guests) * 4096 == MAXIMUM)
    assert [guest.ram.check().pages_corrupt for guest in guests] == [0, 0]


@fault(WHILE_FORKED)
def test_vmm_that_stops_its_rings_does_not_wait_for_the_device_that_is_forked(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    forking = Forking(start_daemon(launcher=LAUNCHER), make_guest(SETTINGS))
    guest = forking.guest

    guest.pause()
    forking.wait_device_gone()
    guest.resume()
    forking.go_on()

    device = wait_for_device([guest], forking.daemon, "vm1")
    wait_until(
        lambda: forking.children() == {forking.template, device},
        what="the device that nobody wanted is reaped",
        seen=forking.children,
    )
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    assert guest.ram.check().pages_corrupt == 0
    assert facts(forking.daemon, "device-died", "device-looks", "device-not-forked") == []


@fault(WHILE_FORKED)
def test_vmm_that_hangs_up_is_let_go_while_its_device_is_forked(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    forking = Forking(start_daemon(launcher=LAUNCHER), make_guest(SETTINGS))

    forking.guest.hang_up()
    run_until_event([], forking.daemon, "vmm-hung-up")
    forking.wait_device_gone()
    neighbour = attach(make_guest(SETTINGS), forking.daemon)
    forking.go_on()

    device = wait_for_device([neighbour], forking.daemon, "vm2")
    wait_until(
        lambda: forking.children() == {forking.template, device},
        what="the device that nobody wanted is reaped",
        seen=forking.children,
    )


@fault(WHILE_FORKED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_controller_ends_while_a_device_is_forked_which_ends_too_and_the_next_one_serves(
    number: signal.Signals, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    forking = Forking(start_daemon("--keep-fds", launcher=LAUNCHER), make_guest(SETTINGS))
    guest = forking.guest

    if number is signal.SIGKILL:
        forking.daemon.kill()
    else:
        os.kill(forking.daemon.pid, number)
        forking.daemon.wait_end()

    forking.wait_device_gone()
    # Where the controller was killed, the kernel ends its template a moment later.
    wait_until(lambda: not is_alive(forking.template), what="the template has ended")
    if number is not signal.SIGTERM:
        second = start_daemon("--keep-fds")
        low_mem.set_low()
        run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
        assert len(facts(second, "taken-over")) == 1
        assert guest.ram.check().pages_corrupt == 0
