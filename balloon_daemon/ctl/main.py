"""``balloonctl``: parses the command line, runs the subcommand, and returns its exit status."""

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from balloon_daemon import __version__
from balloon_daemon.errors import printable

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The errors of write(2) where a disk or a quota is full, or a disk or terminal is gone."""


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, with a pointer to --help; used for subcommands too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse takes the "-5M" of "set web -5M" for a flag, and would only say that SIZE is
        # missing. As a negative number it is an argument, which is refused as a wrong size.
        self._negative_number_matcher = re.compile(r"-[0-9]")

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = sys.stderr if file is None else file
        try:
            super()._print_message(message, stream)
            # argparse does not flush: an error of a full disk would appear only at the
            # interpreter's exit.
            stream.flush()
        except OSError:
            _drop(stream)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action.choices, dict) and value not in action.choices:  # a command
            from balloon_daemon.config.gathered import nearest

            hint = nearest(value, action.choices) or f"; there are {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"there is no command {value!r}{hint}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {printable(message)} (usage: {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``balloonctl``."""
    # Imported here, below the ``try`` of ``main``: loading takes 0.1 s, and Ctrl-C meanwhile must
    # print no traceback.
    from balloon_daemon.ctl.ask.main import add_api_flag
    from balloon_daemon.ctl.ask.main import add_parsers as add_ask_parsers
    from balloon_daemon.ctl.demo.main import add_parser as add_demo_parser
    from balloon_daemon.ctl.doctor.main import add_parser as add_doctor_parser
    from balloon_daemon.ctl.history import add_parser as add_history_parser
    from balloon_daemon.ctl.plot import add_parser as add_plot_parser
    from balloon_daemon.ctl.seccomp.main import add_parser as add_seccomp_parser
    from balloon_daemon.ctl.service import add_parsers as add_service_parsers
    from balloon_daemon.ctl.simulate.judge_main import add_parser as add_judge_parser
    from balloon_daemon.ctl.simulate.main import add_parser as add_simulate_parser

    parser: argparse.ArgumentParser = _Parser(
        prog="balloonctl", description="Tools around balloond, the memory balloon daemon."
    )
    parser.add_argument("--version", action="version", version=f"balloonctl {__version__}")
    add_api_flag(parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    add_ask_parsers(subparsers)
    add_doctor_parser(subparsers)
    add_demo_parser(subparsers)
    add_seccomp_parser(subparsers)
    add_history_parser(subparsers)
    add_plot_parser(subparsers)
    add_simulate_parser(subparsers)
    add_judge_parser(subparsers)
    add_service_parsers(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        Its exit status: 0, or 2 for a mistake of the operator's; 1 where its output cannot be
        written, 130 where it was interrupted.
    """
    _prepare_output()
    try:
        options = build_parser().parse_args(argv)
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop(sys.stdout)  # the output's reader has gone
        return EXIT_FAILURE
    except OSError as err:
        _drop(sys.stdout)
        why = printable(err.strerror or str(err))
        if err.errno in _NO_ROOM:
            # An error without a file's name is standard output's: the code that writes a file
            # named by a flag adds that file's name to its errors.
            why = f"standard output: {why}; write it to another place"
        _complain(f"balloonctl: {why}")
        return EXIT_FAILURE
    return status


def _complain(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _prepare_output() -> None:
    """Makes printing work even where streams are closed, or their encoding lacks characters."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Escape a character that the stream's encoding lacks, as Python does on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop(stream: TextIO) -> None:
    """Redirects a stream to /dev/null: flushing the rest at exit would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
