"""The demonstration's live chart: the same two pictures as ``plot.py``, in a terminal's cells.

Each cell is two pixels high, an upper and a lower half block in two colours. rich keeps the chart
in its place and knows what colours the terminal can show; it gets no thread of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from balloon_daemon.ctl.demo.host import Sample
from balloon_daemon.ctl.demo.story import MARGIN_BYTES, Story, introduction
from balloon_daemon.units import MIB

LOAD = "#8b919c"
GUEST = "#3f7fca"
BALLOON = "#e39a2d"
MARGIN = "#e0443b"

AXIS_CELLS = 6
LEGEND_CELLS = 28
MIN_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Column:
    """One column of cells: a short time, represented by its last sample."""

    sample: Sample
    was_low: bool
    """Whether the host was low on memory at any moment of that time."""


def columns_of(samples: Sequence[Sample], count: int, span_s: float) -> list[Column | None]:
    """Sorts samples into columns of equal time.

    Args:
        samples: in order of time.
        count: how many columns.
        span_s: the time that all columns together represent, in seconds.

    Returns:
        One entry for each column; None where there is no sample, as in the future.
    """
    columns: list[Column | None] = [None] * count
    for sample in samples:
        place = min(count - 1, int(sample.at_s / span_s * count))
        before = columns[place]
        columns[place] = Column(sample, sample.is_low or (before is not None and before.was_low))
    # A column without a sample repeats the column before it, if any later column has a sample.
    last = max((place for place, column in enumerate(columns) if column is not None), default=-1)
    for place in range(1, last):
        if columns[place] is None:
            columns[place] = columns[place - 1]
    return columns


def half_blocks(upper: str | None, lower: str | None) -> tuple[str, str]:
    """The character and the style of a cell whose two pixels have these colours, or none."""
    if upper == lower:
        return (" ", "") if upper is None else ("█", upper)
    if upper is None:
        return "▄", str(lower)
    if lower is None:
        return "▀", upper
    return "▀", f"{upper} on {lower}"


Paint = Callable[[Column, float], str | None]
"""The colour of a column at a height, in bytes; None leaves the terminal's own."""


def area(
    columns: Sequence[Column | None], rows: int, top_bytes: float, paint: Paint
) -> list[list[tuple[str, str]]]:
    """Paints columns of cells.

    Returns:
        Rows from the top, each a (character, style) for every column.
    """
    pixel_bytes = top_bytes / (2 * rows)
    picture = []
    for row in range(rows):
        upper_bytes = (2 * (rows - row) - 0.5) * pixel_bytes
        picture.append(
            [
                half_blocks(paint(column, upper_bytes), paint(column, upper_bytes - pixel_bytes))
                if column is not None
                else (" ", "")
                for column in columns
            ]
        )
    return picture


def paint_host(column: Column, height_bytes: float) -> str | None:
    """The host's colours: other programs below, the guest above them, available memory on top."""
    sample = column.sample
    if height_bytes < sample.load_bytes:
        return LOAD
    return GUEST if height_bytes < sample.load_bytes + sample.guest_bytes else None


def paint_balloon(column: Column, height_bytes: float) -> str | None:
    """The balloon from below."""
    return BALLOON if height_bytes < column.sample.balloon_bytes else None


