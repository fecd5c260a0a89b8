"""Reclaims: so much memory from guests now, by the policy's own rules, with an answer."""

import pytest

from balloon_daemon.errors import StateError
from balloon_daemon.events.vms import Decided
from balloon_daemon.records.words.vms import said_of_vm
from balloon_daemon.sizing.decision import Ended, Reason, Share
from balloon_daemon.sizing.host_events import (
    Asked,
    Halted,
    Paused,
    ReclaimOver,
    Removed,
    Wanted,
    Withdrawn,
)
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.steered_host import (
    CAREFUL,
    LOW,
    PLENTY,
    SEED,
    STEP,
    WELL,
    A,
    B,
    SteeredHost,
)

C = VmId(3, "vm3")
MOST = 512 * MIB
"""The largest balloon of a VM of 1 GiB."""


def wanted(
    size_bytes: int,
    *vms: VmId,
    ticket: int = 1,
    within_s: float = 30.0,
    hold_s: float = 600.0,
) -> Wanted:
    return Wanted(ticket, vms, size_bytes, within_s, hold_s)


def over(host: SteeredHost) -> ReclaimOver:
    """What the only reclaim that has ended came to."""
    (ended,) = host.over
    assert isinstance(ended, ReclaimOver)
    return ended


@pytest.fixture(params=[SEED, CAREFUL], ids=["seed", "careful"])
def host(request: pytest.FixtureRequest) -> SteeredHost:
    return SteeredHost({A: request.param, B: request.param})


def test_small_reclaim_is_shared_and_comes_to_the_page(host: SteeredHost) -> None:
    size_bytes = 20 * MIB + 3 * 4096
    host.step(wanted(size_bytes))
    host.live(0.5)
    ended = over(host)
    assert ended.why is Ended.COMPLETE
    assert ended.took_s == pytest.approx(0.1)
    half_bytes = 10 * MIB + 2 * 4096
    assert ended.shares == (Share(A, half_bytes, half_bytes), Share(B, half_bytes, half_bytes))
    assert host.target(A) == host.target(B) == half_bytes


def test_large_reclaim_goes_by_the_policys_steps(host: SteeredHost) -> None:
    host.step(wanted(6 * STEP))
    assert (host.target(A), host.target(B)) == (STEP, STEP)
    host.live(0.95)
    assert (host.target(A), host.target(B)) == (STEP, STEP)
    host.live(1.0)
    assert (host.target(A), host.target(B)) == (2 * STEP, 2 * STEP)
    host.live(1.0)
    ended = over(host)
    assert ended.why is Ended.COMPLETE
    assert ended.took_s == pytest.approx(2.1)
    assert [share.came_bytes for share in ended.shares] == [3 * STEP, 3 * STEP]


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (STEP + 8 * MIB, "grows to level 1/16, 40 MiB"),
        (STEP + 4 * MIB, "shrinks to level 1/16, 36 MiB"),
        (STEP + 6 * MIB, "stays at level 1/16, 38 MiB"),
    ],
)
def test_target_that_changes_within_a_level_is_said_to(
    host: SteeredHost, size_bytes: int, said: str
) -> None:
    host.step(Asked(A, STEP + 6 * MIB, 600.0))
    (decided,) = host.step(Asked(A, size_bytes, 600.0)).decisions
    words = said_of_vm(Decided(A, decided.decision))
    assert words is not None
    assert words[1].endswith(f": balloon {said}")


def test_reclaim_from_one_vm_takes_nothing_from_others(host: SteeredHost) -> None:
    host.step(wanted(3 * STEP, B))
    host.live(5.0)
    assert [share.vm for share in over(host).shares] == [B]
    assert (host.target(A), host.target(B)) == (0, 3 * STEP)


def test_what_came_is_held_and_then_given_back_as_ever(host: SteeredHost) -> None:
    host.step(wanted(2 * STEP, A, hold_s=300.0))
    host.live(301.0)
    assert host.target(A) == 2 * STEP
    host.live(1.0)
    assert host.target(A) == STEP
    host.live(61.0)
    assert host.target(A) == 0


