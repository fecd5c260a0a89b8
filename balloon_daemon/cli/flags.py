"""The command line of ``balloond``: its flags, their values, and the text of ``--help``."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from balloon_daemon import __version__
from balloon_daemon.cli.device_user import OWN_USER, SHARED_USER
from balloon_daemon.cli.printing import complain, show
from balloon_daemon.config.model import Config, default_policy_file, default_socket
from balloon_daemon.errors import ConfigError
from balloon_daemon.seccomp.policy import Dialect
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.units import parse_memory_size

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

_DESCRIPTION = """\
Keeps a host that runs virtual machines out of memory trouble: when it runs low, takes memory back
from the guests through a virtio balloon, step by step; when it has memory again, gives it back.

Listens on one vhost-user socket. Each VM that connects gets a balloon of its own, served by a
jailed process of its own. Ends on SIGTERM or SIGINT, after giving the guests their memory back;
at once on a second one.
"""

_EPILOG = """\
SIZE is a number with K, M, G or T (binary): 4G, 512M, 1.5GiB; at least 1M.

exit status: 0 ended as asked, 1 could not run (socket in use, no permission, --check saw no memory
figures, its trial device failed or libseccomp disagrees), 2 a wrong flag, setting or policy file.

examples:
  balloond --vm-mem 4G
  balloond --socket /run/balloond/web.sock --margin 400M --log json
  balloond --check
"""


_SIZES = ("--vm-mem", "--margin")
_NEGATIVE = re.compile(r"-\.?[0-9]")


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, with a pointer to --help."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # Print by ``show``. With argparse's own print, text that a full disk refuses would stay in
        # the stream's buffer, and Python would fail when it flushes the buffer at exit.
        if file is sys.stdout:
            show(message.rstrip("\n"))
        else:
            super()._print_message(message, file)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # argparse takes the "-1G" of "--vm-mem -1G" for a flag, and would say only that an
        # argument is missing: joined to its flag it is refused as a size.
        joined: list[str] = []
        for argument in sys.argv[1:] if args is None else args:
            if joined and joined[-1] in _SIZES and _NEGATIVE.match(argument):
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return super().parse_known_args(joined, namespace)

    def error(self, message: str) -> NoReturn:
        complain(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Makes argparse show a ConfigError as an error of the flag."""

    def wrapper(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return wrapper


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("its value is empty; give one, or leave the flag out")
    return text


def _path(text: str) -> Path:
    return Path(_named(text))


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.1 <= speed <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.1 to 1000")
    return speed


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``balloond``."""
    parser = _Parser(
        prog="balloond",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    size = _checked(parse_memory_size)
    parser.add_argument(
        "--vm-mem",
        type=size,
        metavar="SIZE",
        help="size of a VM (default: what its memory table says)",
    )
    parser.add_argument(
        "--socket",
        type=_path,
        default=default_socket(),
        metavar="PATH",
        help="where VMMs connect; made with mode 0600 (default: %(default)s)",
    )
    source = parser.add_argument_group("when the host is low on memory")
    source.add_argument(
        "--low-mem-dir",
        type=_path,
        metavar="DIR",
        help="directory with the files available and margin, in MiB (default: "
        "/sys/kernel/mm/chromeos-low_mem where there is one, else MemAvailable)",
    )
    source.add_argument(
        "--margin",
        type=size,
        metavar="SIZE",
        help="less available than this is low (default: the margin file, else 5.2 %% of what can "
        "be available)",
    )
    jail = parser.add_argument_group("the device's jail")
    jail.add_argument(
        "--policy",
        type=_path,
        default=default_policy_file(),
        metavar="FILE",
        help="seccomp policy file of the device (default: the one that came with balloond)",
    )
    jail.add_argument(
        "--policy-dialect",
        choices=[dialect.value for dialect in Dialect],
        default=Dialect.PYTHON.value,
        help="which of minijail's compilers the policy file is written for: python, "
        "compile_seccomp_policy (default), or c, minijail0 -S, which reads 'condition; return "
        "ERROR' the other way round",
    )
    jail.add_argument(
        "--user",
        type=_named,
        metavar="NAME",
        help=f"whom a device becomes when balloond runs as root (default: {OWN_USER} where there "
        f"is such a user, else {SHARED_USER})",
    )
    parser.add_argument(
        "--no-page-reporting",
        dest="page_reporting",
        action="store_false",
        help="do not offer VMs to report free memory by themselves; what they free stays theirs "
        "until the host is low",
    )
    parser.add_argument(
        "--keep-fds",
        action="store_true",
        help="let a small process keep the VMs, so that they keep their balloons when balloond is "
        "killed or makes way for another one (SIGUSR1); under systemd its own store does; nobody "
        "else may write to the socket's directory then",
    )
    parser.add_argument(
        "--log",
        choices=("text", "json"),
        default="text",
        help="how to write the log to standard error (default: %(default)s)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="N",
        help="run the policy's timers N times faster, for demonstrations and tests",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check flags, policy file, permissions and source, let a trial device do its work "
        "and libseccomp compile the policy too, say what was found, and end",
    )
    parser.add_argument("--version", action="version", version=f"balloond {__version__}")
    return parser


def config_of(args: argparse.Namespace) -> Config:
    """The settings of parsed flags; ``device_user`` is not chosen yet."""
    return Config(
        socket=args.socket,
        vm_mem_bytes=args.vm_mem,
        policy_file=args.policy,
        low_mem_dir=args.low_mem_dir,
        margin_bytes=args.margin,
        policy=PolicySettings().faster(args.speed),
        poll_s=1.0 / args.speed,
        page_reporting=args.page_reporting,
        device_user=SHARED_USER,
    )
