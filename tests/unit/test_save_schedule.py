"""How long saves of one user's guests, which write ``actual`` all the time, keep other users'
guests waiting."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest

from balloon_daemon.guests import in_turn
from balloon_daemon.guests.in_turn import InTurn
from balloon_daemon.guests.jailed import peers, save_schedule
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.guests.jailed.save_schedule import SAVE_SOON_S, SaveSchedule
from balloon_daemon.guests.jailed.turns import SAVED_S, SAVING
from balloon_daemon.handover.store import NoStore
from tests.fakes.quick_loop import run_quickly
from tests.harness.faults import fault

HOSTILE, OTHER = 1003, 1004
SAVE_S = in_turn.TURN_S / 4


class Clock:
    """A clock that goes on only while a guest is saved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(save_schedule, "monotonic", clock)
    monkeypatch.setattr(save_schedule, "IN_TURN", InTurn(clock))
    return clock


def guest(peer: Peer, save: Callable[[], object]) -> SaveSchedule:
    schedule = SaveSchedule()
    schedule.save, schedule.user, schedule.charge = save, peer.uid, peer.charge_saving
    return schedule


@fault("hundreds of one user's guests write `actual` without end")
def test_saves_that_are_due_together_take_turns_by_user(clock: Clock) -> None:
    saved: list[int] = []
    at_once: list[int] = []

    async def scene() -> None:
        all_peers = Peers()
        hostile, other = Peer(HOSTILE, all_peers), Peer(OTHER, all_peers)
        loop, store = asyncio.get_running_loop(), NoStore()

        def save(peer: Peer) -> None:
            clock.now_s += SAVE_S
            saved.append(peer.uid)

        def count() -> None:
            at_once.append(len(saved))
            if len(saved) < 101:
                loop.call_soon(count)

        for _ in range(100):
            guest(hostile, lambda: save(hostile)).soon(store, "")
        guest(other, lambda: save(other)).soon(store, "")
        await asyncio.sleep(SAVE_SOON_S / 2)
        loop.call_later(SAVE_SOON_S / 2, count)
        await asyncio.sleep(1)

    run_quickly(scene())
    assert len(saved) == 101
    # A turn's last save may begin just before the turn's time is used up.
    most_at_once = in_turn.TURN_S / SAVE_S + 1
    # The first turn saves guests of HOSTILE while its time lasts. The next turn begins with
    # HOSTILE, too, and then it is the turn of OTHER.
    assert saved.index(OTHER) <= 2 * most_at_once
    steps = [later - earlier for earlier, later in pairwise(at_once)]
    assert max(steps) <= most_at_once


@fault("hundreds of one user's guests write `actual` without end")
def test_one_users_saves_take_a_part_of_the_time_and_each_guest_is_saved(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Counter[int]()
    seconds = 60.0

    async def scene() -> None:
        loop, store = asyncio.get_running_loop(), NoStore()
        monkeypatch.setattr(peers, "now_s", loop.time)
        hostile = Peer(HOSTILE, Peers())
        schedules: dict[int, SaveSchedule] = {}

        def save(number: int) -> None:
            clock.now_s += SAVE_S
            saved[number] += 1

        async def write_without_end() -> None:
            while True:
                for schedule in schedules.values():
                    schedule.soon(store, "")
                await asyncio.sleep(SAVE_SOON_S)

        for number in range(100):
            schedules[number] = guest(hostile, partial(save, number))
        hostile.charge_saving(SAVED_S)
        writing = loop.create_task(write_without_end())
        await asyncio.sleep(seconds)
        writing.cancel()
        for schedule in schedules.values():
            schedule.cancel()

    run_quickly(scene())
    spent_s = sum(saved.values()) * SAVE_S
    # Beyond the share there is one save of each guest at most: those that are due when the share
    # is used up.
    assert 0.9 * SAVING * seconds < spent_s < SAVING * seconds + 100 * SAVE_S
    assert len(saved) == 100
    assert min(saved.values()) > 0.8 * max(saved.values())


def test_guest_that_is_saved_meanwhile_or_gone_is_not_saved_in_its_turn(clock: Clock) -> None:
    saved: list[int] = []

    async def scene() -> None:
        peer, store = Peer(OTHER, Peers()), NoStore()

        def save(number: int) -> None:
            clock.now_s += in_turn.TURN_S
            saved.append(number)

        schedules = [guest(peer, partial(save, number)) for number in range(3)]
        for schedule in schedules:
            schedule._save_soon(store, "")  # The first takes all of this turn's time.
        schedules[1].cancel_soon()
        schedules[2].cancel()
        await asyncio.sleep(1)

    run_quickly(scene())
    assert saved == [0]
