"""The tables of ``docs/judgement.md``, which ``python -m tests.harness.judgement`` writes.

Each stands between the comments ``<!-- NAME -->`` and ``<!-- end of NAME -->``;
``tests/unit/test_judgement.py`` fails where page and policies differ.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from balloon_daemon.ctl.simulate.fit import fit
from balloon_daemon.ctl.simulate.judge import sums, table
from balloon_daemon.ctl.simulate.judging import Judged, judge_drawn, judge_hosts, judge_margins
from balloon_daemon.ctl.simulate.loads import KINDS
from balloon_daemon.ctl.simulate.off import crossed, lines, off
from balloon_daemon.ctl.simulate.recording_file import read_recordings
from balloon_daemon.ctl.simulate.write_loads import HELD_OUT
from balloon_daemon.sizing.vm_settings import Profile
from tests.harness.recordings import RECORDINGS

PAGE = Path(__file__).parents[2] / "docs" / "judgement.md"
DRAWN = 10
WORSE = (
    ("seconds below the margin", "low_s"),
    ("unmet GiB s", "unmet_gib_s"),
    ("GiB minutes", "gib_minutes"),
    ("seconds in need", "need_s"),
    ("seconds lost", "stall_s"),
    ("steps", "steps"),
)
TRACES = sorted((PAGE.parent / "traces").glob("*.trace"))


def tables(judged: Judged) -> dict[str, Sequence[str]]:
    """The lines of each table, by its name."""
    recordings = read_recordings(RECORDINGS)
    fitted = [each for each in recordings if each.name in KINDS]
    held_out = [each for each in recordings if each.name.startswith(HELD_OUT)]
    by_host = {
        host: {name: f"{each.low_s:.0f}/{each.need_s:.0f}" for name, each in scores.items()}
        for host, scores in judged.scores.items()
    }
    return {
        "sums": _block(table(sums(list(judged.scores.values())))),
        "hosts": [
            "| host | what happens |",
            "|---|---|",
            *(f"| `{name}` | {about} |" for name, about in judged.about.items()),
        ],
        "by host": _block(_spread("low/need s", by_host)),
        "drawn": _block(table(sums(list(judge_drawn(DRAWN, 0).values())))),
        "goals": _goals(judged),
        "margins": _block(table(judge_margins(0))),
        "own": _block(lines([off(each, KINDS[each.name]) for each in fitted])),
        "held out": _block(lines([off(each, fit(each)) for each in held_out])),
        "crossed": _block(lines(crossed(recordings, KINDS))),
    }


def with_tables(page: str, found: Mapping[str, Sequence[str]]) -> str:
    """The page with these tables in the places of those that it has."""
    for name, rows in found.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        assert page.count(begin) == page.count(end) == 1, name
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = "".join([before, begin, "\n", "\n".join(rows), "\n\n", end, after])
    return page


def _goals(judged: Judged) -> list[str]:
    """What was wanted of ``adaptive``, and what it does: on the standard hosts, and on all."""
    standard = sums([judged.scores[host] for host in judged.hosts])
    everywhere = sums(list(judged.scores.values()))
    rows = ["| of `adaptive` | wanted | standard hosts | all hosts |", "|---|---|---|---|"]
    for what, name, wanted in (
        ("seconds below the margin, of `seed`'s", "low_s", "0.1"),
        ("GiB minutes, of `seed`'s", "gib_minutes", "1"),
        ("seconds in need, of `seed`'s", "need_s", "0.25"),
    ):
        shares = (
            getattr(each["adaptive"], name) / getattr(each["seed"], name)
            for each in (standard, everywhere)
        )
        rows.append(f"| {what} | {wanted} at most | " + " | ".join(map("{:.2f}".format, shares)))
        rows[-1] += " |"
    turns = (each["adaptive"].reversals for each in (standard, everywhere))
    rows.append("| reversals | 0 | " + " | ".join(map(str, turns)) + " |")
    ours = {profile.value for profile in Profile}
    for what, name in WORSE:
        cells = []
        for each in (standard, everywhere):
            peers = {peer: getattr(scores, name) for peer, scores in each.items()}
            best = min(
                (peer for peer in peers if peer not in ours | {"none"}), key=peers.__getitem__
            )
            cells.append(f"{peers['adaptive']:.1f}; {best} {peers[best]:.1f}")
        rows.append(f"| {what}; the best peer | 1.1 times at most | " + " | ".join(cells) + " |")
    return rows


def _spread(corner: str, cells: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A table with a line for each policy and a column for each host."""
    hosts = [host.removesuffix(".trace") for host in cells]
    policies = list(next(iter(cells.values())))
    rows = [[corner, *hosts]]
    rows += [[policy, *(cells[host][policy] for host in cells)] for policy in policies]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [first.ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        )
        for first, *rest in rows
    ]


def _block(rows: Sequence[str]) -> list[str]:
    return [f"    {row}" for row in rows]


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(), tables(judge_hosts(TRACES, 0))))
