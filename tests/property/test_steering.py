"""Whatever operators, guests and the host do: targets stay in bounds, and every wait ends."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import (
    Paused,
    ReclaimOver,
    Removed,
    ReserveAnswered,
    Reserved,
    ReserveOver,
    Resumed,
    Unreserved,
    Wanted,
    Withdrawn,
)
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import MIB, VmId
from tests.harness.steered_host import CAREFUL, SEED, WELL, SteeredHost

VMS = {
    VmId(1, "seed"): SEED,
    VmId(2, "careful"): CAREFUL,
    VmId(3, "last"): Terms(VmSettings(priority=5, ceiling_bytes=100 * MIB)),
}
WITHIN_S, FOR_S = 8.0, 40.0
some_vms = st.lists(st.sampled_from(list(VMS)), unique=True, max_size=2).map(tuple)
sizes = st.integers(0, 2000 * MIB)
acts = st.one_of(
    st.tuples(st.just("reclaim"), some_vms, sizes),
    st.tuples(st.just("reserve"), sizes),
    st.tuples(st.just("withdraw"), st.integers(1, 9)),
    st.tuples(st.just("pause"), some_vms),
    st.tuples(st.just("resume"), some_vms),
    st.tuples(st.just("unreserve")),
    st.tuples(st.just("available"), st.integers(0, 3000)),
    st.tuples(st.just("gives"), st.booleans()),
    st.tuples(st.just("moved"), st.sampled_from(list(VMS)), st.integers(0, 512 * MIB)),
    st.tuples(st.just("need"), st.sampled_from(list(VMS)), st.booleans()),
    st.tuples(st.just("gone"), st.sampled_from(list(VMS))),
    st.tuples(st.just("live"), st.sampled_from([0.1, 0.7, 3.0])),
)


def do(host: SteeredHost, act: tuple[object, ...], ticket: int) -> None:
    """Lets something happen; what concerns VMs that have gone does not."""
    governs = host.policy.governs
    match act:
        case ("reclaim", tuple(vms), int(size_bytes)):
            here = tuple(filter(governs, vms))
            host.step(Wanted(ticket, here, size_bytes, WITHIN_S, 30.0))
        case ("reserve", int(size_bytes)):
            host.step(Reserved(ticket, size_bytes, WITHIN_S, FOR_S))
        case ("withdraw", int(number)):
            host.step(Withdrawn(number))
        case ("pause", tuple(vms)):
            host.step(Paused(tuple(filter(governs, vms)), 10.0))
        case ("resume", tuple(vms)):
            host.step(Resumed(tuple(filter(governs, vms))))
        case ("unreserve",):
            host.step(Unreserved())
        case ("available", int(available_mib)):
            host.seen = Reading(available_mib, 400)
        case ("gives", bool(gives)):
            host.gives = gives
        case ("moved", VmId() as vm, int(balloon_bytes)) if governs(vm):
            host.moved(vm, balloon_bytes)
        case ("need", VmId() as vm, bool(needs)):
            host.figures[vm] = WELL._replace(available_bytes=(50 if needs else 600) * MIB)
        case ("gone", VmId() as vm) if governs(vm):
            host.step(Removed(vm))
        case ("live", float(seconds)):
            host.live(seconds)


@settings(max_examples=150)
@given(st.lists(acts, max_size=25))
def test_targets_stay_in_bounds_and_every_wait_ends_once(
    happening: list[tuple[object, ...]],
) -> None:
    host = SteeredHost(VMS)
    for ticket, act in enumerate(happening, start=1):
        do(host, act, ticket)
        for vm in filter(host.policy.governs, VMS):
            assert 0 <= host.target(vm) <= host.policy.policy(vm).max_bytes
    host.live(WITHIN_S + 1.0)
    assert host.policy.steering.reclaims.going_on() == []
    host.live(FOR_S)
    assert host.policy.steering.reserves.mib == 0
    assert host.policy.steering.pauses.vms == ()

    ended = [over.wanted for over in host.over if isinstance(over, ReclaimOver)]
    assert Counter(one.ticket for one in ended) == Counter(
        ticket for ticket, act in enumerate(happening, start=1) if act[0] == "reclaim"
    )
    over = Counter(one.reserved.ticket for one in host.over if isinstance(one, ReserveOver))
    assert over == Counter(
        ticket for ticket, act in enumerate(happening, start=1) if act[0] == "reserve"
    )
    answered = Counter(
        one.reserved.ticket for one in host.over if isinstance(one, ReserveAnswered)
    )
    assert max(answered.values(), default=1) == 1
    for one in host.over:
        if isinstance(one, ReclaimOver):
            assert all(0 <= share.came_bytes <= share.asked_bytes for share in one.shares)
