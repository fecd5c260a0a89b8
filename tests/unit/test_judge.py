"""The judge: hosts of simulated guests, policies that govern them, and the table."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.ctl.simulate import judging
from balloon_daemon.ctl.simulate.contenders import Contender, contenders, host_policy
from balloon_daemon.ctl.simulate.drawn import drawn
from balloon_daemon.ctl.simulate.everyone import judge_trace
from balloon_daemon.ctl.simulate.judge import judge, sums, table
from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load
from balloon_daemon.ctl.simulate.overrides import changes_of
from balloon_daemon.ctl.simulate.scenario import Scenario, ScenarioVm, at, run
from balloon_daemon.ctl.simulate.scripts import scripts
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.ctl.simulate.world import World
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.host_events import Event, HostStep, Sampled, Target, Watch
from balloon_daemon.sizing.vm_settings import Profile
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.recordings import RECORDINGS

TRACES = Path(__file__).parents[2] / "docs" / "traces"
Output = pytest.CaptureFixture[str]

SEED = Contender("seed", host_policy, Profile.SEED)
CAREFUL = Contender("careful", host_policy, Profile.CAREFUL)
IDLE = ScenarioVm("idle", Kind(2048, Kernel(), Load(100.0)))
SET = Load(100.0, 1800.0, 1800.0, 200.0, works=True)
DB = ScenarioVm("db", Kind(2048, Kernel(), SET))


def draw() -> float:
    return 0.0


def host(*vms: ScenarioVm, more_mib: float = 0.0, seconds: float = 60.0) -> Scenario:
    """A host that wants so much more from 10 s on, with 100 MiB above its margin of 400."""
    demand = ((10.0, 0.0), (10.5, more_mib))
    return Scenario("a", "b", 8192, 400, 500, demand, seconds, vms, busy="idle")


class Taker:
    """Asks its first VM for so much at the first event, and hears what it is told."""

    def __init__(self, mib: int) -> None:
        self._mib = mib
        self.heard: list[Event] = []

    def __call__(
        self, settings: PolicySettings, draw: Callable[[], float], host_mib: int
    ) -> "Taker":
        del settings, draw, host_mib
        return self

    def step(self, event: Event, now_s: float) -> HostStep:
        del now_s
        first = not self.heard
        self.heard.append(event)
        vm = VmId(1, "idle")
        targets = (Target(vm, self._mib * MIB),) if first else ()
        return HostStep(targets, (), None, listen=False, watches=(Watch(vm, 1.0),))

    def note_actual(self, vm: VmId, actual_bytes: int) -> None:
        raise AssertionError(f"{vm}: {actual_bytes}")


def test_course_is_straight_between_its_points_and_level_beyond_them() -> None:
    course = ((10.0, 0.0), (20.0, 100.0))
    assert [at(course, at_s) for at_s in (0, 10, 15, 20, 99)] == [0, 0, 50, 100, 100]


def test_host_that_has_enough_takes_nothing() -> None:
    scores = run(host(IDLE), SEED, draw).scores
    assert scores.seconds == 60
    assert (scores.low_s, scores.gib_minutes, scores.steps) == (0, 0, 0)
    assert scores.least_available_mib == 500


def test_host_that_is_low_gets_what_a_balloon_takes() -> None:
    scores = run(host(IDLE, more_mib=600), SEED, draw).scores
    assert scores.least_available_mib == 0
    assert scores.unmet_gib_s > 0
    assert 7 <= scores.low_s <= 10  # 500 MiB are missing, and a step a second is 64.
    assert scores.need_s == 0


def test_lasting_pressure_takes_all_within_sixteen_seconds_by_the_seed() -> None:
    course = run(host(IDLE, more_mib=4000), SEED, draw).course
    assert {each.at_s: each.balloons_mib for each in course}[28.0] == 1024


def test_guest_in_need_shows_in_the_scores_of_who_does_not_look() -> None:
    careful, seed = (run(host(DB, more_mib=900), each, draw).scores for each in (CAREFUL, SEED))
    assert 0 < careful.need_s < seed.need_s
    assert careful.stall_s < seed.stall_s / 2
    assert careful.low_s > seed.low_s


def test_untouched_memory_relieves_no_host() -> None:
    fresh = replace(IDLE, untouched=1.0)
    scores = run(host(fresh, more_mib=600), SEED, draw).scores
    assert scores.low_s == pytest.approx(49.9, abs=0.2)


def test_policy_hears_statistics_and_is_obeyed() -> None:
    taker = Taker(300)
    outcome = run(host(IDLE, seconds=20.0), Contender("taker", taker, Profile.CAREFUL), draw)
    assert outcome.course[-1][1:] == (800, 300, 0)
    sampled = [event.figures for event in taker.heard if isinstance(event, Sampled)]
    assert len(sampled) == 20
    last = sampled[-1].available_bytes
    assert last is not None
    assert 2 * GIB - 700 * MIB < last < 2 * GIB - 400 * MIB


def test_judgement_is_the_same_each_time_and_adds_up() -> None:
    hosts = [host(IDLE, more_mib=600), host(DB, more_mib=900)]
    judged = [
        judge(hosts[:1], contenders(), lambda: Random(1).random),
        judge(hosts[:1], contenders(), lambda: Random(1).random),
    ]
    assert judged[0] == judged[1]
    scores = [{name: each.scores for name, each in judged[0]["a"].items()}] * 2
    assert sums(scores)["seed"].low_s == 2 * scores[0]["seed"].low_s


def test_table_has_a_line_for_each_policy_and_fits_a_terminal() -> None:
    scores = run(host(DB, more_mib=4000), SEED, draw).scores
    lines = table({"seed": scores, "a-policy-of-a-long-name": scores})
    assert [line.split()[0] for line in lines] == ["low", "seed", "a-policy-of-a-long-name"]
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100


def test_standard_hosts_are_low_at_times_and_their_vms_fit_on_them() -> None:
    for scenario in scripts():
        assert sum(vm.kind.size_mib for vm in scenario.vms) <= scenario.host_mib
        assert 2 <= len(scenario.vms) <= 4
        assert run(scenario, SEED, draw).scores.low_s > 0, scenario.name


def test_hosts_that_are_drawn_differ_and_are_the_same_for_a_seed() -> None:
    hosts = drawn(20, Random(1).random)
    assert hosts == drawn(20, Random(1).random)
    assert hosts != drawn(20, Random(2).random)
    assert len({host.demand for host in hosts}) == 20
    assert {len(host.vms) for host in hosts} == {2, 3, 4}
    for host in hosts:
        assert sum(vm.kind.size_mib for vm in host.vms) <= host.host_mib * 3 / 4
        times = [at_s for at_s, _ in host.demand]
        assert times == sorted(times)


# --- the commands -------------------------------------------------------------------------------


def test_recorded_guests_take_the_busy_ones_place(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "contenders", lambda: [SEED])
    (tmp_path / "my-own.csv").write_text((RECORDINGS / "k72-coldanon.csv").read_text())
    assert main(["judge", "--recordings", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "\nmy-own  " in out
    assert "\nmy-own: on 8 hosts\n" in out
    assert out.count("\nseed ") == 2


def test_trace_is_judged_by_all_policies(capsys: Output) -> None:
    trace = str(TRACES / "need.trace")
    assert main(["simulate", trace, "--profile", "all", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [*told["policies"]] == [each.name for each in contenders()]
    assert told["policies"]["careful"]["need_s"] < told["policies"]["seed"]["need_s"]
    assert main(["simulate", trace, "--profile", "all", "--host-memory", "16G"]) == 0
    first, _, head, *rows = capsys.readouterr().out.splitlines()
    assert first == f"{trace}: 3 min 33 s, 2 VMs, a host of 16 GiB"
    assert head.split()[:2] == ["low", "s"]
    assert len(rows) == len(contenders())


def test_profile_of_all_scores_as_the_profile_alone_is_summed_up() -> None:
    trace = read_trace(str(TRACES / "evening.trace"))
    changes = changes_of(trace.header.settings, (), Profile.CAREFUL)
    world = World(trace, changes, draw)
    summed = world.run()
    assert world.scores.low_s == pytest.approx(summed.low_s)
    assert world.scores.seconds == pytest.approx(summed.seconds)
    assert world.scores.gib_minutes == pytest.approx(summed.byte_seconds / GIB / 60, rel=0.02)
    judged = judge_trace(trace, (), lambda: draw, 8192)
    assert judged["careful"] == world.scores


def test_drawn_hosts_are_judged_and_added_up(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "contenders", lambda: [SEED])
    assert main(["judge", "--drawn", "2", "--seed", "3"]) == 0
    first, _, row = capsys.readouterr().out.splitlines()
    assert (first, row.split()[0]) == ("all 2, added up", "seed")
    assert main(["judge", "--drawn", "2", "--seed", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [*told["hosts"]] == ["drawn-1", "drawn-2"]
    assert row.split()[1] == f"{told['sums']['seed']['low_s']:.1f}"


@pytest.mark.parametrize("more", [["--drawn", "2"], ["--trace", "x"], ["--recordings", "x"]])
def test_margins_go_with_standard_hosts_alone(more: list[str], capsys: Output) -> None:
    assert main(["judge", "--margins", *more]) == 2
    told = "balloonctl judge: --margins goes with standard hosts alone\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("number", ["0", "-1", "x", "10000"])
def test_number_of_hosts_that_makes_no_sense_is_told(number: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["judge", f"--drawn={number}"])
    assert caught.value.code == 2
    assert f"'{number}' is no number from 1 to 9999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host-memory", "8G"], "--host-memory goes with --profile all"),
        (["--host-memory", "x", "--profile", "all"], "--host-memory x: 'x' is not a size; "),
        (["--set", "steps=x", "--profile", "all"], "--set steps=x: 'x' is no whole number"),
    ],
)
def test_mistake_is_told_in_a_line(arguments: list[str], told: str, capsys: Output) -> None:
    assert main(["simulate", str(TRACES / "need.trace"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"balloonctl simulate: {told}")
    assert len(err.splitlines()) == 1
