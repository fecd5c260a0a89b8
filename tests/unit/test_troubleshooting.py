"""What pages quote of balloond's sentences is in its source: troubleshooting.md, doctor.md."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
DOCTOR = ROOT / "docs/doctor.md"

NOT_OURS = {
    "Failed to connect to '/run/balloond/…': Permission denied": "QEMU's words",
}
_VALUE = "\0"
"""Stands for what an f-string puts in."""


def quotes() -> list[str]:
    """Every quote in the first column of the page's tables, but for words in capitals, names of
    metrics and single words, which are looked for elsewhere."""
    rows = re.findall(r"^\| (.+?) \| .* \|$", PAGE.read_text(), re.MULTILINE)
    quoted = (quote for row in rows for quote in re.findall(r"`([^`]+)`", row))
    return [quote for quote in quoted if " " in quote and quote not in NOT_OURS]


@cache
def templates() -> str:
    """All strings of the package, one a line, with ``_VALUE`` for each value in an f-string."""
    found = []
    for path in (ROOT / "balloon_daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.JoinedStr(parts):
                    found.append(
                        "".join(
                            str(part.value) if isinstance(part, ast.Constant) else _VALUE
                            for part in parts
                        )
                    )
                case ast.Constant(str(text)):
                    found.append(text)
    return "\n".join(text.replace("\n", " ") for text in found)


@pytest.mark.parametrize("quote", quotes())
def test_quote_is_what_balloond_says(quote: str) -> None:
    pattern = ".*".join(map(re.escape, quote.strip("…").split("…")))
    assert re.search(pattern, templates()), quote


def doctor_lines() -> list[str]:
    """What docs/doctor.md shows of balloonctl doctor, without the VMs' names, ``remedy:`` and
    the sum at the end."""
    (block,) = re.findall(r"^    \$ .*doctor\n((?:    .*\n)+)", DOCTOR.read_text(), re.MULTILINE)
    return [re.sub(r"^(?: *\w+: )", "", line.strip()) for line in block.splitlines()[:-1]]


@pytest.mark.parametrize("line", doctor_lines())
def test_line_of_the_doctor_is_what_it_says(line: str) -> None:
    parts = re.split(r"\d[\d.]*(?: [KMGT]iB)?", line)
    assert re.search(".*".join(map(re.escape, parts)), templates()), line


def test_page_quotes_much_of_the_log() -> None:
    assert len(quotes()) > 50
    assert all(quote in PAGE.read_text() for quote in NOT_OURS)
