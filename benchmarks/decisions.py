"""Decisions: what one of them costs the controller for 256 VMs of each profile.

All that a policy does at one reading while memory is low: who is asked for how much, by statistics
of the same second. The host stays low by a little, so that each decision changes targets.
"""

from collections.abc import Iterator
from time import thread_time

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import Added, Moved, Sampled, Woke
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, VmId
from benchmarks.figures import Figure, at_most, of_samples

VMS = [VmId(number, f"vm{number}") for number in range(256)]
WELL = Figures(0.0, 3 * GIB, 2 * GIB, 0, 0, 0, 0)
LOW = Reading(390, 400)
DECISIONS = 12
"""While memory is low: before all balloons are at their maximum."""


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    for profile in Profile:
        goal = at_most(2.0) if profile is Profile.ADAPTIVE else None
        name = f"decision for 256 VMs, {profile.value}: CPU"
        yield of_samples(name, "ms", _decisions(profile), goal)


def _decisions(profile: Profile) -> Iterator[float]:
    host = HostPolicy(PolicySettings(recheck_jitter_s=0.0), lambda: 0.0, lambda _vm, _level: None)
    now_s, terms = 1000.0, Terms(VmSettings(profile=profile))
    for vm in VMS:
        host.step(Added(vm, 4 * GIB, 0, terms), now_s)
    for _ in range(DECISIONS):
        now_s += 1.0
        for vm in VMS:
            host.step(Sampled(vm, WELL._replace(at_s=now_s)), now_s)
        began_s = thread_time()
        step = host.step(Woke(LOW), now_s)
        yield (thread_time() - began_s) * 1000
        for vm, target_bytes in step.targets:
            if host.guard(vm) is None:
                host.note_actual(vm, target_bytes)
            else:
                host.step(Moved(vm, target_bytes), now_s)
