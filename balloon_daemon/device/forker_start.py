"""The template's program, run by its file in an interpreter of its own (python -I -S).

The package is loaded from where this file lies, whatever an isolated interpreter would find under
that name; nothing else is looked for there.
"""

import os
import socket
import sys
from typing import NoReturn


def start(fd: str, parent: str, *directories: str) -> NoReturn:
    """Loads what a device needs, and nothing else.

    Args:
        fd: leads to the controller.
        parent: the controller's process id.
        directories: where the controller has its further modules from.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.insert(0, root)
    import balloon_daemon  # noqa: F401  # its modules are found by its own path from here on

    del sys.path[0]
    sys.path += [directory for directory in directories if directory not in sys.path]
    try:
        from balloon_daemon.device.forker import run_template
    except (ImportError, OSError) as err:
        sys.exit(f"balloond-forks: cannot be loaded: {err}")

    run_template(socket.socket(fileno=int(fd)), int(parent))


if __name__ == "__main__":
    start(*sys.argv[1:])
