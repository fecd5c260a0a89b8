"""``balloonctl``: flags to subcommands; the only exit codes."""

import argparse
import sys
from collections.abc import Sequence

from balloon_daemon.ctl import demo, seccomp


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        Its exit status: 0, or 2 for a mistake of the operator's.
    """
    parser = argparse.ArgumentParser(
        prog="balloonctl", description="Tools around balloond, the memory balloon daemon."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    demo.add_parser(subparsers)
    seccomp.add_parser(subparsers)
    options = parser.parse_args(argv)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
