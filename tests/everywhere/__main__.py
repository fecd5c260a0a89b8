"""``python -m tests.everywhere [PLACE...]``: a table with a row for each; returns 0 if all pass.

In each place: ``make setup`` with the hashes of requirements/, our modules compiled with warnings
as errors, ``make test`` with DeprecationWarning an error in the programs that it starts, too, and
a soak without attacks. Logs and reports are below build/everywhere.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from tests.everywhere.enter import RESULTS, Over
from tests.everywhere.results import Result, read_report, table, written
from tests.everywhere.roots import PLACES, Place, ready_root
from tests.vm import apt
from tests.vm.cache import ImagesError

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/everywhere"
PAGE = ROOT / "CONTRIBUTING.md"

SETUP_LIMIT_S, TESTS_LIMIT_S, SOAK_LIMIT_S = 1200, 5400, 600
"""Many times what each takes on two idle processors: one minute, half an hour, a few seconds more
than the soak is to last."""

_PYTHON = ".venv/bin/python"
_OURS = ["-W", "error", "-X", "pycache_prefix=/tmp/compiled", "-m", "compileall", "-q", "-f"]
_TESTED = ["-p", "no:cacheprovider", "--dist", "worksteal", f"--junitxml={RESULTS}/tests.xml"]
_VERSIONS = """\
import ctypes, platform
print(platform.python_version(), platform.libc_ver()[1], end=" ")
version = ctypes.CDLL("libseccomp.so.2").seccomp_version
version.restype = ctypes.POINTER(ctypes.c_uint * 3)
print(*version().contents, sep=".")
"""


class _Fails(Exception):
    """A step that failed; one line says which, and where its log is."""


def main() -> int:
    """Returns 0 where all tests pass in each place and no soak loses anything, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.everywhere", description=__doc__)
    names = [place.name for place in PLACES]
    parser.add_argument("places", nargs="*", metavar="PLACE", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--tests", default="tests", metavar="PATHS", help="only these, and no soak"
    )
    parser.add_argument("--soak-time", type=int, default=60, metavar="SECONDS")
    parser.add_argument("-n", dest="workers", type=int, default=2, metavar="N")
    parser.add_argument("--write", action="store_true", help="the table, into CONTRIBUTING.md")
    args = parser.parse_args()
    for name in args.places:
        if name not in names:
            parser.error(f"{name}: no such place; there are {', '.join(names)}")
    results = []
    for place in PLACES:
        if args.places and place.name not in args.places:
            continue
        try:
            results.append(_run(place, args))
        except (ImagesError, apt.AptError, _Fails) as error:
            print(f"test-everywhere: {place.name}: {error}", file=sys.stderr)
            return 1
        print(*table(results[-1:])[-1:], flush=True)
    print(*table(results), sep="\n")
    if args.write:
        PAGE.write_text(written(PAGE.read_text(), results))
    return not all(result.passed for result in results)


def _run(place: Place, args: argparse.Namespace) -> Result:
    """Takes one place through all steps."""
    logs = BUILD / place.name
    over = Over(ready_root(place), BUILD / f"{place.name}.over")
    logs.mkdir(parents=True, exist_ok=True)
    over.put(ROOT)

    def step(name: str, command: list[str], limit_s: float, **environment: str) -> int:
        print(f"{place.name}: {name}", flush=True)
        with (logs / f"{name}.log").open("w") as log:
            try:
                return over.run(command, log, limit_s, **environment)
            except subprocess.TimeoutExpired:
                raise _Fails(f"{name} takes more than {limit_s} s: {logs}/{name}.log") from None

    def must(name: str, command: list[str], limit_s: float, **environment: str) -> str:
        if step(name, command, limit_s, **environment):
            raise _Fails(f"{name} fails: {logs}/{name}.log")
        return (logs / f"{name}.log").read_text()

    must("setup", ["nice", ".ci/setup"], SETUP_LIMIT_S, PYTHON=place.python)
    must("compile", [_PYTHON, *_OURS, "balloon_daemon", "tests"], SETUP_LIMIT_S)
    said = must("versions", [_PYTHON, "-c", _VERSIONS], SETUP_LIMIT_S)
    python, glibc, libseccomp = said.split()
    testing = ["nice", _PYTHON, "-m", "pytest", "-n", str(args.workers), *_TESTED]
    step(
        "tests",
        [*testing, *args.tests.split()],
        TESTS_LIMIT_S,
        PYTHONWARNINGS="error::DeprecationWarning",
    )
    report = over.results / "tests.xml"
    if not report.exists():
        raise _Fails(f"the tests do not run: {logs}/tests.log")
    (logs / "tests.xml").write_bytes(report.read_bytes())
    soaked = None
    if args.tests == "tests":
        soaking = ["nice", _PYTHON, "-m", "tests.soak", "--no-attacks"]
        limit_s = SOAK_LIMIT_S + args.soak_time
        step("soak", [*soaking, "--time", str(args.soak_time)], limit_s)
        soaked = json.loads((logs / "soak.log").read_text().splitlines()[-1])["ok"]
    counts, today = read_report(report), datetime.date.today()
    return Result(place.name, python, glibc, libseccomp, counts, soaked, today)


if __name__ == "__main__":
    sys.exit(main())
