"""Runs one input of one target again: ``python -m tests.fuzz.replay TARGET FILE``."""

import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main(argv: list[str]) -> int:
    """Ends with the target's own traceback, or says that nothing happened."""
    if len(argv) != 3 or argv[1] not in TARGETS:
        print(f"usage: python -m tests.fuzz.replay {{{','.join(TARGETS)}}} FILE", file=sys.stderr)
        return 2
    TARGETS[argv[1]].load()(Path(argv[2]).read_bytes())
    print(f"{argv[1]}: nothing wrong with {argv[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
