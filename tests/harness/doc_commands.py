"""What the documents have a reader type and write, and whether a command prints what is shown."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (/\S+)\n")
_FIGURE = re.compile(r"\d[\d,.]*(?: ?(?:[KMGT]iB|KiB|B|ms|s|min|h|[KMGT]|MiB/s)\b)?")
_ANY_LINES = "…"


class Typed(NamedTuple):
    """A command, and the lines that it is shown to print."""

    text: str
    output: tuple[str, ...]


class Written(NamedTuple):
    """A file that the reader writes."""

    path: str
    text: str


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Each fenced block of a page: its language and its text."""
    for match in _FENCE.finditer(page.read_text()):
        yield match[1], match[2]


def steps(page: Path) -> list[Typed | Written]:
    """What a tutorial has its reader do, in order: its ``console`` blocks, and the ``toml`` blocks
    that begin with a file's path."""
    done: list[Typed | Written] = []
    for language, text in blocks(page):
        if language == "console":
            done += _typed(text)
        elif language == "toml" and (file := _FILE.match(text)):
            done.append(Written(file[1], text))
    return done


def _typed(text: str) -> Iterator[Typed]:
    _, *each = re.split(r"^\$ ", text, flags=re.MULTILINE)
    for one in each:
        command, *output = one.rstrip("\n").split("\n")
        yield Typed(command, tuple(output))


def without_figures(line: str) -> str:
    """A line with ``#`` for each number with its unit, and one space for several."""
    return " ".join(_FIGURE.sub("#", line).split())


def as_shown(shown: Sequence[str], printed: str) -> bool:
    """Whether a command printed what a page shows: the same lines, whatever their figures.

    Args:
        shown: the lines; one that is ``…`` alone stands for any lines, or none.
        printed: all that the command printed.
    """
    wanted = [without_figures(line) for line in shown]
    found = [without_figures(line) for line in printed.strip("\n").split("\n")]
    pattern = "".join(
        "(?:.*\n)*?" if line == _ANY_LINES else re.escape(line) + "\n" for line in wanted
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None
