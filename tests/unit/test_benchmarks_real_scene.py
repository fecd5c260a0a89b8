"""The scene of three real guests: its script, balloond's log, and the simulator's copy of it."""

from typing import Any

import pytest

from balloon_daemon.ctl.simulate.scenario import at
from benchmarks.real_scene import END_S, VMS, changes, demand_mib, wished
from benchmarks.real_scores import Change
from benchmarks.simulated_scene import scene


def test_host_wants_memory_step_by_step_and_gives_all_of_it_back() -> None:
    assert [demand_mib(at_s) for at_s in (0, 5, 6, 15, 16, 41.9, 42)] == [
        *(0, 0, 60, 600, 650, 650, 0)
    ]


@pytest.mark.parametrize(
    ("from_s", "to_s", "done", "wish"),
    [
        (20, 26, 0, 0),
        (25, 27, 0, 50),
        (30, 31, 200, 50),
        # It has fallen behind, and wishes to catch up until all is there.
        (40, 41, 300, 50),
        (40, 41, 390, 10),
        (40, 41, 400, 0),
    ],
)
def test_burst_wishes_to_grow_at_its_rate_until_all_is_there(
    from_s: float, to_s: float, done: int, wish: float
) -> None:
    assert wished("burst", from_s, to_s, done) == wish


def test_guest_that_works_wishes_its_rate_and_the_cold_one_nothing() -> None:
    assert wished("works", 3.0, 5.5, 10**6) == VMS["works"].rate * 2.5
    assert wished("cold", 3.0, 5.5, 0) == 0


def decided(vm: str, second: int, target_bytes: int) -> dict[str, Any]:
    at = f"1970-01-01T00:01:{second:02}.250+00:00"
    return {"event": "decided", "vm": vm, "time": at, "target_bytes": target_bytes}


def test_decisions_that_change_a_target_are_changes_and_others_are_not() -> None:
    records = [
        {"event": "vm-attached", "vm": "cold"},
        decided("cold", 1, 0),
        decided("cold", 2, 4096),
        decided("works", 2, 4096),
        decided("cold", 3, 4096),
        decided("cold", 4, 0),
    ]
    assert changes(records, 60.0) == [
        Change("cold", 2.25, 4096),
        Change("works", 2.25, 4096),
        Change("cold", 4.25, 0),
    ]


def test_simulator_plays_the_same_demand_and_the_same_vms() -> None:
    simulated = scene()
    for tenths in range(int(END_S * 10)):
        assert abs(at(simulated.demand, tenths / 10) - demand_mib(tenths / 10)) < 1
    assert {vm.name: vm.kind.size_mib for vm in simulated.vms} == {
        name: vm.memory_mib for name, vm in VMS.items()
    }
