"""Finds an interpreter that has libvirt's library, and goes on there with ``process.py``.

Runs by its file (``python -I interpreter.py FD``), in the process that becomes libvirt's client:
looking a module up takes the locks of directories, for which the controller's event loop must not
wait.
"""

import importlib.util
import os
import sys

SYSTEM_PYTHON = "/usr/bin/python3"
"""The interpreter that has libvirt's library if the distribution's package python3-libvirt is
installed."""

# This file imports nothing of balloon_daemon: -I (isolated) leaves out the directory of the file.
PROGRAM = os.path.join(os.path.dirname(__file__), "process.py")


def main(fd: str) -> None:
    """Replaces this process's program by libvirt's client.

    Args:
        fd: the number of the client's socket.
    """
    interpreter = sys.executable
    if importlib.util.find_spec("libvirt") is None and os.access(SYSTEM_PYTHON, os.X_OK):
        interpreter = SYSTEM_PYTHON
    # Where neither has the library, the client says so when it is to connect.
    os.execv(interpreter, [interpreter, "-I", PROGRAM, fd])


if __name__ == "__main__":
    main(sys.argv[1])
