"""How much of the event loop's time the reports of devices may take."""

import asyncio

import pytest

from balloon_daemon.guests.jailed import peers
from balloon_daemon.guests.jailed.hearing import ReportReader
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.guests.jailed.turns import OF_THE_LOOP, SAVED_S
from balloon_daemon.tube.connection import DeviceEnd, open_tube
from balloon_daemon.tube.messages import Progress, Up
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S


class Ears:
    """A reader of one device's reports, with a user whose time may be used up."""

    def __init__(self) -> None:
        self.heard: list[Up] = []
        self.asked = 0
        self.rest_s = 0.0
        self.tube, self.device = open_tube()
        self.reader = ReportReader(
            self.tube, self.heard.append, self.refuse, self.charge, self.end
        )

    def charge(self, _spent_s: float) -> float:
        self.asked += 1
        return self.rest_s

    def refuse(self, found: str) -> None:
        raise AssertionError(found)

    def end(self) -> None:
        raise AssertionError("the device's end is open")

    def close(self) -> None:
        self.reader.end()
        self.device.close()
        self.tube.close()


async def until(ears: Ears, count: int) -> None:
    async with asyncio.timeout(HANG_S):
        while len(ears.heard) < count:
            await asyncio.sleep(0)


def report(device: DeviceEnd) -> None:
    assert device.send(Progress())


@fault("hundreds of a user's devices report without end (taken over)")
def test_no_report_is_read_while_its_users_time_is_used_up() -> None:
    async def hear() -> None:
        ears = Ears()
        report(ears.device)
        await until(ears, 1)
        ears.rest_s = 0.001
        report(ears.device)
        asked = ears.asked
        async with asyncio.timeout(HANG_S):
            while ears.asked < asked + 2:  # It is asked again after the rest, before it reads.
                await asyncio.sleep(0)
        assert len(ears.heard) == 1
        ears.rest_s = 0.0
        await until(ears, 2)
        ears.close()

    asyncio.run(hear())


def test_reports_of_a_device_that_was_told_to_stop_are_read_all_the_same() -> None:
    async def hear() -> None:
        ears = Ears()
        ears.rest_s = HANG_S * 10
        report(ears.device)
        async with asyncio.timeout(HANG_S):
            while not ears.asked:
                await asyncio.sleep(0)
        assert ears.heard == []
        ears.reader.rest_no_more()
        await until(ears, 1)
        ears.close()

    asyncio.run(hear())


@fault("hundreds of a user's devices report without end (taken over)")
def test_reports_of_all_devices_of_a_user_share_a_part_of_the_time_and_others_have_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = [1000.0]
    monkeypatch.setattr(peers, "now_s", lambda: clock_s[0])
    all_users = Peers(1000)
    one, other = Peer(1001, all_users), Peer(1002, all_users)
    spent_s, began_s = 0.0, clock_s[0]
    while clock_s[0] < began_s + 100:
        rest_s = one.charge_reports(0.0)
        if not rest_s:
            rest_s = one.charge_reports(0.0016)  # 64 reports
            spent_s += 0.0016
        clock_s[0] += max(rest_s, 0.0016)
        assert other.charge_reports(0.0) == 0.0
    assert 0.9 < spent_s / (100 * OF_THE_LOOP + SAVED_S) < 1.1
