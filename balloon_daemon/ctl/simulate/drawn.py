"""Hosts with randomly drawn VMs and demand, to which nobody can have tuned a policy. Pure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from balloon_daemon.ctl.simulate.loads import KINDS
from balloon_daemon.ctl.simulate.scenario import Course, Scenario, ScenarioVm
from balloon_daemon.ctl.simulate.scripts import HOST_MIB, MARGIN_MIB

SECONDS = 900.0
MOST_MIB = 9 * 1024
"""All VMs of a host together."""

Item = TypeVar("Item")


def drawn(number: int, draw: Callable[[], float]) -> list[Scenario]:
    """Hosts, each with two to four VMs of any recorded kinds, and demand that rises, stays and
    falls again and again.

    Args:
        number: how many hosts.
        draw: gives uniform numbers of [0, 1).
    """
    return [_host(f"drawn-{each}", draw) for each in range(1, number + 1)]


def _host(name: str, draw: Callable[[], float]) -> Scenario:
    def between(least: float, most: float) -> float:
        return least + (most - least) * draw()

    def one_of(items: Sequence[Item]) -> Item:
        return items[int(draw() * len(items))]

    vms: list[ScenarioVm] = []
    for index in range(one_of((2, 3, 4))):
        kind = KINDS[one_of(list(KINDS))]
        kind = kind._replace(load=kind.load.begins(between(40, 300)))
        size_mib = 1024 * one_of((2, 2, 3, 4))
        if sum(vm.kind.size_mib for vm in vms) + size_mib <= MOST_MIB:
            untouched = one_of((0.0, 0.0, 0.3))
            vms.append(ScenarioVm(f"vm{index + 1}", kind.of_size(size_mib), untouched))
    demand, at_s = [(0.0, 0.0)], 30.0
    while at_s < SECONDS - 200:
        mib, rise_s, for_s = between(500, 3500), one_of((3, 10, 30, 120)), one_of((5, 30, 120))
        demand += _swell(at_s, mib, rise_s, for_s)
        at_s = demand[-1][0] + between(20, 120)
    available_mib = MARGIN_MIB + int(between(200, 600))
    about = "drawn by lot"
    return Scenario(
        name, about, HOST_MIB, MARGIN_MIB, available_mib, tuple(demand), SECONDS, tuple(vms), "vm1"
    )


def _swell(at_s: float, mib: float, rise_s: float, for_s: float) -> Course:
    top_s = at_s + rise_s
    return ((at_s, 0.0), (top_s, mib), (top_s + for_s, mib), (top_s + for_s + rise_s, 0.0))
