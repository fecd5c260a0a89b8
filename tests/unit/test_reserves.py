"""Reserves: the policy goes by a larger margin for a time, and says when that is there."""

import pytest

from balloon_daemon.sizing.decision import Ended, NeverLow, Reading, Reason, Share
from balloon_daemon.sizing.host_events import (
    Halted,
    Paused,
    ReserveAnswered,
    Reserved,
    ReserveOver,
    Unreserved,
    Withdrawn,
)
from balloon_daemon.units import MIB, VmId
from tests.harness.steered_host import CAREFUL, SEED, STEP, A, B, SteeredHost

MARGIN_MIB = 400


def reserve(mib: int, ticket: int = 1, within_s: float = 30.0, for_s: float = 600.0) -> Reserved:
    return Reserved(ticket, mib * MIB, within_s, for_s)


class FedHost(SteeredHost):
    """A host that has what its guests give.

    Attributes:
        free_mib: what it has available without that.
    """

    free_mib = 500

    def live(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            given = sum(self.target(vm) for vm in (A, B)) // MIB
            self.seen = Reading(self.free_mib + given, MARGIN_MIB)
            super().live(0.1)

    def answers(self) -> list[ReserveAnswered]:
        return [over for over in self.over if isinstance(over, ReserveAnswered)]


@pytest.fixture(params=[SEED, CAREFUL], ids=["seed", "careful"])
def host(request: pytest.FixtureRequest) -> FedHost:
    return FedHost({A: request.param, B: request.param})


def test_reserve_is_taken_by_the_policys_steps_and_answered_once_it_is_there(
    host: FedHost,
) -> None:
    host.live(2.0)
    assert (host.target(A), host.target(B)) == (0, 0)
    host.step(reserve(300))
    host.live(0.9)
    assert (host.target(A), host.target(B)) == (STEP, STEP)
    assert host.answers() == []
    host.live(4.1)
    # 500 MiB and 4 steps of 2 × 32 MiB are 756; the margin and 300 MiB are 700.
    (answer,) = host.answers()
    assert (answer.why, answer.shares) == (Ended.COMPLETE, ())
    assert answer.took_s == pytest.approx(3.1, abs=0.2)
    assert answer.reading == Reading(756, 700, reserved_mib=300)
    assert host.target(A) == 4 * STEP


def test_memory_goes_back_only_once_the_reserve_is_over(host: FedHost) -> None:
    host.step(reserve(300, for_s=120.0))
    host.live(100.0)
    assert host.target(A) == 4 * STEP
    host.live(120.0)
    assert host.over[-1] == ReserveOver(reserve(300, for_s=120.0), Ended.TIME)
    assert host.target(A) < 3 * STEP
    assert host.policy.steering.reserves.mib == 0


def test_source_whose_alarm_knows_the_margin_alone_is_read_for_the_reserve(
    host: FedHost,
) -> None:
    host.polls = False
    host.step(reserve(300))
    host.live(5.0)
    assert [answer.why for answer in host.answers()] == [Ended.COMPLETE]
    host.free_mib = 430
    host.live(2.0)
    # Once nobody waits any more, too.
    assert host.target(A) == 5 * STEP


def test_reserve_that_is_there_already_takes_nothing(host: FedHost) -> None:
    host.step(reserve(100))
    host.live(1.0)
    (answer,) = host.answers()
    assert answer.why is Ended.COMPLETE
    assert host.target(A) == 0


def test_reserves_add_up_and_end_apart(host: FedHost) -> None:
    host.step(reserve(100, ticket=1, for_s=5.0))
    host.step(reserve(100, ticket=2))
    assert host.policy.steering.reserves.mib == 200
    host.live(4.0)
    assert [answer.why for answer in host.answers()] == [Ended.COMPLETE, Ended.COMPLETE]
    assert host.target(A) == 2 * STEP
    host.live(2.0)
    assert host.policy.steering.reserves.mib == 100
    host.step(Unreserved())
    assert host.policy.steering.reserves.mib == 0
    ends = [over.why for over in host.over if isinstance(over, ReserveOver)]
    assert ends == [Ended.TIME, Ended.WITHDRAWN]


def test_reserve_that_cannot_come_says_why_of_each_vm(host: FedHost) -> None:
    host.step(Paused((B,), 3600.0))
    host.step(reserve(4000))
    host.live(25.0)
    (answer,) = host.answers()
    assert answer.why is Ended.NOBODY
    assert answer.took_s > 15.0
    assert answer.reading == Reading(500 + 512, 4400, reserved_mib=4000)
    assert answer.shares == (
        Share(A, 0, 0, Reason.AT_MAXIMUM),
        Share(B, 0, 0, Reason.PAUSED),
    )


def test_wait_that_is_over_is_answered_and_the_reserve_goes_on(host: FedHost) -> None:
    host.step(reserve(300, within_s=1.5))
    host.live(2.0)
    (answer,) = host.answers()
    assert answer.why is Ended.TIME
    assert answer.took_s == pytest.approx(1.5)
    host.live(3.0)
    assert host.target(A) == 4 * STEP


def test_nobody_who_waits_ends_the_reserve_but_not_one_that_was_answered(
    host: FedHost,
) -> None:
    host.step(reserve(300))
    host.live(0.9)
    host.step(Withdrawn(1))
    assert host.over == [ReserveOver(reserve(300), Ended.WITHDRAWN)]
    host.live(2.0)
    assert host.target(A) == STEP
    assert host.policy.steering.reserves.mib == 0


def test_host_whose_low_memory_is_switched_off_or_unknown_says_so(host: FedHost) -> None:
    host.seen = NeverLow("a margin of 0")  # type: ignore[assignment]  # as the source may say
    host.step(reserve(300))
    SteeredHost.live(host, 0.5)
    assert [answer.why for answer in host.answers()] == [Ended.SWITCHED_OFF]
    host.seen = None  # type: ignore[assignment]  # as the source may say
    host.step(reserve(300, ticket=2, within_s=5.0))
    SteeredHost.live(host, 6.0)
    assert host.answers()[-1].why is Ended.TIME
    assert host.answers()[-1].reading is None


def test_reserve_of_a_host_without_vms_is_judged_too() -> None:
    host = SteeredHost({})
    host.seen = Reading(500, MARGIN_MIB)
    host.step(reserve(50))
    host.live(0.5)
    assert [over.why for over in host.over if isinstance(over, ReserveAnswered)] == [
        Ended.COMPLETE
    ]


def test_end_of_balloond_ends_reserves_and_waits(host: FedHost) -> None:
    host.step(reserve(300))
    host.step(Halted())
    assert [type(over) for over in host.over] == [ReserveAnswered, ReserveOver]
    assert host.wake_at_s is None
    host.step(reserve(300, ticket=2))
    assert host.policy.steering.reserves.mib == 0


def test_vm_too_small_for_a_balloon_is_no_reason_to_wait() -> None:
    host = SteeredHost({VmId(7, "small"): SEED}, vm_mem_bytes=100 * MIB)
    host.seen = Reading(500, MARGIN_MIB)
    host.step(reserve(300))
    host.live(5.0)
    (answer,) = (over for over in host.over if isinstance(over, ReserveAnswered))
    assert answer.why is Ended.NOBODY
    assert answer.shares[0].objection is Reason.NO_BALLOON
