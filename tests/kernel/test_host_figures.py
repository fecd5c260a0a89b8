"""Where low memory comes from: a whole balloond on hosts whose figures a good guess gets wrong."""

from collections.abc import Callable

from balloon_daemon.fake_guest.machine import FakeGuest, run, step
from tests.kernel.conftest import MakeGuest, StartDaemon
from tests.kernel.test_balloond_guests import attach, events
from tests.vm.daemon import Daemon
from tests.vm.low_mem_dir import LowMemDir

FULL_SPEED = "200"
"""A release takes 0.15 s then, so that all is returned within 3 s."""


def until(guest: FakeGuest, condition: Callable[[], bool]) -> None:
    """Lets the guest run until a condition holds, for as long as only a hang takes."""
    run([guest], condition, deadline_s=60)


def until_logged(guest: FakeGuest, daemon: Daemon, text: str) -> None:
    until(guest, lambda: any(text in record["message"] for record in daemon.records()))


def source_lines(daemon: Daemon) -> list[str]:
    return events(daemon, "source")


def test_two_causes_that_alternate_do_not_fill_the_log(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    broken = [("much\n", "holds b'much"), ("", "is empty")]
    for content, complaint in broken:
        low_mem.set_content(content)
        until_logged(guest, daemon, complaint)

    # A reading comes every 5 ms: most turns are seen.
    for content, _ in broken * 50:
        low_mem.set_content(content)
        step([guest], 0.01)
    (low_mem.path / "available").unlink()
    until_logged(guest, daemon, "No such file or directory")

    assert len(source_lines(daemon)) == 3
