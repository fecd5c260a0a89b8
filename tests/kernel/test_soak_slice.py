"""A few seconds of what ``make soak`` does for as long as one likes."""

import contextlib
import math
from pathlib import Path
from random import Random

from tests.harness.faults import fault
from tests.harness.waiting import wait_until
from tests.soak.chaos import Chaos
from tests.soak.picture import draw
from tests.soak.world import Host, can_keep_fds

SEED = 17
"""Begins with five deaths of one device after the other."""

FORCED = 3
"""Deaths of each balloond's device that do not depend on what the dice say."""


def deaths(host: Path) -> int:
    """Devices of a balloond's first life that were killed, by its log."""
    return (host / "log-0" / "balloond.log").read_text().count(" was killed by SIGKILL; ")


@fault("devices and controllers killed over and over under load")
def test_killed_devices_and_controllers_lose_no_page(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        lasting = Host("lasting", tmp_path / "a", 1, keep_fds=False, speed=1000)
        stack.callback(lasting.close)
        mortal = Host("mortal", tmp_path / "b", 1, keep_fds=can_keep_fds(), speed=1000)
        stack.callback(mortal.close)
        # A look before and one behind, when all is at rest.
        chaos = Chaos(lasting, mortal, Random(SEED), look_every_s=math.inf)
        chaos.look(at_once=True)
        chaos.kill_each(FORCED)
        # Each that was counted was another process.
        assert chaos.tally.failures == []
        assert chaos.tally.device_kills == 2 * FORCED
        wait_until(lambda: deaths(tmp_path / "a") == FORCED, what="they are told")
        chaos.run(0, at_least=4)

    verdict = chaos.verdict()
    assert chaos.tally.failures == []
    assert chaos.tally.device_kills > 2 * FORCED
    assert chaos.tally.controller_kills >= 1
    assert [len(gauge.samples) for gauge in chaos.gauges] == [2, 2, 2, 2 * can_keep_fds()]
    assert verdict["pages_lost"] == 0
    assert verdict["ok"], str(verdict)

    draw(tmp_path / "soak.png", chaos.gauges, chaos.tally.kill_times, "a slice")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
