"""Chooses the user as which devices run if balloond is root: best a user that runs nothing
else."""

import os
import pwd

from balloon_daemon.errors import ConfigError
from balloon_daemon.linux.jail import Identity

OWN_USER, SHARED_USER = "balloond", "nobody"
"""systemd/balloond.sysusers creates the user ``balloond``; many programs run as ``nobody``."""


def default_user() -> str:
    """``balloond`` if that user exists, else ``nobody``: any program of a device's user may kill
    the device, so a user of the devices' own is better."""
    try:
        return pwd.getpwnam(OWN_USER).pw_name
    except KeyError:
        return SHARED_USER


def identity_of(user: str) -> Identity | None:
    """The identity that devices take on; None where balloond is not root: devices then keep its
    user.

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
