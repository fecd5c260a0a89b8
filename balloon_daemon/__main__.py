"""``balloond``, the program: ``python -m balloon_daemon`` is the same."""

import os
import signal
import sys

from balloon_daemon.linux.signals import hold_end_signals


def main() -> int:
    """Starts the template, and loads and runs all else meanwhile; returns the exit status."""
    # Before all else: from here on none of them ends a start half-way.
    hold_end_signals()
    template = None
    try:
        try:
            _stand_up()
            from balloon_daemon.device.template import Template

            template = Template()
            from balloon_daemon.cli import run as cli
        except (OSError, ImportError) as err:
            remedy = "allow more open files (ulimit -n), or install balloond anew"
            print(f"balloond: cannot be loaded: {err}; {remedy}", file=sys.stderr)
            return 1
        return cli.main(template=template)
    finally:
        if template is not None:
            template.close()


def _stand_up() -> None:
    """Has what every program takes for granted, and whoever starts us may have taken away."""
    # Ignored by whoever started us, our children's ends would be lost: none could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Closed, the next things that we open would be taken for our standard streams.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
