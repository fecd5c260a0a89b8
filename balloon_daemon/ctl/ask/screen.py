"""What ``balloonctl top`` shows: the host, its VMs and the decisions, with sparklines. Pure."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from balloon_daemon import __version__
from balloon_daemon.ctl.ask.tables import LEAST_NAME
from balloon_daemon.ctl.ask.wording import brief_size, host_line, host_notes, vm_notes, wrapped
from balloon_daemon.errors import printable
from balloon_daemon.units import format_size

BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
"""The characters of a sparkline's cell by height, from empty to full; the second string is for
terminals whose encoding lacks the block characters."""

PLAIN, BOLD, DIM, HEAD = "", "1", "2", "7"
RED, GREEN, YELLOW = "1;31", "32", "33"
"""Styles: the parameters of a terminal's SGR sequence (ECMA-48, 8.3.117)."""

CELL_S = 5.0
"""The time that a cell of a sparkline stands for."""

MOST_CELLS, LEAST_CELLS = 120, 8
KEPT_DECISIONS = 50

Line = list[tuple[str, str]]
"""A line of the screen: texts, each with its style."""

_HEADS = ("VM", "MEMORY", "BALLOON", "TARGET", "MOST", "GUEST HAS", "RETURNED")
_SIZES = (
    "memory_bytes",
    "balloon_bytes",
    "target_bytes",
    "max_balloon_bytes",
    "guest_available_bytes",
    "returned_bytes",
)


class _Decision(NamedTuple):
    at_s: float
    vm: str
    reason: str
    level: int
    message: str


