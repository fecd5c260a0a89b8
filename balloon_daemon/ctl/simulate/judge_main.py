"""``balloonctl judge``: each policy on hosts with simulated guests, in one table."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from balloon_daemon.ctl.simulate.contenders import contenders
from balloon_daemon.ctl.simulate.fit import fit
from balloon_daemon.ctl.simulate.judge import Outcomes, judge, sums, table
from balloon_daemon.ctl.simulate.load import Kind
from balloon_daemon.ctl.simulate.off import Off, lines, off
from balloon_daemon.ctl.simulate.recording_file import read_recordings
from balloon_daemon.ctl.simulate.scenario import Scenario
from balloon_daemon.ctl.simulate.scores import Scores
from balloon_daemon.ctl.simulate.scripts import scripts
from balloon_daemon.errors import ConfigError, printable

EXIT_OK, EXIT_USAGE = 0, 2

ByPolicy = Mapping[str, Scores]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``judge``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "judge",
        help="how good the decisions of balloond's profiles and of other rules are",
        description="Lets each profile of balloond, and the rules of other projects, govern the "
        "same hosts, whose guests are simulated, and prints what each host lacked and what each "
        "guest lost. What the model knows and what not is in docs/judgement.md.",
        epilog="Exit status: 0 judged; 2 an option that makes no sense, or a file that is no "
        "recording.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="judge on the guests that were recorded there (*.csv): each takes the place of the "
        "busy guest on each host",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the policies' random jitter (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judges, and prints the results.

    Returns:
        The exit status.
    """
    hosts = scripts()
    if args.recordings is not None:
        return _run_recordings(args, hosts)
    by_host = _judged(hosts, args.seed)
    if args.json:
        print(json.dumps({"hosts": _plain(by_host), "sums": _plain_sums(by_host)}))
        return EXIT_OK
    for host in hosts:
        print(f"{host.name}: {host.about}", *table(by_host[host.name]), "", sep="\n")
    _print_sums(f"all {len(hosts)}, added up", by_host)
    return EXIT_OK


def _run_recordings(args: argparse.Namespace, hosts: Sequence[Scenario]) -> int:
    try:
        recordings = read_recordings(args.recordings)
    except ConfigError as err:
        print(f"balloonctl judge: --recordings {err}", file=sys.stderr, flush=True)
        return EXIT_USAGE
    kinds = {each.name: fit(each) for each in recordings}
    errors = [off(each, kinds[each.name]) for each in recordings]
    by_guest: dict[str, ByPolicy] = {}
    if not args.json:
        print("how far the model is off", *lines(errors), sep="\n", end="\n\n", flush=True)
    for name, kind in kinds.items():
        by_host = _judged(with_guest(hosts, kind), args.seed)
        by_guest[name] = sums(list(by_host.values()))
        if not args.json:
            print(f"{printable(name)}: on {len(hosts)} hosts", *table(by_guest[name]), sep="\n")
            print(flush=True)
    if args.json:
        told = {"errors": [_plain_off(each) for each in errors], "guests": _plain(by_guest)}
        print(json.dumps({**told, "sums": _plain_sums(by_guest)}))
    else:
        _print_sums(f"all {len(kinds)}, added up", by_guest)
    return EXIT_OK


def with_guest(hosts: Sequence[Scenario], kind: Kind) -> list[Scenario]:
    """The hosts with such a guest in the place of each one's busy guest."""
    return [host.with_guest(kind) for host in hosts]


def scores_of(outcomes: Outcomes) -> dict[str, ByPolicy]:
    """The scores alone, by host and policy."""
    return {
        host: {name: outcome.scores for name, outcome in each.items()}
        for host, each in outcomes.items()
    }


def _judged(hosts: Sequence[Scenario], seed: int) -> dict[str, ByPolicy]:
    return scores_of(judge(hosts, contenders(), lambda: Random(seed).random))


def _print_sums(title: str, scores: Mapping[str, ByPolicy]) -> None:
    print(title, *table(sums(list(scores.values()))), sep="\n")


def _plain(scores: Mapping[str, ByPolicy]) -> dict[str, dict[str, object]]:
    return {
        name: {policy: asdict(each) for policy, each in by_policy.items()}
        for name, by_policy in scores.items()
    }


def _plain_sums(scores: Mapping[str, ByPolicy]) -> dict[str, object]:
    return {name: asdict(each) for name, each in sums(list(scores.values())).items()}


def _plain_off(each: Off) -> dict[str, object]:
    return {name: value for name, value in zip(each._fields, each, strict=True)}
