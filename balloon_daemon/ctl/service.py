"""``balloonctl install-service`` and ``uninstall-service``: for a balloond that pip has installed.

The wheel puts a unit, a sysusers.d file and an example of a configuration below its environment's
``share/doc/balloond``. It cannot install the unit itself, because the unit must name that
environment's programs. Debian's package and ``make install`` install a unit of their own.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balloon_daemon.ctl.rooted_files import RootedFiles
from balloon_daemon.errors import printable
from balloon_daemon.linux.directories import others_may_write

EXIT_USAGE = 2

UNIT = "etc/systemd/system/balloond.service"
SYSUSERS = "etc/sysusers.d/balloond.conf"
SETTINGS = "etc/balloond/balloond.toml"
PACKAGES_UNITS = (
    "usr/lib/systemd/system/balloond.service",
    "lib/systemd/system/balloond.service",
    "usr/local/lib/systemd/system/balloond.service",
)
"""The units of Debian's package and of ``make install``. systemd would use a unit that
``install-service`` writes in their place."""

_OURS = "# Written by balloonctl install-service; balloonctl uninstall-service removes it.\n"
_HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/lib", "/var/tmp")
"""The directories whose files the unit's ProtectHome=, PrivateTmp= and TemporaryFileSystem= hide
from the service: programs there could not be started."""

_INSTALL = "install balloond's wheel with pip (docs/install.md)"
_ELSEWHERE = "install balloond elsewhere, as in /opt/balloond (docs/install.md)"

_PLAIN = re.compile(r"/[A-Za-z0-9/._+-]*")
"""Matches a path that needs no quoting in a unit file."""

Subparsers = Any  # argparse has no public name for it.


class ServiceError(Exception):
    """The service cannot be installed or removed; one line says why and what to do."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What pip has installed.

    Attributes:
        programs: the directory of balloond and balloonctl.
        share: the directory that has ``doc/balloond/systemd``.
    """

    programs: Path
    share: Path

    def read(self, name: str) -> str:
        """A file of ``doc/balloond/systemd``.

        Raises:
            ServiceError: it is not there.
        """
        path = self.share / "doc/balloond/systemd" / name
        try:
            return path.read_text()
        except OSError as err:
            raise ServiceError(f"{printable(str(path))}: {err.strerror}; {_INSTALL}") from None

    def unit(self) -> str:
        """The unit, with these programs."""
        text = self.read("balloond.service").replace(
            "/usr/bin/balloon", f"{self.programs}/balloon"
        )
        manual = f"Documentation=file:{self.share}/man/man8/balloond.8"
        return _OURS + re.sub(r"^Documentation=.*$", manual, text, flags=re.MULTILINE)


def installed_here() -> Installed:
    """The directories where this Python's environment has its programs and its ``share``."""
    return Installed(
        Path(sysconfig.get_path("scripts")), Path(sysconfig.get_path("data"), "share")
    )


def add_parsers(subparsers: Subparsers) -> None:
    """Adds both commands; their ``run`` returns an exit status."""
    _add(
        subparsers,
        "install-service",
        install,
        "make a balloond that pip has installed a service of systemd's",
        "Writes the unit, the sysusers.d file of the user that devices run as and, where there is "
        f"none, the configuration file (/{UNIT}, /{SYSUSERS}, /{SETTINGS}), and has systemd "
        "read them. It enables and starts nothing. Once more, after another version was "
        "installed, it writes the first two anew.",
    )
    _add(
        subparsers,
        "uninstall-service",
        uninstall,
        "remove what install-service has written, but for the configuration file",
        "Stops and disables the service, which gives the guests their memory back, and removes "
        "the unit and the sysusers.d file. Settings, the user and pip's files stay.",
    )


def _add(
    subparsers: Subparsers, name: str, run: Callable[..., None], told: str, description: str
) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=told,
        description=description,
        epilog="Exit status: 0 done, 2 nothing was changed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="write below DIR, the root directory of an image or a container, and run nothing",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done; anybody may"
    )
    parser.set_defaults(run=lambda options: _told(name, run, options))


