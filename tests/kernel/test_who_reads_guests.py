"""Whoever has a guest's memory mapped may be fooled by what is in there: the device alone."""

import os
from pathlib import Path

from balloon_daemon.fake_guest.machine import run
from tests.harness.daemon import Daemon
from tests.harness.jail_watch import template_of
from tests.harness.makers import MakeGuest
from tests.harness.whole_vm import attach, wait_for_device


def mapped(pid: int) -> set[int]:
    """The inodes of all that a process has mapped."""
    return {int(line.split()[4]) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}


def test_no_process_but_its_device_maps_a_guests_memory(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    device = wait_for_device([guest], daemon, "vm1")
    memory = os.fstat(guest.ram.fd).st_ino

    run([guest], lambda: memory in mapped(device))

    assert memory not in mapped(daemon.pid)
    assert memory not in mapped(template_of(daemon.pid))
