"""The campaigns that need more than bytes, each in a process of its own, for a time.

``python -m tests.fuzz.timed NAME SECONDS SEED``: its last line is its ``Outcome``.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.outcome import Outcome

Campaign = Callable[[float, int, Path], Outcome]
"""(seconds, seed, folder for logs) -> what was found."""

NAMES = ("state_machine", "seccomp_meaning", "whole_daemon", "hostile_users")


def load(name: str) -> Campaign:
    """Imports a campaign by its module's name."""
    campaign: Campaign = importlib.import_module(f"tests.fuzz.{name}").campaign
    return campaign


def main(argv: list[str]) -> int:
    """Runs one campaign; 1 where it found something."""
    if len(argv) not in (4, 5) or argv[1] not in NAMES:
        names = ",".join(NAMES)
        print(f"usage: python -m tests.fuzz.timed {{{names}}} SECONDS SEED [DIR]", file=sys.stderr)
        return 2
    folder = Path(argv[4] if len(argv) == 5 else "build/fuzz") / argv[1]
    folder.mkdir(parents=True, exist_ok=True)
    outcome = load(argv[1])(float(argv[2]), int(argv[3]), folder)
    for finding in outcome.findings:
        print(f"{finding.kind}: {finding.what}\n{finding.details}", file=sys.stderr)
    print(outcome.encode())
    return bool(outcome.findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