def _told(name: str, run: Callable[..., None], options: argparse.Namespace) -> int:
    """Runs ``install`` or ``uninstall``; prints in one line why it fails. Returns the exit
    status."""
    try:
        run(installed_here(), options.root, dry=options.dry_run)
    except ServiceError as err:
        print(f"balloonctl {name}: {err}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as err:
        where = printable(str(err.filename)) if err.filename else "writing"
        print(f"balloonctl {name}: {where}: {printable(err.strerror or '')}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def install(installed: Installed, root: Path | None, *, dry: bool) -> None:
    """Writes the files, and has systemd read them.

    Args:
        root: a directory that takes the place of ``/``: files are written below it, and no program
            is run; None: this host.
        dry: True: print what would be done, and do nothing.

    Raises:
        ServiceError: this user may not, another unit is there, or the service could not run.
        OSError: a file cannot be written.
    """
    host = _Host(root, dry=dry)
    host.refuse_anothers_unit()
    for program in ("balloond", "balloonctl"):
        host.refuse_program(installed.programs / program)
    files = {UNIT: installed.unit(), SYSUSERS: installed.read("balloond.sysusers")}
    if not host.files.exists(SETTINGS):
        files[SETTINGS] = installed.read("balloond.toml")
    for name, text in files.items():
        host.write(name, text)
    host.call("systemd-sysusers", f"/{SYSUSERS}")
    host.reload_systemd()
    if root is None and not dry:
        print(f"name your VMs in /{SETTINGS}, then: systemctl enable --now balloond")


def uninstall(installed: Installed, root: Path | None, *, dry: bool) -> None:
    """Stops the service and removes what `install` has written, but for the settings.

    Raises:
        ServiceError: this user may not, or there is no unit of `install`'s.
        OSError: a file cannot be removed.
    """
    del installed
    host = _Host(root, dry=dry)
    host.refuse_anothers_unit()
    if not host.files.exists(UNIT):
        raise ServiceError(f"{host.shown(UNIT)}: no such file; there is nothing to remove")
    # Call this even where systemd does not run: it removes the links that systemctl enable made.
    host.call("systemctl", "disable", *(("--now",) if host.runs_systemd else ()), "balloond")
    for name in (UNIT, SYSUSERS):
        host.remove(name)
    host.reload_systemd()


class _Host:
    """The root directory below which files are written and removed: this host's, or another."""

    def __init__(self, root: Path | None, *, dry: bool) -> None:
        if root is not None and not root.is_dir():
            raise ServiceError(f"--root {printable(str(root))}: no such directory")
        if root is None and not dry and os.geteuid() != 0:
            raise ServiceError("only root may do this; use sudo, or --dry-run to see what it does")
        self._root = Path("/") if root is None else root
        self._is_this = root is None
        self.files = RootedFiles(self._root, follows=self._is_this)
        self._dry = dry

    @property
    def runs_systemd(self) -> bool:
        """Whether this host's process 1 is systemd (sd_booted(3))."""
        return self._is_this and Path("/run/systemd/system").is_dir()

    def shown(self, name: str) -> str:
        """A file's name in a message."""
        return printable(str(self._root / name))

    def refuse_anothers_unit(self) -> None:
        """Raises ServiceError where a unit is there that `install` has not written."""
        for name in PACKAGES_UNITS:
            if os.path.lexists(self._root / name):
                raise ServiceError(
                    f"{self.shown(name)} is there: balloond was installed by a package or make "
                    "install, whose service it is; remove that first"
                )
        # A unit that is masked is a link to /dev/null, which has no first line.
        if self.files.exists(UNIT) and self.files.first_line(UNIT) != _OURS:
            raise ServiceError(
                f"{self.shown(UNIT)} is not install-service's: move it away first, and what it "
                "changes into a drop-in (systemctl edit balloond)"
            )

    def refuse_program(self, path: Path) -> None:
        """Raises ServiceError where the service could not run a program, or root should not."""
        shown = printable(str(path))
        if not _PLAIN.fullmatch(str(path)):
            raise ServiceError(
                f"{shown}: a unit takes letters, digits and /._+- only; {_ELSEWHERE}"
            )
        places = [str(path)]
        if self._is_this:
            # Check the interpreter too: a virtual environment's programs run the Python to which
            # its symbolic links lead.
            places += [os.path.realpath(path), os.path.realpath(sys.executable)]
        for place in places:
            for hidden in _HIDDEN:
                if place.startswith(f"{hidden}/"):
                    raise ServiceError(
                        f"{printable(place)}: the service does not see {hidden}; {_ELSEWHERE}"
                    )
        if not os.access(self._root / path.relative_to("/"), os.X_OK):
            where = "" if self._is_this else f" below {printable(str(self._root))}"
            raise ServiceError(f"{shown}: no such program{where}; {_INSTALL}")
        if self._is_this and (why := others_may_write(path.parent)):
            raise ServiceError(f"{shown}: root would run it, and {printable(why)}; {_ELSEWHERE}")

    def write(self, name: str, text: str) -> None:
        """Writes a file, whole or not at all."""
        print(f"{'would write' if self._dry else 'writes'} {self.shown(name)}")
        if not self._dry:
            self.files.write(name, text)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        print(f"{'would remove' if self._dry else 'removes'} {self.shown(name)}")
        if not self._dry:
            self.files.remove(name)

    def reload_systemd(self) -> None:
        """Has systemd read its units anew, where it runs."""
        if self.runs_systemd:
            self.call("systemctl", "daemon-reload")

    def call(self, *command: str) -> None:
        """Runs one of systemd's programs on this host.

        Raises:
            ServiceError: it is missing, or fails.
        """
        if not self._is_this:
            return
        print(f"{'would run' if self._dry else 'runs'} {' '.join(command)}", flush=True)
        if self._dry:
            return
        if shutil.which(command[0]) is None:
            raise ServiceError(f"{command[0]} is missing: this host has no systemd")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"{' '.join(command)}: {printable(done.stderr.strip())}")
