"""Judges what a command line asks for, and prints it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from balloon_daemon.ctl.simulate.contenders import contenders
from balloon_daemon.ctl.simulate.everyone import judge_trace, least_host_mib
from balloon_daemon.ctl.simulate.fit import fit
from balloon_daemon.ctl.simulate.judge import judge, sums, table
from balloon_daemon.ctl.simulate.off import lines, off
from balloon_daemon.ctl.simulate.recording_file import read_recordings
from balloon_daemon.ctl.simulate.scenario import Scenario
from balloon_daemon.ctl.simulate.scores import Scores
from balloon_daemon.ctl.simulate.scripts import scripts
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.errors import printable

ByPolicy = Mapping[str, Scores]


def judge_hosts(traces: Iterable[Path], seed: int) -> tuple[dict[str, str], dict[str, ByPolicy]]:
    """Judges on the standard hosts and on recorded ones.

    Args:
        traces: what balloond --record wrote.
        seed: of the policies' random draws.

    Returns:
        What each host is, and its scores, both by its name.

    Raises:
        ConfigError: a trace cannot be read.
    """
    recorded = [read_trace(str(path)) for path in traces]
    hosts = scripts()
    about, scores = {host.name: host.about for host in hosts}, _judged(hosts, seed)
    for trace in recorded:
        name = printable(Path(trace.name).name)
        about[name] = "recorded"
        host_mib = least_host_mib(trace)
        scores[name] = judge_trace(trace, (), lambda: Random(seed).random, host_mib)
    return about, scores


def print_hosts(traces: Iterable[Path], seed: int, *, as_json: bool) -> None:
    """Prints the scores of the standard hosts and of recorded ones.

    Raises:
        ConfigError: a trace cannot be read.
    """
    about, scores = judge_hosts(traces, seed)
    if as_json:
        print(json.dumps({"hosts": _plain(scores), "sums": _plain_sums(scores)}))
        return
    for name, by_policy in scores.items():
        print(f"{name}: {about[name]}", *table(by_policy), "", sep="\n")
    _print_sums(scores)


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
        by_host = _judged([host.with_guest(kind) for host in hosts], seed)
        by_guest[name] = sums(list(by_host.values()))
        if not as_json:
            print(f"{printable(name)}: on {len(hosts)} hosts", *table(by_guest[name]), sep="\n")
            print(flush=True)
    if as_json:
        told = {"errors": [each._asdict() for each in errors], "guests": _plain(by_guest)}
        print(json.dumps({**told, "sums": _plain_sums(by_guest)}))
    else:
        _print_sums(by_guest)


def _judged(hosts: Sequence[Scenario], seed: int) -> dict[str, ByPolicy]:
    outcomes = judge(hosts, contenders(), lambda: Random(seed).random)
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
