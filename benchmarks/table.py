"""The table that ``make bench`` prints: goal beside figure."""

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from benchmarks.figures import Figure

_MARKS = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}


NAME_COLUMNS = 64
"""A name or a note is wrapped at this width where the output is no terminal. There rich takes 80
columns for the whole table, and folded each name into cells of 14."""

_ASCII = str.maketrans({"≤": "<=", "≥": ">=", "×": "x", "–": "-", "µ": "u"})


def show(figures: Sequence[Figure], console: Console) -> None:
    """Prints all figures, then how many goals are met.

    Args:
        figures: the figures.
        console: where; where it is no terminal its width becomes the table's.
    """
    table = _table(figures, console)
    if not console.is_terminal:
        options = console.options.update(max_width=1000)
        console.width = Measurement.get(console, options, table).maximum
    console.print(table)
    held = [figure for figure in figures if figure.goal is not None]
    met = sum(figure.is_met is True for figure in held)
    missing = sum(figure.is_met is None for figure in held)
    words = f"{met} of {len(held)} goals are met"
    console.print(words + (f", {missing} could not be measured" if missing else ""))


def _table(figures: Sequence[Figure], console: Console) -> Table:
    def said(text: str) -> str:
        if not console.is_terminal:
            text = textwrap.fill(text, NAME_COLUMNS)
        return escape(text if console.encoding.startswith("utf") else text.translate(_ASCII))

    table = Table(title="balloond, one run on this machine", title_justify="left")
    table.add_column("figure", overflow="fold", min_width=24)
    for heading in ("median", "min", "max", "n", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    group = ""
    for figure in figures:
        if group and figure.name.split(",")[0].split(":")[0] != group:
            table.add_section()
        group = figure.name.split(",")[0].split(":")[0]
        value = said(f"{number(figure.value)} {figure.unit}")
        table.add_row(
            said(figure.name) + (f"\n[dim]{said(figure.note)}[/]" if figure.note else ""),
            "[yellow]none[/]" if figure.value is None else value,
            number(figure.low),
            number(figure.high),
            str(figure.count or ""),
            "" if figure.goal is None else said(str(figure.goal)),
            _MARKS[figure.is_met],
        )
    return table


def number(value: float | None) -> str:
    """Three significant digits, and no exponent."""
    if value is None:
        return ""
    if value and abs(value) < 100:
        digits = 2 if abs(value) >= 1 else 3
        return f"{value:.{digits}f}"
    return f"{value:,.0f}"
