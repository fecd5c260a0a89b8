"""``balloonctl judge``: each policy on hosts with simulated guests, in one table."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from random import Random

from balloon_daemon.ctl.simulate.contenders import contenders
from balloon_daemon.ctl.simulate.judge import Outcomes, judge, sums, table
from balloon_daemon.ctl.simulate.scenario import Scenario
from balloon_daemon.ctl.simulate.scores import Scores
from balloon_daemon.ctl.simulate.scripts import scripts

EXIT_OK = 0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``judge``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "judge",
        help="how good the decisions of balloond's profiles and of other rules are",
        description="Lets each profile of balloond, and the rules of other projects, govern the "
        "same hosts, whose guests are simulated, and prints what each host lacked and what each "
        "guest lost. What the model knows and what not is in docs/judgement.md.",
        epilog="Exit status: 0 judged; 2 an option that makes no sense.",
        allow_abbrev=False,
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
    scenarios = scripts()
    outcomes = judge(scenarios, contenders(), lambda: Random(args.seed).random)
    if args.json:
        print(json.dumps(as_json(outcomes)))
    else:
        print("\n".join(as_text(scenarios, outcomes)))
    return EXIT_OK


def as_json(outcomes: Outcomes) -> dict[str, object]:
    """The scores by host and policy, and their sums."""
    by_host = _scores(outcomes)
    return {
        "hosts": {name: _plain(scores) for name, scores in by_host.items()},
        "sums": _plain(sums(list(by_host.values()))),
    }


def as_text(scenarios: list[Scenario], outcomes: Outcomes) -> list[str]:
    """A table for each host, and one of the sums."""
    by_host, lines = _scores(outcomes), list[str]()
    for scenario in scenarios:
        lines += [f"{scenario.name}: {scenario.about}", *table(by_host[scenario.name]), ""]
    return [*lines, f"all {len(by_host)}, added up", *table(sums(list(by_host.values())))]


def _scores(outcomes: Outcomes) -> dict[str, dict[str, Scores]]:
    return {
        host: {name: outcome.scores for name, outcome in each.items()}
        for host, each in outcomes.items()
    }


def _plain(scores: Mapping[str, Scores]) -> dict[str, object]:
    return {name: asdict(each) for name, each in scores.items()}
