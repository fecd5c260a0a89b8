"""The table that ``make bench`` prints: goal beside figure."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure

_MARKS = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}


def show(figures: Sequence[Figure], console: Console) -> None:
    """Prints all figures, then how many goals are met."""
    table = Table(title="balloond, one run on this machine", title_justify="left")
    table.add_column("figure", overflow="fold")
    for heading in ("median", "min", "max", "n", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    group = ""
    for figure in figures:
        if group and figure.name.split(",")[0].split(":")[0] != group:
            table.add_section()
        group = figure.name.split(",")[0].split(":")[0]
        table.add_row(
            figure.name + (f"\n[dim]{figure.note}[/]" if figure.note else ""),
            "[yellow]none[/]" if figure.value is None else f"{number(figure.value)} {figure.unit}",
            number(figure.low),
            number(figure.high),
            str(figure.count or ""),
            "" if figure.goal is None else str(figure.goal),
            _MARKS[figure.is_met],
        )
    console.print(table)
    held = [figure for figure in figures if figure.goal is not None]
    met = sum(figure.is_met is True for figure in held)
    missing = sum(figure.is_met is None for figure in held)
    words = f"{met} of {len(held)} goals are met"
    console.print(words + (f", {missing} could not be measured" if missing else ""))


def number(value: float | None) -> str:
    """Three significant digits, and no exponent."""
    if value is None:
        return ""
    if value and abs(value) < 100:
        digits = 2 if abs(value) >= 1 else 3
        return f"{value:.{digits}f}"
    return f"{value:,.0f}"
