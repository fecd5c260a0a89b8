"""The default socket's directory, which balloond makes itself."""

import contextlib
import os
import stat
from pathlib import Path

from balloon_daemon.config.model import Config, default_socket, fallback_directory
from balloon_daemon.errors import ConfigError
from balloon_daemon.linux.directories import make_private


def make_default_directory(config: Config) -> Path | None:
    """Makes the default socket's directory where this balloond's sockets or files belong there.

    Returns:
        The directory; None where there was one before, or none is needed.

    Raises:
        ConfigError: the directory cannot be made, and a vhost-user socket belongs there. If only
            other files belong there, balloond runs without them, and None is returned.
    """
    default = default_socket()
    own = [Path(vm.address).parent for vm in config.own_sockets]
    if default.parent not in (*own, config.main_socket.parent):
        return None
    try:
        return default.parent if make_directory(default) else None
    except ConfigError:
        if default.parent in own:
            raise
        return None


def make_directory(socket: Path) -> bool:
    """Makes the default socket's directory, which is below /run and so is gone at each boot.

    A user's directory in /tmp is also checked, because any user may have made it.

    Returns:
        Whether there was none before.

    Raises:
        ConfigError: the directory cannot be made, or belongs to another user.
    """
    was_there = os.path.lexists(socket.parent)
    try:
        if socket.parent == fallback_directory():
            make_private(socket.parent)
        elif os.geteuid() == 0:
            # Mode 0711: users who may connect to the socket must be able to reach it, but not to
            # list the directory (``others_may_list``).
            socket.parent.mkdir(mode=0o711, exist_ok=True)
    except OSError as err:
        raise ConfigError(
            f"socket {socket}: {socket.parent} cannot be made a directory: {err.strerror}; name "
            "another path (--socket)"
        ) from err
    return not was_there and socket.parent.is_dir()


def close_default_directory() -> None:
    """Keeps other users from listing root's default directory: earlier versions made it with mode
    0755, and it may still exist since then."""
    directory = default_socket().parent
    with contextlib.suppress(OSError):
        status = os.lstat(directory)
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() == 0
        if ours and stat.S_IMODE(status.st_mode) == 0o755:
            directory.chmod(0o711)


def remove_directory(directory: Path) -> None:
    """Removes a directory that ``make_directory`` made, unless another process uses it."""
    with contextlib.suppress(OSError):
        directory.rmdir()
