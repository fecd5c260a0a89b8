"""A process that goes on as another user, and how it is started."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Ours, with which ``python -P -m`` finds this checkout's modules and no other's."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def become(uid: int | None) -> None:
    """Goes on as an ordinary user, with a group of the same number; None: stays who it is."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def enter(socket_path: Path) -> str:
    """Goes where a socket is, and returns its name there.

    Another user may not be let through the folders above it.
    """
    os.chdir(socket_path.parent)
    return socket_path.name