def test_hold_of_a_reclaim_shortens_no_longer_one(host: SteeredHost) -> None:
    host.step(wanted(STEP, A, hold_s=600.0))
    host.live(1.0)
    host.step(wanted(STEP, A, ticket=2, hold_s=5.0))
    host.live(590.0)
    assert host.target(A) == 2 * STEP


def test_more_than_there_is_ends_with_what_came_and_why() -> None:
    ceiling = Terms(VmSettings(ceiling_bytes=2 * STEP, profile=Profile.SEED))
    none = Terms(VmSettings(floor_bytes=GIB, profile=Profile.SEED))
    host = SteeredHost({A: ceiling, B: none})
    host.step(wanted(GIB))
    host.live(29.0)
    ended = over(host)
    assert ended.why is Ended.NOBODY
    assert ended.took_s < 20.0
    assert ended.shares == (
        Share(A, 2 * STEP, 2 * STEP, Reason.AT_MAXIMUM),
        Share(B, 0, 0, Reason.NO_BALLOON),
    )


def test_vms_of_the_lowest_priority_give_all_they_can_first() -> None:
    first = Terms(VmSettings(priority=-1, ceiling_bytes=2 * STEP, profile=Profile.SEED))
    host = SteeredHost({A: SEED, B: first})
    host.step(wanted(STEP))
    host.live(10.0)
    assert over(host).shares == (Share(A, 0, 0, Reason.LOWER_FIRST), Share(B, STEP, STEP))
    host.over.clear()
    host.step(wanted(4 * STEP, ticket=2))
    host.live(15.0)
    assert over(host).why is Ended.COMPLETE
    assert (host.target(A), host.target(B)) == (3 * STEP, 2 * STEP)


def test_guest_in_need_and_one_that_is_paused_are_not_asked() -> None:
    host = SteeredHost({A: CAREFUL, B: CAREFUL})
    host.seen = LOW
    host.live(1.5)
    host.figures[A] = WELL._replace(available_bytes=100 * MIB)
    host.live(1.0)
    host.seen = PLENTY
    assert host.target(A) == 0
    host.step(Paused((B,), 60.0))
    host.step(wanted(STEP))
    ended = over(host)
    assert ended.why is Ended.NOBODY
    assert ended.shares == (Share(A, 0, 0, Reason.IN_NEED), Share(B, 0, 0, Reason.PAUSED))


def test_guest_that_gets_into_need_keeps_nothing_and_others_are_asked_instead() -> None:
    host = SteeredHost({A: CAREFUL, B: CAREFUL})
    host.step(wanted(6 * STEP))
    host.live(1.5)
    assert host.target(A) == 2 * STEP
    host.figures[A] = WELL._replace(available_bytes=100 * MIB)
    host.live(10.0)
    ended = over(host)
    assert ended.why is Ended.COMPLETE
    assert ended.shares == (
        Share(A, 2 * STEP, 0, Reason.IN_NEED),
        Share(B, 6 * STEP, 6 * STEP),
    )
    assert (host.target(A), host.target(B)) == (0, 6 * STEP)


def test_guest_that_gives_nothing_is_asked_for_no_more_and_others_for_its_share(
    host: SteeredHost,
) -> None:
    host.gives = False
    host.step(wanted(2 * STEP))
    host.moved(B, STEP)
    while not host.over and host.now_s < 1030.0:
        host.live(0.5)
        host.moved(B, host.target(B))
    ended = over(host)
    assert ended.why is Ended.COMPLETE
    assert ended.shares == (Share(A, STEP, 0, Reason.STALLED), Share(B, 2 * STEP, 2 * STEP))
    # It is not left with a target that it would go on to try for.
    assert host.target(A) == 0


