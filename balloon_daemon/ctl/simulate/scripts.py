"""The standard hosts that policies are judged on. Pure."""

from balloon_daemon.ctl.simulate.loads import LOADS
from balloon_daemon.ctl.simulate.scenario import Course, Scenario, ScenarioVm

HOST_MIB, MARGIN_MIB = 12 * 1024, 640
"""A host of 12 GiB; its margin is balloond's, 5.2 % of that."""


def _vm(
    name: str,
    load: str,
    gib: int,
    *,
    at_s: float | None = None,
    untouched: float = 0.0,
    priority: int = 0,
) -> ScenarioVm:
    """A VM of so many GiB with a load that was recorded in a VM of 1 GiB."""
    of_1_gib = LOADS[load] if at_s is None else LOADS[load].begins(at_s)
    size_mib = gib * 1024
    return ScenarioVm(name, size_mib, of_1_gib.times(gib), untouched=untouched, priority=priority)


def _waves(mib: float, every_s: float, for_s: float, rise_s: float, number: int) -> Course:
    """Demand that comes so many times and goes again."""
    points = [(0.0, 0.0)]
    for each in range(number):
        begin_s = 30.0 + each * every_s
        points += [
            (begin_s, 0.0),
            (begin_s + rise_s, mib),
            (begin_s + rise_s + for_s, mib),
            (begin_s + 2 * rise_s + for_s, 0.0),
        ]
    return tuple(points)


def _noise(mib: float, every_s: float, number: int) -> Course:
    """Demand that jumps about, by a fixed sequence (a linear congruence), never below 0."""
    points, state = list[tuple[float, float]](), 12345
    for each in range(number):
        state = (state * 1103515245 + 12345) % 2**31
        points.append((each * every_s, mib * state / 2**31))
    return tuple(points)


def scripts() -> list[Scenario]:
    """The standard hosts."""
    return [
        Scenario(
            "surge",
            "1.5 GiB in 3 s, for 12 s: an idle guest, cold cache, and a working set",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 500,
            _waves(1536, 300, 12, 3, 1), 420,
            (_vm("idle", "idle", 3, untouched=0.3), _vm("files", "coldcache", 3),
             _vm("db", "mmapr", 2)),
        ),
        Scenario(
            "ramp",
            "2.5 GiB more in 5 minutes, which stay for 5: two busy guests and an idle one",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 400,
            ((30, 0), (330, 2560), (630, 2560), (640, 0)), 1200,
            (_vm("idle", "idle", 4, untouched=0.5), _vm("web", "read", 2),
             _vm("batch", "stream", 3)),
        ),
        Scenario(
            "waves",
            "1.5 GiB each 75 s, for 12 s: cold cache, an idle guest, one without anything to give",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 400,
            _waves(1536, 75, 12, 3, 8), 900,
            (_vm("files", "coldcache", 4), _vm("idle", "idle", 2), _vm("app", "anon", 2)),
        ),
        Scenario(
            "lasting",
            "3 GiB for 10 minutes, then relief: a working set, swap in zram, cold cache, idle",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 300,
            ((30, 0), (45, 3072), (645, 3072), (650, 0)), 1300,
            (_vm("db", "mmapr", 2), _vm("zram", "zram", 2), _vm("files", "coldcache", 3),
             _vm("idle", "idle", 2)),
        ),
        Scenario(
            "noise",
            "demand that jumps about the margin each 4 s: a working set and two idle guests",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 350,
            _noise(700, 4, 150), 700,
            (_vm("db", "read", 2), _vm("idle", "idle", 3), _vm("files", "coldcache", 3)),
        ),
        Scenario(
            "build",
            "the host builds (2 GiB by turns) beside a database guest and an application",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 400,
            _waves(2048, 140, 60, 15, 4), 900,
            (_vm("db", "mmapr", 3), _vm("app", "anon", 2), _vm("files", "coldcache", 3)),
        ),
        Scenario(
            "burst",
            "cold VMs, 1.5 GiB for 5 minutes; at 200 s a guest itself wants half its memory",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 500,
            ((30, 0), (60, 1536), (360, 1536), (370, 0)), 1000,
            (_vm("burst", "burst", 2, at_s=200, untouched=0.8),
             _vm("idle", "idle", 3, untouched=0.3), _vm("files", "coldcache", 3)),
        ),
        Scenario(
            "coldstart",
            "1 GiB for 4 minutes; a guest starts a program it has not read before, one streams",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 300,
            ((20, 0), (30, 1024), (270, 1024), (280, 0)), 900,
            (_vm("start", "coldstart", 2, at_s=60, untouched=0.5), _vm("batch", "stream", 2),
             _vm("idle", "idle", 3, untouched=0.3)),
        ),
    ]  # fmt: skip
