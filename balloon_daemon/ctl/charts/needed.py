"""What a picture needs: matplotlib, and a place for its file."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from balloon_daemon.errors import ConfigError, printable


def check_picture(flag: str, path: Path) -> None:
    """Raises ConfigError: no picture can be drawn there.

    Args:
        flag: the option that names the file.
        path: the file.
    """
    where = f"{flag} {printable(str(path))}"
    if path.suffix != ".png":
        raise ConfigError(f"{where}: the file's name must end in .png")
    if not path.parent.is_dir():
        raise ConfigError(f"{where}: {printable(str(path.parent))} is no directory")
    if find_spec("matplotlib") is None:
        raise ConfigError(f"{flag} needs matplotlib: {how_to_install()}")


def how_to_install() -> str:
    """The command that installs the packages of balloonctl, from the checkout into this Python.

    It never names balloond to a package index: a package of that name there would not be ours.
    """
    pip = f"{shlex.quote(sys.executable)} -m pip"
    command = f"make wheels EXTRA=ctl && {pip} install --no-index build/wheels/*.whl"
    return f"run {command} in the checkout that balloond was installed from"