def test_time_that_is_over_ends_it_with_what_came(host: SteeredHost) -> None:
    host.gives = False
    host.step(wanted(8 * STEP, A, within_s=2.0))
    host.moved(A, STEP // 2)
    host.live(3.0)
    ended = over(host)
    assert ended.why is Ended.TIME
    assert ended.took_s == pytest.approx(2.0)
    assert ended.shares[0].came_bytes == STEP // 2
    assert host.target(A) == STEP // 2


def test_vm_that_dies_gives_nothing_and_others_are_asked_for_its_share(
    host: SteeredHost,
) -> None:
    host.step(wanted(4 * STEP))
    host.step(Removed(A))
    host.live(10.0)
    ended = over(host)
    assert ended.why is Ended.COMPLETE
    assert ended.shares == (Share(B, 4 * STEP, 4 * STEP), Share(A, STEP, 0, None, gone=True))


def test_only_vm_that_dies_ends_it(host: SteeredHost) -> None:
    host.step(wanted(4 * STEP, A))
    host.step(Removed(A))
    host.live(2.0)
    assert over(host).why is Ended.NOBODY


def test_reclaim_for_which_nobody_waits_goes_back_as_after_low_memory(host: SteeredHost) -> None:
    host.step(wanted(8 * STEP, A, hold_s=86_400.0))
    host.live(1.5)
    assert host.target(A) == 2 * STEP
    host.step(Withdrawn(1))
    assert over(host).why is Ended.WITHDRAWN
    host.live(59.0)
    assert host.target(A) == 2 * STEP
    host.live(2.0)
    assert host.target(A) == STEP
    host.live(31.0)
    assert host.target(A) == 0


def test_two_reclaims_at_once_share_the_steps_and_no_byte_counts_twice(
    host: SteeredHost,
) -> None:
    host.step(wanted(3 * STEP))
    host.step(wanted(3 * STEP, ticket=2))
    assert (host.target(A), host.target(B)) == (STEP, STEP)
    host.live(1.5)
    assert (host.target(A), host.target(B)) == (2 * STEP, 2 * STEP)
    host.live(5.0)
    first, second = host.over
    assert isinstance(first, ReclaimOver)
    assert isinstance(second, ReclaimOver)
    assert [ended.wanted.ticket for ended in (first, second)] == [1, 2]
    for ended in (first, second):
        assert ended.why is Ended.COMPLETE
        assert sum(share.came_bytes for share in ended.shares) == 3 * STEP
    assert host.target(A) + host.target(B) == 6 * STEP


def test_what_low_memory_takes_meanwhile_counts_for_the_policy_alone(host: SteeredHost) -> None:
    host.step(wanted(4 * STEP, A))
    host.seen = LOW
    host.live(4.2)
    ended = over(host)
    assert ended.why is Ended.COMPLETE
    assert ended.shares[0].came_bytes == 4 * STEP
    assert host.target(A) > 4 * STEP
    assert host.target(B) > 0


def test_end_of_balloond_ends_reclaims(host: SteeredHost) -> None:
    host.step(wanted(4 * STEP))
    before = host.target(A)
    host.step(Halted())
    assert over(host).why is Ended.HALTED
    assert (host.target(A), host.wake_at_s) == (before, None)
    host.step(wanted(4 * STEP, ticket=2))
    host.step(Withdrawn(2))
    assert host.target(A) == before
    assert len(host.over) == 1


def test_reclaim_from_a_vm_that_there_is_not_changes_nothing(host: SteeredHost) -> None:
    with pytest.raises(StateError):
        host.policy.step(wanted(STEP, A, C), host.now_s)
    assert host.target(A) == 0
    assert host.policy.steering.reclaims.going_on() == []


def test_host_without_vms_answers_at_once() -> None:
    host = SteeredHost({})
    host.step(wanted(STEP))
    assert over(host).shares == ()
    assert over(host).why is Ended.NOBODY


def test_reclaim_leaves_no_guest_less_than_its_maximum_allows(host: SteeredHost) -> None:
    host.step(wanted(GIB, within_s=600.0))
    host.live(60.0)
    assert over(host).why is Ended.COMPLETE
    assert (host.target(A), host.target(B)) == (MOST, MOST)
