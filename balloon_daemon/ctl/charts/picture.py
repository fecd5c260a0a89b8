"""Writes a picture whole, or leaves what was there."""

import errno
import os
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from balloon_daemon.errors import printable

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    The picture is written beside its place and renamed into it: where the disk is full, no part of
    the new picture is left, and an earlier picture of that name stays.

    Raises:
        OSError: it cannot be written.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as file:
            file.write(drawn.getbuffer())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def not_saved(path: Path, err: OSError) -> str:
    """Why a picture was not written, and what to do where its disk is full."""
    remedy = "; write it to another place" if err.errno in _NO_ROOM else ""
    return f"{printable(str(path))}: {err.strerror or err}{remedy}"
