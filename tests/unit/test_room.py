"""How the room of a store is shared out."""

import itertools
import socket
import subprocess
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.handover.keys import STATE
from balloon_daemon.handover.room import NAMES_BYTES, SHARE, STATES, Room
from balloon_daemon.handover.store import SocketStore
from balloon_daemon.linux.events import OwnedFd
from tests.harness.faults import fault

CAPACITY = 2000
GUESTS = ("vm1", "vm2", "vm3", "vm40")


def fill(room: Room, guest: str, fds: int) -> int:
    """Puts descriptors of a guest in, as long as there is room; how many it has then."""
    for number in range(1, fds + 1):
        if not room.admits(guest, number):
            return number - 1
        room.put(f"{guest}.{number}")
    return fds


def test_no_guest_takes_the_share_of_another_one() -> None:
    room = Room(CAPACITY)
    fill(room, "vm1", 5)

    assert fill(room, "vm2", CAPACITY) == SHARE + CAPACITY // 2
    assert fill(room, "vm3", CAPACITY) == SHARE
    assert fill(room, "vm1", CAPACITY) == SHARE


def test_guests_that_come_find_room_though_one_has_taken_all_that_it_could() -> None:
    room = Room(CAPACITY)
    fill(room, "vm1", CAPACITY)

    came = [fill(room, f"vm{number}", 25) for number in range(2, 100)]

    # All but the taker's share and half of the store, in whole shares.
    assert came == [25] * 13 + [0] * 85


def test_what_a_guest_had_before_it_may_have() -> None:
    # The store of an earlier balloond was larger.
    room = Room(100, [f"vm1.{number}" for number in range(1, 200)])
    assert room.admits("vm1", 199)
    assert not room.admits("vm1", 200)
    assert not room.admits("vm2", 1)


def test_room_of_a_guest_that_is_gone_is_free() -> None:
    room = Room(SHARE + STATES + 16)
    assert fill(room, "vm1", 3) == 3
    assert fill(room, "vm2", 3) == 0
    for number in (1, 2, 3, 3):
        room.remove(f"vm1.{number}")
    assert fill(room, "vm2", 3) == 3


@fault("one user's VMs want more than three quarters of the store")
def test_vms_of_a_user_that_have_more_than_their_shares_leave_a_quarter_to_others() -> None:
    room, first = Room(CAPACITY), 2
    for number in range(first):
        room.set_user(f"vm{number}", 1)
        fill(room, f"vm{number}", 300)
    while room.takes_another_of(1):
        room.set_user(f"vm{first}", 1)
        # Its descriptors come a little later, as its VMM sends them.
        first += 1
    came = [fill(room, f"vm{number}", 300) for number in range(first)]

    # What is left of the three quarters after whole shares.
    left = CAPACITY * 3 // 4 - 2 * (300 + STATES) - (first - 2) * (SHARE + STATES)
    assert came == [300, 300, SHARE + left] + [SHARE] * (first - 3)
    assert room.guests_of(1) == first
    others = range(first, first + CAPACITY // 4 // (SHARE + STATES))
    for number in others:
        assert room.takes_another_of(2)
        room.set_user(f"vm{number}", 2)
        assert fill(room, f"vm{number}", SHARE) == SHARE
    for number in range(first):
        for fd in range(1, came[number] + 1):
            room.remove(f"vm{number}.{fd}")
        room.set_user(f"vm{number}", None)
    assert room.takes_another_of(1)
    room.set_user("vm0", 1)
    assert fill(room, "vm0", 300) == 300


@fault("a VM that wants more than its share of the store")
@given(st.lists(st.tuples(st.sampled_from(GUESTS), st.integers(-300, 300)), max_size=30))
def test_store_is_never_full_and_each_guest_that_is_there_has_its_share(
    steps: list[tuple[str, int]],
) -> None:
    room, capacity = Room(600), 600
    has = Counter[str]()
    for guest, change in steps:
        for _ in range(change):
            if room.admits(guest, has[guest] + 1):
                has[guest] += 1
                room.put(f"{guest}.{has[guest]}")
                room.put(f"{guest}{STATE}{has[guest]}")
        for _ in range(min(-change, has[guest])):
            room.remove(f"{guest}.{has[guest]}")
            has[guest] -= 1
        there = [name for name, fds in has.items() if fds]
        assert has.total() + STATES * len(there) < capacity
        assert all(room.admits(name, SHARE) for name in there)


FULL = 65_536
"""The shipped unit's FileDescriptorStoreMax."""


def fill_names(room: Room, user: int, first: int, fds: int) -> list[str]:
    """The names of a user's guests, as many as there is room for."""
    names = list[str]()
    for guest in itertools.count(first):
        if not room.takes_another_of(user):
            return names
        room.set_user(f"vm{guest}", user)
        came = fill(room, f"vm{guest}", fds)
        names += [f"vm{guest}.{number}" for number in range(1, came + 1)]
        if came:
            room.put(f"vm{guest}{STATE}{10**6}")
            names.append(f"vm{guest}{STATE}{10**6}")
    raise AssertionError


@fault("more descriptors in systemd's store than it can pass to a program")
@pytest.mark.parametrize("fds", [25, SHARE])
def test_program_can_be_started_with_the_names_of_a_store_that_users_have_filled(fds: int) -> None:
    room = Room(FULL, names_bytes=NAMES_BYTES)
    greedy = fill_names(room, 1, 1, fds)
    other = fill_names(room, 2, 100_000, fds)

    assert len(greedy) > 3 * len(other) / 2 > 0
    names = ":".join([*greedy, *other, "balloond.socket", "balloond-api.socket"])
    subprocess.run(["/bin/true"], env={"LISTEN_FDNAMES": names}, check=True)


def test_names_that_are_removed_leave_their_bytes_to_others() -> None:
    room = Room(FULL, names_bytes=30)
    room.set_user("vm1", 1)
    room.put("listener")
    assert not room.admits("vm2", 2)
    assert room.admits("vm2", 1)
    room.put("vm1.1")
    assert not room.admits("vm2", 1)
    room.put("vm1.1")
    room.remove("vm1.1")
    room.remove("vm1.1")
    assert room.admits("vm2", 1)
    room.put(f"vm1{STATE}1")
    assert not room.admits("vm2", 1)
    room.remove(f"vm1{STATE}1")
    assert room.admits("vm2", 1)


def test_names_of_one_user_have_three_quarters_of_their_room() -> None:
    room = Room(FULL, names_bytes=100)
    room.set_user("vm1", 1)
    for number in (1, 2, 3, 4, 5, 6, 7, 8, 9):
        room.put(f"vm1.{number}")
    assert not room.admits("vm1", 13)
    assert room.admits("vm1", 10)
    room.put("vm1.11")
    assert not room.admits("vm1", 11)
    assert room.admits("vm2", 1)
    room.set_user("vm1", None)
    room.set_user("vm2", 1)
    assert room.admits("vm2", 1)


def test_keeper_passes_names_one_by_one_and_systemd_all_at_once() -> None:
    ours, theirs = socket.socketpair()
    names = {f"vm{guest}.{fd}": OwnedFd(-1) for guest in range(400) for fd in range(1, 37)}
    with ours, theirs:
        rooms = [
            SocketStore(ours, names, capacity=FULL, is_keeper=is_keeper).room
            for is_keeper in (True, False)
        ]
    assert [room.admits("vm20000", 1) for room in rooms] == [True, False]
