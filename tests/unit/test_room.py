"""How the room of a store is shared out."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.handover.keys import STATE
from balloon_daemon.handover.room import SHARE, STATES, Room
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
