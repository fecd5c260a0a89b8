"""A VM on our own device, looked at again and again."""

import asyncio
import os

import pytest

from balloon_daemon.guests.jailed.watching import Watching
from balloon_daemon.guests.seam import Stats
from balloon_daemon.guests.vmm_files import FiguresToCome
from tests.fakes.still_loop import StillLoop
from tests.harness.vmm_files import figures_of


class Looks:
    """A loop that stands still, and how often a VM was looked at."""

    def __init__(self) -> None:
        self.loop = StillLoop()
        self.number = 0

    def watching(self, pid: int) -> Watching:
        vmm = FiguresToCome(pid, None, lambda: None)
        vmm.now = figures_of(pid)  # A child has opened its files.
        return Watching(vmm, pid, self._look)

    def _look(self) -> None:
        self.number += 1


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: looks.loop)
    return looks


def test_guest_is_looked_at_at_once_then_in_time_and_no_more_when_nobody_wants_it(
    looks: Looks,
) -> None:
    watching = looks.watching(0)
    watching.watch(30.0)
    watching.watch(30.0)
    assert looks.number == 1
    looks.loop.advance(60.0)
    assert looks.number == 3
    watching.watch(1.0)
    looks.loop.advance(5.0)
    assert looks.number == 9
    watching.watch(None)
    looks.loop.advance(60.0)
    assert looks.number == 9


def test_statistics_get_what_the_vmm_has_read_while_it_is_watched(looks: Looks) -> None:
    watching = looks.watching(os.getpid())
    assert watching.knows_disk_reads
    assert watching.completed(Stats(1.0)) == Stats(1.0)
    watching.watch(30.0)
    read_bytes = watching.completed(Stats(1.0)).disk_read_bytes
    assert read_bytes is not None
    assert read_bytes > 0


def test_vmm_of_another_namespace_has_no_figures(looks: Looks) -> None:
    watching = looks.watching(0)
    assert not watching.knows_disk_reads
    watching.watch(30.0)
    assert watching.completed(Stats(1.0)) == Stats(1.0)
