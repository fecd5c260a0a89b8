"""A template that hangs or has no room at the worst moment, and what becomes of its controller."""

import os
import resource
from collections.abc import Iterator

import psutil
import pytest

from balloon_daemon.device import template as template_module
from balloon_daemon.device.request import FDS_A_DATAGRAM
from balloon_daemon.device.spec import RegionSpec
from balloon_daemon.device.template import Template
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from tests.fakes.another_template import another_template
from tests.harness.device_rig import DeviceRig, shipped_filter
from tests.harness.faults import fault
from tests.harness.short_host import fd_numbers, limited
from tests.harness.slow_close import lock_many


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceRig]:
    # One test waits for all of it, the others for as long as a template takes to start.
    monkeypatch.setattr(template_module, "ANSWER_WITHIN_S", 3.0)
    rig = DeviceRig()
    yield rig
    rig.close()


def started() -> Template:
    template = Template()
    template.wait_until_ready()
    template.prepare(shipped_filter().bpf, lambda what: None, lambda what: None)
    return template


STOPS_BEFORE_IT_ANSWERS = """
import os, signal, sys
from balloon_daemon.device import forker

read = os.read

def stop_and_read(fd, size):
    if sys._getframe(1).f_code is forker._clone.__code__:
        os.kill(os.getpid(), signal.SIGSTOP)
    return read(fd, size)

os.read = stop_and_read
"""
"""Between the clone of a device and its answer."""


def with_many_regions(rig: DeviceRig) -> None:
    """More descriptors than a datagram holds."""
    first, *_ = rig.spec.regions
    others = [
        RegionSpec(
            GuestAddr(number << 40),
            FrontendAddr(number << 41),
            PAGE_SIZE,
            0,
            PAGE_SIZE,
            rig.fd,
        )
        for number in range(1, FDS_A_DATAGRAM + 1)
    ]
    rig.spec = rig.spec._replace(regions=(first, *others))


@fault("template hangs between fork and answer, and the device dies")
def test_template_that_hangs_after_a_clone_has_not_answered_yet(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "PROGRAM", another_template(STOPS_BEFORE_IT_ANSWERS))
    template = started()
    rig.fork, pid = template.fork, template.pid
    assert pid is not None

    with pytest.raises(OSError, match="does not answer"):
        rig.start()

    assert not psutil.pid_exists(pid)
    # The device that it had forked, and that nobody ever gave an order.
    (device,) = psutil.Process().children()
    assert os.waitpid(device.pid, 0)[1] == 0
    template.close()


@fault("sends a file with many locks")
def test_descriptors_whose_close_takes_long_do_not_hold_up_the_template(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "ANSWER_WITHIN_S", 1.0)
    template = started()
    rig.fork, pid = template.fork, template.pid
    with_many_regions(rig)
    lock_many(rig.fd, 100_000)
    for _ in range(2):
        rig.start()
        rig.kill()
    assert template.pid == pid
    template.close()


@fault("template without room for the first of over 250 descriptors")
def test_template_without_room_for_the_first_of_many_descriptors_goes_on(
    rig: DeviceRig,
) -> None:
    template = started()
    try:
        rig.fork, pid = template.fork, template.pid
        assert pid is not None
        rig.start_ready()  # It has begun, and has its limits.
        rig.kill()
        with_many_regions(rig)
        with (
            limited(pid, resource.RLIMIT_NOFILE, 8),
            pytest.raises(OSError, match="files"),
        ):
            rig.start()

        rig.start_ready()

        assert psutil.Process(pid).is_running()
        assert len(fd_numbers(pid)) == 2
        rig.inflate([3])
        assert rig.holes() == {3}
    finally:
        template.close()
