"""Runs the comparison of policies that a command line asks for, and prints the scores."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import NamedTuple

from balloon_daemon.ctl.simulate.contenders import contenders, trade_off
from balloon_daemon.ctl.simulate.drawn import drawn
from balloon_daemon.ctl.simulate.everyone import judge_trace, least_host_mib
from balloon_daemon.ctl.simulate.fit import fit
from balloon_daemon.ctl.simulate.judge import Outcomes, judge, sums, table
from balloon_daemon.ctl.simulate.off import lines, off
from balloon_daemon.ctl.simulate.recording_file import read_recordings
from balloon_daemon.ctl.simulate.scenario import Moment, Scenario
from balloon_daemon.ctl.simulate.scores import Scores
from balloon_daemon.ctl.simulate.scripts import scripts
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.errors import printable

ByPolicy = Mapping[str, Scores]


class Judged(NamedTuple):
    """How policies did on several hosts. Each mapping is by the host's name.

    Attributes:
        hosts: the standard hosts.
        about: each host in a line of text.
        scores: for each host, each policy's scores.
        courses: for each standard host and each policy, the host's memory second by second.
    """

    hosts: Mapping[str, Scenario]
    about: Mapping[str, str]
    scores: Mapping[str, ByPolicy]
    courses: Mapping[str, Mapping[str, Sequence[Moment]]]


def judge_hosts(traces: Iterable[Path], seed: int) -> Judged:
    """Judges on the standard hosts and on recorded ones.

    Args:
        traces: files that ``balloond --record`` wrote.
        seed: the seed of the policies' random draws.

    Raises:
        ConfigError: a trace cannot be read.
    """
    recorded = [read_trace(str(path)) for path in traces]
    hosts = {host.name: host for host in scripts()}
    outcomes = judge(list(hosts.values()), contenders(), lambda: Random(seed).random)
    about, scores = {host.name: host.about for host in hosts.values()}, _scores(outcomes)
    for trace in recorded:
        name = printable(Path(trace.name).name)
        about[name] = "recorded"
        host_mib = least_host_mib(trace)
        scores[name] = judge_trace(trace, (), lambda: Random(seed).random, host_mib)
    courses = {
        host: {name: outcome.course for name, outcome in each.items()}
        for host, each in outcomes.items()
    }
    return Judged(hosts, about, scores, courses)


def print_hosts(judged: Judged, *, as_json: bool) -> None:
    """Prints the scores of hosts."""
    scores = judged.scores
    if as_json:
        print(json.dumps({"hosts": _plain(scores), "sums": _plain_sums(scores)}))
        return
    for name, by_policy in scores.items():
        print(f"{name}: {judged.about[name]}", *table(by_policy), "", sep="\n")
    _print_sums(scores)


def judge_margins(seed: int) -> dict[str, Scores]:
    """The scores of balloond's profiles with larger margins, added up over the standard hosts."""
    outcomes = judge(scripts(), trade_off(), lambda: Random(seed).random)
    return sums(list(_scores(outcomes).values()))


def judge_drawn(number: int, seed: int) -> dict[str, ByPolicy]:
    """The scores on randomly drawn hosts (``drawn``), by the hosts' names."""
    hosts = drawn(number, Random(seed).random)
    return _scores(judge(hosts, contenders(), lambda: Random(seed).random))


def print_drawn(number: int, seed: int, *, as_json: bool) -> None:
    """Prints the scores on randomly drawn hosts."""
    scores = judge_drawn(number, seed)
    if as_json:
        print(json.dumps({"hosts": _plain(scores), "sums": _plain_sums(scores)}))
    else:
        _print_sums(scores)


def print_margins(seed: int, *, as_json: bool) -> None:
    """Prints the scores of balloond's profiles with larger margins."""
    scores = judge_margins(seed)
    if as_json:
        print(json.dumps({name: asdict(each) for name, each in scores.items()}))
    else:
        print(*table(scores), sep="\n")


def print_recordings(directory: Path, seed: int, *, as_json: bool) -> None:
    """Prints how far the model is off for each recorded guest, and the scores of the standard
    hosts with it in the place of their busy guest.

    Raises:
        ConfigError: the directory has no recording, or one cannot be read.
    """
    hosts = scripts()
    recordings = read_recordings(directory)
    kinds = {each.name: fit(each) for each in recordings}
    errors = [off(each, kinds[each.name]) for each in recordings]
    by_guest: dict[str, ByPolicy] = {}
    if not as_json:
        print("how far the model is off", *lines(errors), sep="\n", end="\n\n", flush=True)
    for name, kind in kinds.items():
        with_it = [host.with_guest(kind) for host in hosts]
        outcomes = judge(with_it, contenders(), lambda: Random(seed).random)
        by_guest[name] = sums(list(_scores(outcomes).values()))
        if not as_json:
            print(f"{printable(name)}: on {len(hosts)} hosts", *table(by_guest[name]), sep="\n")
            print(flush=True)
    if as_json:
        told = {"errors": [each._asdict() for each in errors], "guests": _plain(by_guest)}
        print(json.dumps({**told, "sums": _plain_sums(by_guest)}))
    else:
        _print_sums(by_guest)


def _scores(outcomes: Outcomes) -> dict[str, ByPolicy]:
    return {
        host: {name: outcome.scores for name, outcome in each.items()}
        for host, each in outcomes.items()
    }


def _print_sums(scores: Mapping[str, ByPolicy]) -> None:
    print(f"all {len(scores)}, added up", *table(sums(list(scores.values()))), sep="\n")


def _plain(scores: Mapping[str, ByPolicy]) -> dict[str, dict[str, object]]:
    return {
        name: {policy: asdict(each) for policy, each in by_policy.items()}
        for name, by_policy in scores.items()
    }


def _plain_sums(scores: Mapping[str, ByPolicy]) -> dict[str, object]:
    return {name: asdict(each) for name, each in sums(list(scores.values())).items()}
