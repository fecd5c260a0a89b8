"""Chooses the user as which device processes run if balloond is root: preferably a user that runs
no other program."""

import os
import pwd

from balloon_daemon.errors import ConfigError
from balloon_daemon.linux.jail import Identity

OWN_USER, SHARED_USER = "balloond", "nobody"
"""systemd/balloond.sysusers creates the user ``balloond``; many programs run as ``nobody``."""


def default_user() -> str:
    """``balloond`` if that user exists, else ``nobody``. Any process of a device's user may
    kill(2) the device; other programs often run as ``nobody``, but not as ``balloond``."""
    try:
        return pwd.getpwnam(OWN_USER).pw_name
    except KeyError:
        return SHARED_USER


def identity_of(user: str) -> Identity | None:
    """The user and groups that device processes change to; None if balloond is not root: devices
    then run as balloond's own user.

    Raises:
        ConfigError: there is no such user, or it is root.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"--user {user}: there is no such user; create it or name another"
        ) from None
    if entry.pw_uid == 0:
        raise ConfigError(
            f"--user {user}: a device must not run as root; name a user without rights"
        )
    return Identity(entry.pw_uid, entry.pw_gid)
