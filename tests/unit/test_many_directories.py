"""What directories that match a pattern cost where one user has made hundreds of them."""

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from balloon_daemon.guests.driven.directories import LOOK_S, LOOKS_OF_ONE_USER, Directories
from balloon_daemon.guests.driven.discovery import REST_S, Search, Searches
from balloon_daemon.guests.driven.lookups import Take, ask_here
from tests.fakes.quick_loop import run_quickly
from tests.harness.faults import fault

HOSTILE, OTHER = 1003, 1004
TURNS = 5
"""In how many seconds all directories of ``CROWD`` have had a turn."""
CROWD = LOOKS_OF_ONE_USER * TURNS


@fault("a user makes sockets over and over")
def test_directories_of_one_user_take_turns_and_others_are_looked_at_each_second() -> None:
    crowd = {f"/users/hostile/{number}": HOSTILE for number in range(CROWD)}
    others = {"/users/other/1": OTHER, "/run/root": 0, "/run/own": os.geteuid()}
    named = "/etc/named"
    looked: list[Counter[str]] = []

    async def ask(order: Sequence[object], take: Take, _fd: int) -> None:
        # Only a child may look at these directories, as another user can keep a stat(2) waiting.
        looked[-1][str(order[1])] += 1
        take([1, ""])

    async def scene() -> None:
        directories = Directories(lambda changed: None, ask)
        directories.watch({*crowd, *others, named}, crowd | others)
        looked.append(Counter())
        directories.look()
        for _ in range(2 * TURNS - 1):
            await asyncio.sleep(LOOK_S / 2)
            looked.append(Counter())
            await asyncio.sleep(LOOK_S / 2)
        directories.stop()

    run_quickly(scene())
    assert len(looked) == 2 * TURNS
    for each in looked:
        assert set(each) - set(crowd) == {*others, named}
        assert len(set(each) & set(crowd)) == LOOKS_OF_ONE_USER
    # All directories had a turn, and then all had another turn.
    for half in (looked[:TURNS], looked[TURNS:]):
        assert set(crowd) <= set().union(*half)


@fault("a user makes sockets over and over")
def test_search_of_many_directories_is_followed_by_a_rest(tmp_path: Path) -> None:
    count, seconds = 200, 60
    for number in range(count):
        (tmp_path / str(number)).mkdir()
    pattern = f"{tmp_path}/*/qmp.sock"
    over: list[float] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        searches = Searches(
            lambda: Search([pattern], ask_here), lambda search: over.append(loop.time())
        )
        for _ in range(10 * seconds):
            searches.begin()
            await asyncio.sleep(0.1)
        searches.stop()

    run_quickly(scene())
    assert seconds / 3 < len(over) <= 1 + seconds / (REST_S * count)


def test_search_of_one_directory_is_not_waited_for(tmp_path: Path) -> None:
    over: list[None] = []

    async def scene() -> None:
        pattern = f"{tmp_path}/*.qmp"
        searches = Searches(lambda: Search([pattern], ask_here), lambda search: over.append(None))
        for count in range(1, 21):
            searches.begin()
            await asyncio.sleep(0.05)
            assert len(over) == count
        searches.stop()

    run_quickly(scene())
