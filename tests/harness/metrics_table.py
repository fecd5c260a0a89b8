"""docs/metrics.md's table of all metrics; ``python -m tests.harness.metrics_table`` writes it."""

import re
from pathlib import Path

from balloon_daemon.api.metrics import families

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
_TABLE = re.compile(r"^\| metric \|.*?\n(?=\n|\Z)", re.MULTILINE | re.DOTALL)


def table() -> str:
    """The table, as it has to be."""
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for name, kind, text, labels in families():
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{one}`' for one in labels)} | {text} |")
    return "\n".join(rows).replace("|  |", "| |") + "\n"


def written() -> str:
    """The table that the page has."""
    found = _TABLE.search(PAGE.read_text())
    return "" if found is None else found[0]


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().replace(written(), table()))
