"""docs/troubleshooting.md quotes what balloond says: each quote is in balloond's source."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"

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


def test_page_quotes_much_of_the_log() -> None:
    assert len(quotes()) > 50
    assert all(quote in PAGE.read_text() for quote in NOT_OURS)
