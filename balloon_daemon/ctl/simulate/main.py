"""``balloonctl simulate``: replays a trace, as it was recorded and under other settings."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from time import gmtime, strftime

from balloon_daemon.ctl.charts.needed import check_picture
from balloon_daemon.ctl.simulate.course import course_of
from balloon_daemon.ctl.simulate.everyone import judge_trace, least_host_mib
from balloon_daemon.ctl.simulate.judge import table
from balloon_daemon.ctl.simulate.overrides import NAMES, changes_of
from balloon_daemon.ctl.simulate.replay import Replayed, replay
from balloon_daemon.ctl.simulate.tally import Sums
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.ctl.simulate.world import Changes, World
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.records.trace import Trace, encode_header
from balloon_daemon.sizing.host_events import Added, Found, Restored
from balloon_daemon.sizing.vm_settings import Profile
from balloon_daemon.units import MIB, format_size, parse_memory_size

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

ALL = "all"
"""The value of ``--profile`` that judges every policy."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``simulate``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "simulate",
        help="what other settings would have done on a recorded host",
        description="Replays a trace, which balloond --record FILE wrote, through the daemon's "
        "own policy: as it was recorded, and, with --set or --profile, as it might have been. "
        "What it assumes of host and guests then is in docs/simulate.md.",
        epilog=f"NAME is one of {', '.join(NAMES)}; a time is written like 500ms, 2s or 1m, a "
        "size like 512M. Exit status: 0 replayed; 1 the picture cannot be written; 2 an option "
        "that makes no sense, or a file that is no trace.",
        allow_abbrev=False,
    )
    parser.add_argument("trace", metavar="TRACE", help="the file that balloond --record wrote")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value of a setting, for all VMs; may be repeated",
    )
    parser.add_argument(
        "--profile",
        choices=[*(profile.value for profile in Profile), ALL],
        help="another profile, for all VMs; all: each profile, and other projects' rules, in one "
        "table (docs/judgement.md)",
    )
    parser.add_argument(
        "--host-memory",
        metavar="SIZE",
        help="all memory of the host, for other projects' rules, which go by it (default: what "
        "was available at most, and all VMs)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the random jitter, where settings are changed (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw host and VMs as they were recorded, too",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replays a trace and prints the results.

    Returns:
        The exit status.
    """
    try:
        if args.plot is not None:
            check_picture("--plot", args.plot)
        host_mib = _host_mib(args)
        trace = read_trace(args.trace)
        if args.profile == ALL:
            _judge(trace, args, host_mib or least_host_mib(trace))
            return EXIT_OK if args.plot is None else _draw(trace, args.plot)
        profile = None if args.profile is None else Profile(args.profile)
        changes = changes_of(trace.header.settings, args.assignments, profile)
        replayed = replay(trace)
        columns = {"recorded": replayed.sums}
        if args.assignments or profile is not None:
            same = Changes(trace.header.settings)
            columns["modelled"] = World(trace, same, Random(args.seed).random).run()
            columns["changed"] = World(trace, changes, Random(args.seed).random).run()
    except ConfigError as err:
        print(f"balloonctl simulate: {err}", file=sys.stderr, flush=True)
        return EXIT_USAGE
    if args.json:
        _print_json(trace, replayed, columns)
    else:
        named = [*args.assignments, *([] if profile is None else [f"profile={profile.value}"])]
        _print_text(trace, replayed, columns, named)
    return EXIT_OK if args.plot is None else _draw(trace, args.plot)


def _host_mib(args: argparse.Namespace) -> int | None:
    if args.host_memory is None:
        return None
    if args.profile != ALL:
        raise ConfigError("--host-memory goes with --profile all")
    try:
        return parse_memory_size(args.host_memory) // MIB
    except ConfigError as err:
        raise ConfigError(f"--host-memory {printable(args.host_memory)}: {err}") from err


def _judge(trace: Trace, args: argparse.Namespace, host_mib: int) -> None:
    scores = judge_trace(trace, args.assignments, lambda: Random(args.seed).random, host_mib)
    if args.json:
        policies = {name: asdict(each) for name, each in scores.items()}
        told = {"trace": trace.name, "vms": _vms(trace), "host_mib": host_mib}
        print(json.dumps({**told, "policies": policies}))
        return
    length = _time(next(iter(scores.values())).seconds)
    host = format_size(host_mib * MIB)
    print(f"{trace.name}: {length}, {_count(len(_vms(trace)), 'VM')}, a host of {host}")
    for name in args.assignments:
        print(f"changed: {printable(name)}")
    print("", *table(scores), sep="\n")


def _draw(trace: Trace, path: Path) -> int:
    # Imported here: matplotlib takes half a second.
    from balloon_daemon.ctl.charts.each import draw_each

    try:
        draw_each(course_of(trace), f"{Path(trace.name).name}: the host and its VMs", path)
    except OSError as err:
        why = f"{printable(str(path))}: {err.strerror or err}"
        print(f"balloonctl simulate: {why}", file=sys.stderr, flush=True)
        return EXIT_FAILURE
    return EXIT_OK


def _print_json(trace: Trace, replayed: Replayed, columns: dict[str, Sums]) -> None:
    content: dict[str, object] = {
        "trace": trace.name,
        "vms": _vms(trace),
        **json.loads(encode_header(trace.header)),
        "entries": len(trace.entries),
        "is_cut": trace.is_cut,
        "lost": replayed.lost,
        "decisions": replayed.recorded,
        "first_other_line": replayed.first_other,
        **{name: asdict(sums) for name, sums in columns.items()},
    }
    print(json.dumps(content))


def _print_text(
    trace: Trace, replayed: Replayed, columns: dict[str, Sums], named: list[str]
) -> None:
    vms = _vms(trace)
    began = strftime("%Y-%m-%d %H:%M:%S", gmtime(trace.header.began_s))
    length = _time(replayed.sums.seconds)
    print(f"{trace.name}: {length} from {began} UTC on, {_count(len(vms), 'VM')}")
    print(f"replayed: {_agreement(replayed)}")
    if trace.is_cut:
        print("its last line is incomplete, and was left out")
    for name in named:
        print(f"changed: {printable(name)}")
    print()
    rows = [[label, *map(said, columns.values())] for label, said in _ROWS.items()]
    if len(columns) > 1:
        rows.insert(0, ["", *columns])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([label.ljust(widths[0]), *numbers]))


def _agreement(replayed: Replayed) -> str:
    decisions = _count(replayed.recorded, "recorded decision")
    if replayed.lost:
        return f"{decisions}; {_count(replayed.lost, 'entry', 'entries')} could not be recorded"
    if replayed.first_other is None:
        return f"{decisions}, and this version decides the same"
    said = f"{decisions}, and this version decides otherwise from line {replayed.first_other} on"
    if replayed.midway:
        said += (
            "\n(balloond ran before the recording began: what guests did in the seconds before is "
            "not in it)"
        )
    return said


def _vms(trace: Trace) -> list[str]:
    added = (e.event.vm for e in trace.entries if isinstance(e.event, Added | Restored | Found))
    return [printable(vm.name) for vm in dict.fromkeys(added)]


_ROWS: dict[str, Callable[[Sums], str]] = {
    "time below the margin": lambda sums: _time(sums.low_s),
    "most below the margin": lambda sums: format_size(sums.most_missing_mib * MIB),
    "time without figures": lambda sums: _time(sums.unknown_s),
    "memory taken x time": lambda sums: f"{format_size(int(sums.byte_seconds / 3600))} h",
    "most taken at once": lambda sums: format_size(sums.peak_bytes),
    "steps up": lambda sums: f"{sums.steps_up}",
    "steps down": lambda sums: f"{sums.steps_down}",
    "reversals": lambda sums: f"{sums.reversals}",
    "guests found in need": lambda sums: f"{sums.in_need}",
    "balloons found stalled": lambda sums: f"{sums.stalled}",
}


def _count(number: int, what: str, more: str = "") -> str:
    return f"{number:,} {what if number == 1 else more or f'{what}s'}"


def _time(seconds: float) -> str:
    """A time for people: ``12.3 s``, ``4 min 5 s``, ``3 h 20 min``, ``6 d 2 h``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit_s, unit, below_s, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // below_s} {below}"
    return f"{whole // 60} min {whole % 60} s"
