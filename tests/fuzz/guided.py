"""One target under atheris: ``python -m tests.fuzz.guided TARGET FINDINGS [libFuzzer's options]``.

What it finds is appended to FINDINGS as a JSON line before libFuzzer ends the process and keeps
the input. Started by ``campaign.py``, in a process of its own, as libFuzzer never returns.
"""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

from tests.fuzz.targets import TARGETS
from tests.harness.invariants import InvariantBrokenError


def main(argv: list[str]) -> None:
    """Runs until libFuzzer has had enough, or until something is found."""
    name, findings, *options = argv[1:]
    with atheris.instrument_imports(include=["balloon_daemon"]):
        run = TARGETS[name].load()
    # libFuzzer starts itself again to merge corpora, by a shell and under this name.
    itself = f"{sys.executable} -m tests.fuzz.guided {name} {findings}"
    atheris.Setup([itself, *options], reporting(name, Path(findings), run))
    atheris.Fuzz()


def reporting(name: str, findings: Path, run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Wraps a target so that what it raises is written down before it goes on its way."""

    def wrapper(data: bytes) -> None:
        try:
            run(data)
        except Exception as err:
            finding = {
                "target": name,
                "kind": "invariant" if isinstance(err, InvariantBrokenError) else "crash",
                "what": f"{type(err).__name__}: {err}",
                "traceback": traceback.format_exc(),
                "input": data.hex(),
            }
            with findings.open("a") as file:
                file.write(json.dumps(finding) + "\n")
            raise

    return wrapper


if __name__ == "__main__":
    main(sys.argv)
