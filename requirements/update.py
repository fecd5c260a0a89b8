"""Writes the hashes of requirements/*.txt anew, once somebody has changed a version in there.

`.venv/bin/python requirements/update.py` asks the package index, through pip, which file each
supported Python takes for each line, and puts the SHA-256 of those files below it. To move on to
newer versions, change those first, as an ordinary user:

    .venv/bin/pip install --upgrade --upgrade-strategy eager -e '.[test]'
    .venv/bin/pip freeze --exclude-editable

with the oldest and the newest Python; where they differ, give each version its marker.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")

# What glibc 2.36 can load, Debian 12's, the oldest host that is promised; the newest first.
_GLIBC = ("2_35", "2_34", "2_31", "2_28", "2_27", "2_24", "2_17", "2014", "2_12", "2010", "2_5")
_PLATFORMS = [
    f"--platform=manylinux{'_' if '_' in version else ''}{version}_x86_64" for version in _GLIBC
]

# What has no wheels: its source is built, by what build.txt names.
FROM_SOURCE = {"python-prctl"}

# What has no file for newer Pythons in the version that is pinned.
NOT_FOR = {"atheris": {"3.14", "3.15"}}


def wanted(text: str) -> list[Requirement]:
    """The requirements of a file, without their hashes."""
    lines = re.sub(r" *\\\n *--hash=\S+", "", text).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def hashes(one: Requirement) -> list[str]:
    """SHA-256 of each file that some Python would take, sorted."""
    found = set()
    for python in PYTHONS:
        if one.marker is not None and not one.marker.evaluate({"python_version": python}):
            continue
        if python in NOT_FOR.get(one.name, ()):
            continue
        name = f"{one.name}{one.specifier}"
        which = [f"--python-version={python}", "--only-binary=:all:", *_PLATFORMS]
        if one.name in FROM_SOURCE:
            which = [f"--no-binary={one.name}", "--no-build-isolation", "--use-pep517"]
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"),
                    *("--ignore-installed", "--ignore-requires-python", "--target", directory),
                    *("--report", f"{directory}/report", *which, name),
                ],
                check=True,
            )
            (item,) = json.loads(Path(directory, "report").read_text())["install"]
        found.add(item["download_info"]["archive_info"]["hash"].replace("=", ":"))
    return sorted(found)


def rewritten(text: str, hashes: Callable[[Requirement], list[str]] = hashes) -> str:
    """The file with its comments and requirements as they are, and its hashes new."""
    head = [line for line in text.splitlines() if line.startswith("#")]
    lines = [
        " \\\n    ".join([str(one), *(f"--hash={digest}" for digest in hashes(one))])
        for one in wanted(text)
    ]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.txt")):
        path.write_text(rewritten(path.read_text()))
