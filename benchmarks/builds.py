"""Two revisions of balloond, each installed as its user would: from a wheel, in an environment of
its own, with the bytecode written. What was built for a commit stays in ``build/compare``.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT

DIRECTORY = ROOT / "build/compare"


@dataclass(frozen=True, slots=True)
class Build:
    """One installed revision.

    Attributes:
        name: which commit; here also whether something is not committed.
        source: its checkout.
        program: its command, without arguments.
    """

    name: str
    source: Path
    program: tuple[str, ...]


class BuildError(Exception):
    """A revision could not be built; says which, and what failed."""


def built(revision: str) -> Build:
    """Installs a committed revision.

    Raises:
        BuildError: there is no such commit, or it cannot be installed.
    """
    commit = _run("git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    place = DIRECTORY / commit[:12]
    source = place / "source"
    if not source.is_dir():
        shutil.rmtree(unpacked := place / "unpacked", ignore_errors=True)
        unpacked.mkdir(parents=True)
        archive = place / "source.tar"
        _run("git", "archive", "--output", str(archive), commit)
        _run("tar", "--extract", "--file", str(archive), "--directory", str(unpacked))
        archive.unlink()
        unpacked.rename(source)
    if not (program := place / "environment/bin/balloond").exists():
        _install(source, place / "environment")
    return Build(commit[:8], source, (str(program),))


def built_here() -> Build:
    """Installs this checkout as it is, with what is not committed."""
    environment = DIRECTORY / "here"
    shutil.rmtree(environment, ignore_errors=True)
    _install(ROOT, environment)
    name = _run("git", "describe", "--always", "--abbrev=8", "--dirty", "--exclude=*").strip()
    return Build(name, ROOT, (str(environment / "bin/balloond"),))


def _install(source: Path, environment: Path) -> None:
    # Not of this environment's packages: a revision takes the versions that it asks for. pip keeps
    # the wheels that it has built, so the second build of a package takes no compiler.
    _run(sys.executable, "-m", "venv", str(environment))
    pip = str(environment / "bin/pip")
    try:
        _run(pip, "install", "--quiet", "--disable-pip-version-check", "--compile", str(source))
    except BuildError:
        shutil.rmtree(environment)
        raise


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")
    return done.stdout
