"""Becomes the command of ``balloonctl seccomp run`` and ``trace``, traced by its parent.

Run as ``python -m balloon_daemon.ctl.seccomp.child FD PATH ARGUMENT…``: FD holds the filter to
load before the command starts, or is ``-`` where the parent loads one later.
"""

import os
import signal
import sys

from balloon_daemon.ctl.seccomp import ptrace
from balloon_daemon.errors import printable
from balloon_daemon.linux.seccomp import Program, set_no_new_privs


def main() -> int:
    """Executes the command; returns only if that fails."""
    source, path, *arguments = sys.argv[1:]
    program = None
    if source != "-":
        with os.fdopen(int(source), "rb") as file:
            program = Program(file.read())
    try:
        set_no_new_privs()
        ptrace.trace_me()
        # Stop this process. While it is stopped, the parent sets its ptrace options, and then
        # resumes it.
        os.kill(os.getpid(), signal.SIGSTOP)
        if program is not None:
            program.load_and_exec(path, arguments)
        os.execv(path, arguments)
    except OSError as err:
        print(f"balloonctl: {printable(path)}: {err.strerror}", file=sys.stderr)
    return 127


if __name__ == "__main__":
    sys.exit(main())
