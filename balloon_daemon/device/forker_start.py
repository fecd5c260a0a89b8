"""The template's program, run by its file in an interpreter of its own (python -I -S).

The package is loaded from the directory above this file, even if the isolated interpreter would
find another package of that name first; no other module is looked up in that directory.
"""

import gc
import os
import sys


def start(fd: str, parent: str, *directories: str) -> None:
    """Loads what a device needs, and nothing else, and runs the template; never returns.

    Args:
        fd: the number of the socket to the controller.
        parent: the controller's process id.
        directories: further directories from which the controller has loaded modules.
    """
    gc.disable()  # Objects made by loading stay in use. run_template enables the collector again.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.insert(0, root)
    import balloon_daemon  # noqa: F401  # its __path__, not sys.path, leads to its modules now

    del sys.path[0]
    sys.path += [directory for directory in directories if directory not in sys.path]
    try:
        from balloon_daemon.device import small_modules  # noqa: F401  # before all others
        from balloon_daemon.device.forker import run_template
    except (ImportError, OSError) as err:
        sys.exit(f"balloond-forks: cannot be loaded: {err}")

    import socket

    run_template(socket.socket(fileno=int(fd)), int(parent))


if __name__ == "__main__":
    start(*sys.argv[1:])
