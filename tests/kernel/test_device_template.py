"""The template: the process that devices are forked from, and what happens without it."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from balloon_daemon.device import template as template_module
from balloon_daemon.device.forker import NAME
from balloon_daemon.device.spec import RegionSpec
from balloon_daemon.device.template import Template
from balloon_daemon.tube.connection import open_tube
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue
from tests.harness.daemon import Daemon
from tests.harness.device_rig import DeviceRig
from tests.harness.faults import fault
from tests.harness.jail_watch import is_alive, template_of
from tests.harness.makers import MakeGuest, MakeRig
from tests.harness.short_host import fd_numbers, limited
from tests.harness.waiting import wait_until
from tests.harness.ways_to_fork import PatientFork
from tests.harness.whole_vm import attach, wait_for_device


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates started from here on are given up soon, as a busy one would be too."""
    monkeypatch.setattr(template_module, "ANSWER_WITHIN_S", 1.0)


@pytest.fixture
def rig(template: Template, make_rig: MakeRig) -> DeviceRig:
    rig = make_rig()
    rig.fork = template.fork
    return rig


def wait_for_own_fds(template: Template) -> None:
    """Waits until it has nothing open but standard error and the way to its controller.

    It closes what it inherited after its start, and what belongs to a device after its answer.
    """
    pid = pid_of(template)
    wait_until(
        lambda: len(fd_numbers(pid)) == 2,
        what="the template has its own descriptors alone",
        seen=lambda: fd_numbers(pid),
    )


def pid_of(template: Template) -> int:
    assert template.pid is not None
    return template.pid


def test_template_device_is_our_own_child_jailed_and_serves(
    rig: DeviceRig, template: Template
) -> None:
    device = rig.start_ready()

    assert device.pid != template.pid
    assert psutil.Process(device.pid).ppid() == os.getpid()
    assert "Seccomp:\t2" in Path(f"/proc/{device.pid}/status").read_text()
    rig.inflate([7])
    assert rig.holes() == {7}


def test_whoever_forks_has_one_thread(daemon: Daemon, make_guest: MakeGuest) -> None:
    guest = attach(make_guest(), daemon)
    device = wait_for_device([guest], daemon, "vm1")
    for pid in (daemon.pid, template_of(daemon.pid), device):
        assert psutil.Process(pid).num_threads() == 1


def test_template_keeps_no_descriptor_of_a_device(rig: DeviceRig, template: Template) -> None:
    wait_for_own_fds(template)
    before = fd_numbers(pid_of(template))
    for _ in range(3):
        rig.start_ready()
        rig.kill()

    wait_for_own_fds(template)
    assert fd_numbers(pid_of(template)) == before


def test_template_of_many_regions_gets_more_descriptors_than_a_datagram_holds(
    rig: DeviceRig, template: Template
) -> None:
    first, *_ = rig.spec.regions
    others = [
        RegionSpec(
            GuestAddr((number + 1) << 40),
            FrontendAddr((number + 1) << 41),
            PAGE_SIZE,
            0,
            PAGE_SIZE,
            rig.fd,
        )
        for number in range(255)
    ]
    rig.spec = rig.spec._replace(regions=(first, *others))
    rig.start_ready()

    rig.inflate([3])
    assert rig.holes() == {3}


@fault("template without room for descriptors")
def test_template_without_room_for_descriptors_says_so_and_goes_on(
    rig: DeviceRig, template: Template
) -> None:
    # It raises its own limit at its start, which is over once it has forked a device.
    rig.start_ready()
    rig.kill()
    with (
        limited(pid_of(template), resource.RLIMIT_NOFILE, 8),
        pytest.raises(OSError, match="open"),
    ):
        rig.start()
    rig.start_ready()
    wait_for_own_fds(template)


@fault("template hangs (SIGSTOP)")
@pytest.mark.usefixtures("impatient")
def test_template_that_hangs_is_ended_and_no_device_is_forked_twice(
    rig: DeviceRig, template: Template
) -> None:
    pid = pid_of(template)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(OSError, match="does not answer"):
        rig.start()

    assert not psutil.pid_exists(pid)
    assert psutil.Process().children() == []
    rig.fork = PatientFork(template)
    rig.start_ready()


def test_template_dies_with_its_controller() -> None:
    told, tell = os.pipe()
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(tell)], pass_fds=[tell], stdin=subprocess.DEVNULL
    )
    os.close(tell)
    with open(told) as answer:
        template = psutil.Process(int(answer.readline()))
    wait_until(lambda: template.name() == NAME, what="the template has its name")

    controller.kill()
    controller.wait()

    # Whoever inherits it may leave it a zombie for a while.
    wait_until(
        lambda: not is_alive(template.pid),
        what="the template has ended",
    )


CONTROLLER = """
import os, signal, sys
from balloon_daemon.device.template import Template
started = Template()
started.wait_until_ready()
os.write(int(sys.argv[1]), b"%d\\n" % started.pid)
signal.pause()
"""


def test_device_that_waits_for_its_first_order_would_leave_no_core(rig: DeviceRig) -> None:
    # It maps its guest's memory next, as root perhaps, and its VMM may cut that file by then.
    upper, lower = open_tube()
    pid = rig.fork(rig.spec, lower.fileno(), 2, os.getpid())
    lower.close()
    wait_until(
        lambda: resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0), what="no core is left"
    )
    upper.close()
    os.waitpid(pid, 0)


@fault("template hangs (SIGSTOP)")
def test_device_that_nobody_ever_gives_an_order_touches_nothing(rig: DeviceRig) -> None:
    rig.offer_pfns(BalloonQueue.INFLATEQ, [7])
    rig.kick(BalloonQueue.INFLATEQ)
    upper, lower = open_tube()
    pid = rig.fork(rig.spec, lower.fileno(), 2, os.getpid())
    lower.close()
    upper.close()

    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert rig.holes() == set()
