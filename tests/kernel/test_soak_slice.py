"""A few seconds of what ``make soak`` does for as long as one likes."""

import contextlib
from pathlib import Path
from random import Random

from tests.soak.chaos import Chaos
from tests.soak.picture import draw
from tests.soak.world import Host, can_keep_fds

SEED = 17
"""Begins with five deaths of one device after the other."""


def test_killed_devices_and_controllers_lose_no_page(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        lasting = Host("lasting", tmp_path / "a", 1, keep_fds=False, speed=1000)
        stack.callback(lasting.close)
        mortal = Host("mortal", tmp_path / "b", 1, keep_fds=can_keep_fds(), speed=1000)
        stack.callback(mortal.close)
        chaos = Chaos(lasting, mortal, Random(SEED))
        # On a busy machine a second may hold one operation only, and that need not be a kill.
        while not chaos.tally.device_kills and not chaos.tally.failures:
            chaos.run(0, at_least=4)

    verdict = chaos.verdict()
    assert chaos.tally.failures == []
    assert chaos.tally.device_kills >= 5
    assert verdict["pages_lost"] == 0
    assert verdict["ok"]

    draw(tmp_path / "soak.png", chaos.gauges, chaos.tally.kill_times, "a slice")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
