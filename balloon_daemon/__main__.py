"""``balloond``, the program: ``python -m balloon_daemon`` is the same."""

import gc
import os
import signal
import sys

from balloon_daemon import small_typing as small_typing  # Before any module that imports typing.
from balloon_daemon.linux.signals import hold_end_signals


def main() -> int:
    """Starts the template (the process that forks devices), then loads and runs the rest of
    balloond; returns the exit status."""
    # Block the signals that end balloond before anything else: from here on none of them ends a
    # start half-way.
    hold_end_signals()
    # Collect no garbage while the modules load: all that they make stays, and the collections were
    # a tenth of a start. The controller enables the collector again.
    gc.disable()
    template = None
    try:
        try:
            _restore_basics()
            from balloon_daemon.linux.landlock import stay_out_of_other_processes

            stay_out_of_other_processes()
            from balloon_daemon.device.template import Template

            template = Template()
            from balloon_daemon.cli import run as cli
            from balloon_daemon.cli.failed_start import started
        except (OSError, ImportError) as err:
            remedy = "allow more open files (ulimit -n), or install balloond anew"
            print(f"balloond: cannot be loaded: {err}; {remedy}", file=sys.stderr)
            return 1
        return started(lambda: cli.main(template=template))
    finally:
        if template is not None:
            template.close()


def _restore_basics() -> None:
    """Restores settings that every program relies on, and that the process which started this one
    may have changed."""
    # Do not ignore SIGCHLD: the kernel would discard our children's exit codes, and waitpid(2)
    # would fail.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # If a standard stream (0 to 2) was closed, the next file that this process opens would get its
    # number: open /dev/null there.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
