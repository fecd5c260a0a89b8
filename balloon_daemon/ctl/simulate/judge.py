"""Compares sizing policies: runs each on each host, adds the scores up, makes a table. Pure."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add

from balloon_daemon.ctl.simulate.contenders import Contender
from balloon_daemon.ctl.simulate.scenario import Outcome, Scenario, run
from balloon_daemon.ctl.simulate.scores import Scores

Outcomes = Mapping[str, Mapping[str, Outcome]]
"""The outcome of each run, by the scenario's name, then by the policy's name."""


def judge(
    scenarios: Sequence[Scenario],
    policies: Sequence[Contender],
    draws: Callable[[], Callable[[], float]],
) -> dict[str, dict[str, Outcome]]:
    """Lets each policy govern each scenario's host.

    Args:
        scenarios: the hosts.
        policies: the policies.
        draws: makes a source of random draws, the same one for each run.
    """
    return {
        scenario.name: {each.name: run(scenario, each, draws()) for each in policies}
        for scenario in scenarios
    }


def sums(scores: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Each policy's sums over several hosts."""
    return {name: reduce(add, [each[name] for each in scores]) for name in scores[0]}


COLUMNS: dict[str, Callable[[Scores], str]] = {
    "low s": lambda scores: f"{scores.low_s:.1f}",
    "least MiB": lambda scores: f"{scores.least_available_mib:.0f}",
    "unmet GiB s": lambda scores: f"{scores.unmet_gib_s:.1f}",
    "GiB min": lambda scores: f"{scores.gib_minutes:.1f}",
    "need s": lambda scores: f"{scores.need_s:.1f}",
    "stall s": lambda scores: f"{scores.stall_s:.1f}",
    "steps": lambda scores: f"{scores.steps}",
    "rev.": lambda scores: f"{scores.reversals}",
    "OOM": lambda scores: f"{scores.oom_kills}",
}


def table(scores: Mapping[str, Scores]) -> list[str]:
    """The lines of a table: a policy in each."""
    rows = [["", *COLUMNS]]
    rows += [[name, *(said(each) for said in COLUMNS.values())] for name, each in scores.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers]))
    return lines