class Seen:
    """The parts of all statuses received so far that the screen shows.

    Args:
        cell_s: the time that a cell of a sparkline stands for.
    """

    def __init__(self, cell_s: float) -> None:
        self.cell_s = cell_s
        self.status: dict[str, Any] = {}
        self.decisions: list[_Decision] = []
        """The newest first."""
        self._now = 0
        self._host: dict[int, tuple[int, bool]] = {}
        self._balloons: dict[str, dict[int, int]] = {}

    def take(self, status: dict[str, Any], at_s: float) -> None:
        """Adds a status that was received.

        Args:
            status: the answer to ``GET /v1/status``.
            at_s: when it came, in seconds since the epoch.
        """
        self.status = status
        self._now = int(at_s // self.cell_s)
        host = status["host"]
        if host["available_mib"] is not None:
            # Low memory may last for less than a cell's time: keep each cell's least available
            # memory.
            now = (host["available_mib"], host["low"])
            self._host[self._now] = min(now, self._host.get(self._now, now))
        names = [vm["name"] for vm in status["vms"]]
        self._balloons = {name: self._balloons.get(name, {}) for name in names}
        for vm in status["vms"]:
            self._balloons[vm["name"]][self._now] = vm["balloon_bytes"]
        for balloon in self._balloons.values():
            _forget(balloon, self._now)
        _forget(self._host, self._now)
        for vm in status["vms"]:
            if (last := vm["last_decision"]) is not None:
                self._take_decision(vm["name"], last, at_s - last["age_s"])

    def _take_decision(self, vm: str, told: dict[str, Any], at_s: float) -> None:
        new = _Decision(at_s, vm, told["reason"], told["balloon_level"], told["message"])
        before = next((other for other in self.decisions if other.vm == vm), None)
        # The status repeats this decision, or the policy has made it again because the host is
        # still low: show only the newest of equal decisions.
        if before is not None and before[1:4] == new[1:4]:
            self.decisions.remove(before)
        self.decisions = sorted([new, *self.decisions], reverse=True)[:KEPT_DECISIONS]

    def host_cells(self, count: int) -> list[tuple[int, bool] | None]:
        """For each of the last ``count`` cells: what the host had available, in MiB, and whether
        it was low; the newest last."""
        return [self._host.get(self._now - back) for back in range(count - 1, -1, -1)]

    def balloon_cells(self, vm: str, count: int) -> list[int | None]:
        """A VM's balloon in each of the last ``count`` cells, in bytes; the newest last."""
        trail = self._balloons[vm]
        return [trail.get(self._now - back) for back in range(count - 1, -1, -1)]


def _forget(trail: dict[int, Any], now: int) -> None:
    for cell in [cell for cell in trail if cell <= now - MOST_CELLS]:
        del trail[cell]


def spark(values: Iterable[int | None], top: int, heights: str) -> str:
    """A sparkline: a character for each value, a space where there is none.

    Args:
        values: numbers of 0 or more; None: unknown.
        top: the value of the full height.
        heights: ``BLOCKS`` or ``ASCII``.
    """
    most = len(heights) - 1
    # A value above 0 has a height of at least 1, so that it can be seen.
    return "".join(
        heights[min(most, max(1, round(value / top * most)))] if value and top else heights[0]
        for value in values
    )


def screen(
    seen: Seen, columns: int, rows: int, *, heights: str = BLOCKS, trouble: str = ""
) -> list[Line]:
    """The lines of the screen, from its top.

    Args:
        seen: the statuses so far, one at least.
        columns: the terminal's width.
        rows: its height.
        heights: the characters of sparklines.
        trouble: why there is no newer status; "": there is one.
    """
    vms = seen.status["vms"]
    lines = [_title(vms, columns), *_host(seen, columns, heights)]
    if trouble:
        lines += [[(line, RED)] for line in wrapped([trouble], columns)]
    lines.append([])
    below = _below(vms, seen.status["not_driven"], columns)
    # The table of VMs gets at least half of the remaining rows, and all that the lines below it do
    # not need.
    room = max((rows - len(lines)) // 2, rows - len(lines) - len(below) - 4, 2)
    lines += _table(seen, columns, room, heights) if vms else [[("no VM is driven", PLAIN)]]
    lines += below
    decisions = _decisions(seen.decisions, columns)
    if decisions and rows - len(lines) >= 3:
        lines += [[], [("Decisions", BOLD)], *decisions[: rows - len(lines) - 2]]
    return [_cut(line, columns) for line in lines[:rows]]


def _title(vms: Sequence[dict[str, Any]], columns: int) -> Line:
    taken = sum(vm["balloon_bytes"] or 0 for vm in vms)
    count = "1 VM" if len(vms) == 1 else f"{len(vms)} VMs"
    left = f" balloonctl {__version__}   {count}, {format_size(taken)} in balloons"
    return [(left.ljust(columns - 9) + "q quits  ", HEAD)]


def _host(seen: Seen, columns: int, heights: str) -> list[Line]:
    host = seen.status["host"]
    style = RED if host["low"] else PLAIN
    lines: list[Line] = [
        [(line, style)] for line in wrapped([f"Host: {host_line(host)}"], columns)
    ]
    lines += [[(line, YELLOW)] for line in wrapped(host_notes(host), columns)]
    if host["available_mib"] is None:
        return lines
    label = "available "
    count = min(columns - len(label) - 1, MOST_CELLS)
    cells = seen.host_cells(count)
    top = max(cell[0] for cell in cells if cell is not None)
    graph: Line = []
    for cell in cells:
        if cell is None:
            graph.append((heights[0], PLAIN))
        else:
            # Show a host with no available memory at height 1: it is low, and that must be seen.
            graph.append((spark([max(cell[0], 1)], top, heights), RED if cell[1] else GREEN))
    return [*lines, [(label, DIM), *graph]]


def _table(seen: Seen, columns: int, room: int, heights: str) -> list[Line]:
    vms = sorted(seen.status["vms"], key=lambda vm: (-(vm["balloon_bytes"] or 0), vm["name"]))
    shown = vms if len(vms) < room else vms[: room - 2]
    cells = [[printable(vm["name"]), *(brief_size(vm[size]) for size in _SIZES)] for vm in shown]
    widths = [max(map(len, column)) for column in zip(_HEADS, *cells, strict=True)]
    others = sum(widths[1:]) + 2 * len(widths)
    widths[0] = max(min(widths[0], columns - others - LEAST_CELLS), LEAST_NAME)
    count = min(max(columns - others - widths[0], 0), MOST_CELLS)
    span_s = count * seen.cell_s
    span = f"LAST {span_s:.0f} S" if span_s < 120 else f"LAST {span_s / 60:.0f} MIN"
    heading = _row(_HEADS, widths) + (f"  {span:>{count}}" if count >= len(span) else "")
    lines: list[Line] = [[(heading, BOLD)]]
    for vm, row in zip(shown, cells, strict=True):
        graph = spark(seen.balloon_cells(vm["name"], count), vm["max_balloon_bytes"] or 0, heights)
        lines.append([(_row(row, widths), PLAIN), ("  " + graph, YELLOW)])
    if len(shown) < len(vms):
        lines.append([(f"… and {len(vms) - len(shown)} more, of smaller balloons", DIM)])
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    name = cells[0] if len(cells[0]) <= widths[0] else f"{cells[0][: widths[0] - 1]}…"
    sizes = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([name.ljust(widths[0]), *sizes])


def _below(
    vms: Sequence[dict[str, Any]], undriven: Sequence[dict[str, Any]], columns: int
) -> list[Line]:
    notes = [f"{printable(vm['name'])}: {note}" for vm in vms for note in vm_notes(vm)]
    if undriven:
        notes.append(f"not driven: {len(undriven)}; balloonctl status says why")
    return [[], *([(line, YELLOW)] for line in wrapped(notes, columns))] if notes else []


def _decisions(decisions: Iterable[_Decision], columns: int) -> list[Line]:
    lines: list[Line] = []
    for at_s, vm, _, _, message in decisions:
        when = time.strftime("%H:%M:%S", time.localtime(at_s))
        first, *rest = wrapped([f"{when} {printable(vm)}: {printable(message)}"], columns)
        lines.append([(first[:8], DIM), (first[8:], PLAIN)])
        lines += [[(line, PLAIN)] for line in rest]
    return lines


def _cut(line: Line, columns: int) -> Line:
    cut: Line = []
    for text, style in line:
        cut.append((text[:columns], style))
        columns -= len(cut[-1][0])
    return cut
