"""The scene of ``real_scene`` in the simulator: the same guests, demand and margin. Pure."""

import random

from balloon_daemon.ctl.simulate.contenders import Contender
from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load
from balloon_daemon.ctl.simulate.scenario import Scenario, ScenarioVm, run
from balloon_daemon.ctl.simulate.scores import Scores
from benchmarks import real_scene as real

ANON_MIB = 40.0
"""What kernel and init of such a guest use beyond what the model's kernel has for itself."""

READ_MIB = 1.2
"""What Linux reads of the disk for one page of a mapping that is missing: by its read-ahead, in
``own-k72-512m-tight``."""

HOST_MIB = 4096
"""The model's host; only what is available counts, and other rules than balloond's go by this."""

LOADS = {
    "cold": Load(ANON_MIB, real.COLD_MIB),
    "works": Load(
        ANON_MIB,
        cache_mib=real.SET_MIB,
        set_mib=real.SET_MIB,
        touch_rate=real.SET_RATE * READ_MIB,
        works=True,
    ),
    "burst": Load(
        ANON_MIB,
        grow_mib=real.BURST_MIB,
        grow_at_s=real.BURST_AT_S,
        grow_rate=real.BURST_MIB_S,
        grow_s=real.BURST_MIB / real.BURST_MIB_S + real.BURST_FOR_S,
        works=True,
    ),
}
UNTOUCHED = {"cold": 1.0, "works": 1.0, "burst": 0.0}
"""The share of its free memory that a guest has never used when the scene begins."""


def scene() -> Scenario:
    """The scene as the simulator plays it."""
    rises_s = real.DEMAND_MIB / real.DEMAND_MIB_S
    return Scenario(
        name="real",
        about="the scene of the real guests",
        host_mib=HOST_MIB,
        margin_mib=real.MARGIN_MIB,
        available_mib=real.MARGIN_MIB + real.ROOM_MIB,
        demand=(
            (real.DEMAND_FROM_S, 0.0),
            (real.DEMAND_FROM_S + rises_s, real.DEMAND_MIB),
            (real.DEMAND_UNTIL_S, real.DEMAND_MIB),
            (real.DEMAND_UNTIL_S, 0.0),
        ),
        seconds=real.END_S,
        vms=tuple(
            ScenarioVm(name, _kind(name, vm.memory_mib), UNTOUCHED[name])
            for name, vm in real.VMS.items()
        ),
        busy="works",
    )


def _kind(name: str, size_mib: int) -> Kind:
    # What the model's kernel keeps is that of a VM of 1 GiB.
    return Kind(size_mib, Kernel().times(size_mib / 1024), LOADS[name])


def simulated(contender: Contender, seed: int) -> Scores:
    """A policy's scores in the scene.

    Args:
        contender: the policy.
        seed: of its random draws.
    """
    return run(scene(), contender, random.Random(seed).random).scores
