"""Debian packages of any suite, fetched by apt into a private place, as any user.

Nothing is installed: packages are checked by apt against Debian's signatures, downloaded and
unpacked. The machine's own apt state is only read: for the mirror and for how to reach it.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_KEYRINGS = [
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
]


class AptError(Exception):
    """A suite or package cannot be had here; one line says which and why."""


class AptSuite:
    """One suite of Debian, seen by an apt that has nothing installed."""

    def __init__(self, mirror: str, suite: str, work: Path) -> None:
        """Downloads and verifies the suite's index.

        Args:
            mirror: a Debian mirror's URL, as `debian_mirror` finds it.
            suite: the suite's code name.
            work: an existing directory for apt's lists and packages.

        Raises:
            AptError: the mirror does not have it, or its signature does not hold.
        """
        self._suite = suite
        self._debs = work / f"{suite}-debs"
        self._options = _private_state(work / f"{suite}-apt")
        keyring = next((path for path in _KEYRINGS if path.exists()), None)
        if keyring is None:
            raise AptError("the package debian-archive-keyring is missing")
        sources = work / f"{suite}.list"
        sources.write_text(f"deb [arch=amd64 signed-by={keyring}] {mirror} {suite} main\n")
        self._options += [
            "-oAPT::Architecture=amd64",
            "-oAPT::Architectures=amd64",
            f"-oDir::Etc::sourcelist={sources}",
            "-oDir::Etc::sourceparts=/dev/null",
            "-oDir::Etc::preferences=/dev/null",
            "-oDir::Etc::preferencesparts=/dev/null",
        ]
        _run(["apt-get", *self._options, "update", "--error-on=any"], f"Debian {suite}")

    def closure(self, *packages: str) -> list[str]:
        """Names the packages with all that they depend on.

        Raises:
            AptError: the suite has no such package, or not all of its dependencies.
        """
        command = ["apt-get", *self._options, "install", "-s", "--no-install-recommends"]
        output = _run([*command, *packages], f"{' '.join(packages)} of Debian {self._suite}")
        return [line.split()[1] for line in output.splitlines() if line.startswith("Inst ")]

    def unpack(self, packages: list[str], target: Path) -> None:
        """Downloads the packages and unpacks their files below `target`; runs no script of theirs.

        Raises:
            AptError: a package cannot be had or unpacked.
        """
        self._debs.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        _run(
            ["apt-get", *self._options, "download", *packages],
            f"packages of Debian {self._suite}",
            cwd=self._debs,
        )
        debs = sorted(self._debs.iterdir())
        with ThreadPoolExecutor(4) as pool:
            # list() so that a worker's exception is raised here.
            list(
                pool.map(
                    lambda deb: _run(["dpkg-deb", "-x", str(deb), str(target)], deb.name), debs
                )
            )
        for deb in debs:
            deb.unlink()


def debian_mirror(work: Path) -> str:
    """Finds the Debian mirror that this machine's apt is configured with.

    Args:
        work: an existing directory; used when the machine has not fetched its package lists yet.

    Raises:
        AptError: apt is missing, or has no Debian mirror.
    """
    asking = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)"]
    wanted = "Created-By: Packages"
    found = _mirrors(_run([*asking, wanted], "apt's sources"))
    if not found:
        private = _private_state(work / "host-apt")
        _run(["apt-get", *private, "update"], "apt's sources")
        found = _mirrors(_run([*asking, *private, wanted], "apt's sources"))
    if not found:
        raise AptError("apt has no Debian mirror among its sources")
    return found[0]


def _mirrors(targets: str) -> list[str]:
    # Label "Debian" leaves out the security archive, which holds no whole suite.
    lines = (line.split() for line in targets.splitlines())
    return [words[2] for words in lines if words[:2] == ["Debian", "Debian"] and len(words) == 3]


def _private_state(state: Path) -> list[str]:
    (state / "lists/partial").mkdir(parents=True)
    (state / "cache/archives/partial").mkdir(parents=True)
    (state / "status").touch()
    return [
        "-qq",
        f"-oDir::State={state}",
        f"-oDir::State::status={state}/status",
        f"-oDir::Cache={state}/cache",
        "-oAcquire::Languages=none",
        # Root's cache is closed to the user _apt; apt would warn and go on without it.
        "-oAPT::Sandbox::User=",
    ]


def _run(command: list[str], what: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as err:
        raise AptError(f"{what}: the program {command[0]} is missing") from err
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg"))]
        raise AptError(f"{what}: {'; '.join(said) or done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
