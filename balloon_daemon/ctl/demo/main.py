"""``balloonctl demo``: a host that runs low, a guest that gives memory back, and a live chart."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from balloon_daemon.ctl.charts.choice import make_chart
from balloon_daemon.ctl.charts.needed import check_picture, how_to_install
from balloon_daemon.ctl.demo.play import Figures, Performance
from balloon_daemon.ctl.demo.processes import DemoError
from balloon_daemon.ctl.demo.story import DEFAULT_SPEED, MAX_SPEED, MIN_SPEED, Story, plan
from balloon_daemon.errors import ConfigError
from balloon_daemon.linux.meminfo import host_memory
from balloon_daemon.units import GIB, format_size, parse_memory_size

NEEDED_BYTES = GIB
INTERRUPTED = 130
"""128 + SIGINT, as shells return it."""

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``demo``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "demo",
        help="a host that runs low, a guest that gives memory back, and a live chart",
        description="Starts a real balloond and a fake guest, lets a pretended host run low on "
        "memory, and shows how the guest gives memory back and gets it again. Takes about 30 "
        "seconds and up to 1 GiB of memory; needs no root and no virtual machine.",
        epilog="exit status: 0 the host was relieved by pages really freed, every page that the "
        "guest kept is intact, and the balloon is back at 0; 1 not so, and a line says why; "
        "2 an option that makes no sense; 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--vm-mem",
        default="4G",
        metavar="SIZE",
        help="the guest's memory, 500M to 16G, most of it never touched (default: %(default)s)",
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=DEFAULT_SPEED,
        metavar="N",
        help=f"the policy's timers run N times faster than ChromeOS's, {MIN_SPEED:g} to "
        f"{MAX_SPEED:g} (default: %(default)g)",
    )
    parser.add_argument(
        "--json", action="store_true", help="end with the figures, one JSON object on one line"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what happened")
    parser.add_argument(
        "--plain", action="store_true", help="a line a second instead of the live chart"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plays the demonstration.

    Returns:
        The exit status.
    """
    try:
        story = plan(parse_memory_size(args.vm_mem), args.speed)
        if args.plot is not None:
            check_picture("--plot", args.plot)
    except ConfigError as err:
        _complain(str(err))
        return 2
    if find_spec("numpy") is None:
        _complain(f"it needs numpy, and draws with rich: {how_to_install()}")
        return 2
    if host_memory().available_bytes < NEEDED_BYTES:
        _complain(f"it takes up to {format_size(NEEDED_BYTES)} of memory, and less is available")
        return 1
    # SIGTERM and SIGHUP raise KeyboardInterrupt too, so that the demonstration cleans up as it
    # does after SIGINT.
    before = {number: signal.signal(number, _interrupt) for number in _ENDINGS}
    try:
        return _perform(story, args)
    except KeyboardInterrupt:
        _complain("interrupted; nothing of it is left")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output has gone. Without the dup2, Python would flush into the
        # closed pipe once more at its exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as err:
        _complain(str(err))
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _perform(story: Story, args: argparse.Namespace) -> int:
    directory = Path(tempfile.mkdtemp(prefix="balloond-demo-"))
    keep = False
    try:
        with make_chart(story, plain=args.plain or not sys.stdout.isatty()) as chart:
            performance = Performance(story, directory, chart.show)
            failure = _play(performance)
        keep = failure is not None
        figures = performance.figures(ok=failure is None)
        if failure is None and args.plot is not None:
            failure = _draw(performance, args.plot)
            figures.ok = failure is None
        _conclude(figures)
        if failure is not None:
            _complain(failure)
            if keep:
                print(f"{performance.log_tail}\n(all of it: {directory})", file=sys.stderr)
        if args.json:
            print(json.dumps(asdict(figures)), flush=True)
        return 0 if figures.ok else 1
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _play(performance: Performance) -> str | None:
    """Plays the demonstration. Returns what went wrong; None: nothing."""
    try:
        performance.play()
    except BrokenPipeError:
        raise
    except (DemoError, OSError) as err:
        return str(err)
    return None


def _draw(performance: Performance, path: Path) -> str | None:
    # Imported here: matplotlib takes half a second, and --plot alone needs it.
    from balloon_daemon.ctl.charts.picture import not_saved
    from balloon_daemon.ctl.charts.plot import draw

    try:
        draw(performance.story, performance.samples, path)
    except OSError as err:
        return not_saved(path, err)
    print(f"drawn in {path}")
    return None


def _conclude(figures: Figures) -> None:
    verdict = "the host was relieved, no page was lost" if figures.ok else "it failed"
    print(
        f"{verdict}: {format_size(figures.freed_bytes)} freed by a balloon of up to "
        f"{format_size(figures.peak_balloon_bytes)}, {figures.low_memory_events} times low, "
        f"relieved within {figures.seconds_to_relief:.2f} s, {figures.pages_checked:,} pages "
        f"checked, {figures.pages_corrupt:,} corrupt, balloon now "
        f"{format_size(figures.final_balloon_bytes)}",
        flush=True,
    )


def _complain(text: str) -> None:
    print(f"balloonctl demo: {text}", file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