class LiveChart:
    """A chart that stays in its place and grows to the right.

    Args:
        story: the demonstration's script.
        console: where to draw; None: the terminal.
    """

    def __init__(self, story: Story, console: Console | None = None) -> None:
        self._story = story
        self._top_balloon = 6.0 * story.step_bytes
        # auto_refresh=True would start a thread; `show` redraws the picture instead.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, samples: Sequence[Sample]) -> None:
        """Draws all samples so far."""
        size = self._live.console.size
        width = max(MIN_COLUMNS, min(100, size.width - AXIS_CELLS - LEGEND_CELLS))
        span_s = max(self._story.expected_s, samples[-1].at_s)
        columns = columns_of(samples, width, span_s)
        rows = max(10, min(26, size.height - 10))
        last = samples[-1]
        self._top_balloon = max(self._top_balloon, 1.1 * last.balloon_bytes)
        lines = [
            Text(introduction(self._story), style="dim"),
            Text.assemble(
                (f"\n{' ' * AXIS_CELLS} {last.phase.value}", "bold"),
                f" · available: {last.available_bytes // MIB} MiB ",
                ("LOW", f"bold {MARGIN}") if last.is_low else "",
            ),
            *self._host(columns, rows * 3 // 5, last),
            *self._balloon(columns, rows - rows * 3 // 5, last),
            _time_axis(width, span_s),
        ]
        self._live.update(Group(*lines), refresh=True)

    def _host(self, columns: Sequence[Column | None], rows: int, last: Sample) -> list[Text]:
        top = float(self._story.budget_bytes)
        picture = area(columns, rows, top, paint_host)
        margin_row = min(rows - 1, int(MARGIN_BYTES / top * rows))
        picture[margin_row] = [
            _margin_cell(cell, column)
            for cell, column in zip(picture[margin_row], columns, strict=True)
        ]
        legend = {
            0: Text("the host's memory, MiB", style="bold"),
            margin_row: _legend("┄ margin", MARGIN, MARGIN_BYTES),
            margin_row + 2: _legend("■ the guest", GUEST, last.guest_bytes),
            rows - 1: _legend("■ others", LOAD, last.load_bytes),
        }
        return _framed(picture, top, legend)

    def _balloon(self, columns: Sequence[Column | None], rows: int, last: Sample) -> list[Text]:
        picture = area(columns, rows, self._top_balloon, paint_balloon)
        legend = {
            0: Text("taken from the guest, MiB", style="bold"),
            rows - 1: _legend("■ balloon", BALLOON, last.balloon_bytes),
        }
        return _framed(picture, self._top_balloon, legend)


def _margin_cell(cell: tuple[str, str], column: Column | None) -> tuple[str, str]:
    if column is not None and column.was_low:
        return "▼", f"bold {MARGIN}"
    character, style = cell
    if character == " ":
        return "┄", MARGIN
    # The filled area covers this cell, so the margin's line is drawn on its colour. A cell of two
    # areas has the style "UPPER on LOWER": the lower one's colour is taken.
    return "┄", f"{MARGIN} on {style.rpartition(' on ')[2]}"


def _legend(name: str, colour: str, size_bytes: int) -> Text:
    return Text.assemble((f"{name:<13}"[:13], colour), (f"{size_bytes // MIB:6} MiB", "bold"))


def _framed(
    picture: Sequence[Sequence[tuple[str, str]]], top_bytes: float, legend: dict[int, Text]
) -> list[Text]:
    """Puts an axis to the left and a legend to the right of a picture."""
    rows = len(picture)
    numbers = _ticks(rows, top_bytes)
    lines = []
    for row, cells in enumerate(picture):
        edge = "┤" if row in numbers else "│"
        line = Text()
        line.append(f"{numbers.get(row, ''):>{AXIS_CELLS - 1}} {edge}", "dim")
        for style, run in groupby(cells, key=lambda cell: cell[1]):
            line.append("".join(character for character, _ in run), style)
        if row in legend:
            line.append("  ")
            line.append_text(legend[row])
        lines.append(line)
    lines.append(Text(" " * AXIS_CELLS + "└" + "─" * len(picture[0]), style="dim"))
    return lines


def _ticks(rows: int, top_bytes: float) -> dict[int, str]:
    """Round numbers of MiB for an axis, by the row whose upper edge is nearest to each."""
    top = top_bytes / MIB
    steps = (size * power for power in (10, 100, 1000, 10_000) for size in (1, 2, 5))
    step = next(step for step in steps if top / step <= rows / 2.5)
    values = range(step, int(top) + 1, step)
    return {max(0, round(rows - value / top * rows)): str(value) for value in values}


def _time_axis(width: int, span_s: float) -> Text:
    cells = [" "] * (width + 12)
    every_s = next(step for step in (1, 2, 5, 10, 20) if span_s / step <= 10)
    for number in range(int(span_s / every_s) + 1):
        second = number * every_s
        place = int(second / span_s * width)
        for offset, character in enumerate(f"{second} s" if number == 0 else str(second)):
            cells[place + offset] = character
    return Text(" " * (AXIS_CELLS + 1) + "".join(cells).rstrip(), style="dim")
