"""The standard hosts that policies are judged on. Pure."""

from balloon_daemon.ctl.simulate.loads import KINDS
from balloon_daemon.ctl.simulate.scenario import Course, Scenario, ScenarioVm

HOST_MIB, MARGIN_MIB = 12 * 1024, 640
"""A host of 12 GiB, and balloond's default margin for it, 5.2 % of its memory."""


def _vm(name: str, kind: str, gib: int, *, untouched: float = 0.0) -> ScenarioVm:
    """A VM of ``gib`` GiB with a kind of guest that was recorded."""
    return ScenarioVm(name, KINDS[kind].of_size(gib * 1024), untouched)


def _waves(mib: float, every_s: float, for_s: float, rise_s: float, number: int) -> Course:
    """Demand that rises to ``mib`` and falls to 0 again, ``number`` times."""
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
    """Demand that changes by fixed pseudo-random numbers (a linear congruential generator) between
    0 and ``mib``."""
    points, state = list[tuple[float, float]](), 12345
    for each in range(number):
        state = (state * 1103515245 + 12345) % 2**31
        points.append((each * every_s, mib * state / 2**31))
    return tuple(points)


def scripts() -> list[Scenario]:
    """The standard hosts."""
    hosts = [
        Scenario(
            "surge",
            "1.5 GiB in 3 s, for 12 s, twice; a working set, cold cache, an idle guest",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 500,
            _waves(1536, 400, 12, 3, 2), 900,
            (_vm("db", "k61-mmapr", 2), _vm("files", "k72-coldcache", 3),
             _vm("idle", "k61-idle", 3, untouched=0.3)),
            busy="db", event_s=32,
        ),
        Scenario(
            "ramp",
            "4 GiB more in 5 minutes, which stay for 5; two busy guests, an idle one",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 400,
            ((30, 0), (330, 4096), (630, 4096), (640, 0)), 1300,
            (_vm("web", "k72-read", 2), _vm("batch", "k61-stream", 3),
             _vm("idle", "k72-idle", 4, untouched=0.3)),
            busy="web", event_s=300,
        ),
        Scenario(
            "waves",
            "2.5 GiB each 75 s, for 12 s; cold cache, an idle guest, one with nothing to give",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 300,
            _waves(2560, 75, 12, 3, 8), 1200,
            (_vm("app", "k61-anon", 2), _vm("files", "k72-coldcache", 4),
             _vm("idle", "k61-idle", 2)),
            busy="app", event_s=110,
        ),
        Scenario(
            "lasting",
            "4 GiB for 10 minutes, then relief; a working set, swap in zram, cold cache, idle",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 300,
            ((30, 0), (45, 4096), (645, 4096), (650, 0)), 1300,
            (_vm("db", "k72-mmapr", 2), _vm("zram", "k72-zram", 2),
             _vm("files", "k72-coldcache", 3), _vm("idle", "k72-idle", 2)),
            busy="db", event_s=120,
        ),
        Scenario(
            "noise",
            "demand that jumps about the margin each 4 s; a working set, two idle guests",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 250,
            _noise(700, 4, 225), 900,
            (_vm("db", "k72-read", 2), _vm("idle", "k72-idle", 3, untouched=0.2),
             _vm("files", "k72-coldcache", 3)),
            busy="db", event_s=100,
        ),
        Scenario(
            "build",
            "a build of 3 GiB on the host, by turns; a database, an application, cold files",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 400,
            _waves(3072, 200, 60, 20, 4), 1300,
            (_vm("db", "k61-mmapr", 3), _vm("app", "k72-anon", 2),
             _vm("files", "k72-coldcache", 3)),
            busy="db", event_s=260,
        ),
        Scenario(
            "burst",
            "2 GiB for 5 minutes; at 200 s a guest itself wants half of its memory",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 500,
            ((30, 0), (60, 2048), (360, 2048), (370, 0)), 1000,
            (_vm("ci", "k61-burst", 2, untouched=0.3), _vm("idle", "k61-idle", 3, untouched=0.3),
             _vm("files", "k72-coldcache", 3)),
            busy="ci", event_s=200,
        ),
        Scenario(
            "coldstart",
            "2 GiB for 4 minutes; one guest starts a program, one begins to stream",
            HOST_MIB, MARGIN_MIB, MARGIN_MIB + 300,
            ((20, 0), (30, 2048), (270, 2048), (280, 0)), 1000,
            (_vm("start", "k61-coldstart", 2, untouched=0.3), _vm("batch", "k72-streamlate", 3),
             _vm("idle", "k72-idle", 3, untouched=0.3)),
            busy="start", event_s=60,
        ),
    ]  # fmt: skip
    own = {"burst": "ci", "coldstart": "start"}
    return [
        host.with_guest(next(vm.kind for vm in host.vms if vm.name == own[host.name]))
        if host.name in own
        else host
        for host in hosts
    ]
