"""Runs one input of one target again: ``python -m tests.fuzz.replay TARGET FILE|HEX``.

The input is a file's content, or given in hexadecimal digits, as the kept ones are.
"""

import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main(argv: list[str]) -> int:
    """Ends with the target's own traceback, or says that nothing happened."""
    if len(argv) != 3 or argv[1] not in TARGETS:
        print(
            f"usage: python -m tests.fuzz.replay {{{','.join(TARGETS)}}} FILE|HEX", file=sys.stderr
        )
        return 2
    path = Path(argv[2])
    TARGETS[argv[1]].load()(path.read_bytes() if path.exists() else bytes.fromhex(argv[2]))
    print(f"{argv[1]}: nothing wrong with {argv[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
