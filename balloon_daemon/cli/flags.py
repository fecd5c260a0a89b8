"""The command line of ``balloond``: its flags, their values, and the text of ``--help``."""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from balloon_daemon import __version__
from balloon_daemon.cli.device_user import OWN_USER, SHARED_USER
from balloon_daemon.cli.printing import complain, show
from balloon_daemon.config.entries import Key, Origin
from balloon_daemon.config.metrics_place import ENDING, MetricsPlace, parse_metrics
from balloon_daemon.config.model import Config, FromFiles, default_policy_file, default_socket
from balloon_daemon.config.values import parse_libvirt_uri, parse_pattern, parse_profile
from balloon_daemon.config.vms import Discover, Kind
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.policy import Dialect
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.units import parse_memory_size

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

LIBVIRT_SYSTEM = "qemu:///system"
"""The libvirt connection URI for the VMs of the whole host, not of one user."""

_DESCRIPTION = """\
Keeps a host that runs virtual machines out of memory trouble: when it runs low, takes memory back
from the guests through a virtio balloon, step by step; when it has memory again, gives it back.

Drives the balloons that VMs already have, of QEMU, libvirt, Cloud Hypervisor, Firecracker and
crosvm, as --config or --discover names them. Without those it listens on one vhost-user socket:
each VM that connects gets a balloon of its own, served by a jailed process of its own. Ends on
SIGTERM or SIGINT, after giving the guests their memory back; at once on a second one.
"""

_EPILOG = """\
SIZE is a number with K, M, G or T (binary): 4G, 512M, 1.5GiB; at least 1M.

exit status: 0 ended as asked, 1 could not run (socket in use, no permission, --check saw no memory
figures, its trial device failed or libseccomp disagrees), 2 a wrong flag, setting, configuration
file or policy file.

examples:
  balloond --vm-mem 4G
  balloond --discover libvirt --margin 1G
  balloond --config /etc/balloond/balloond.toml --check
  balloond --socket /run/balloond/web.sock --margin 400M --log json
  balloond --check
"""


def _fitted(text: str) -> str:
    """A text in lines of at most 80 columns; a paragraph with indented lines stays as it is."""
    # Imported here: only --help needs it.
    import textwrap

    parts = text.strip().split("\n\n")
    return "\n\n".join(part if "\n  " in part else textwrap.fill(part, 79) for part in parts)


_SIZES = ("--vm-mem", "--margin")
_NEGATIVE = re.compile(r"-\.?[0-9]")


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, with a pointer to --help."""

    def format_help(self, *args: Any, **options: Any) -> str:  # Python 3.15 has a parameter.
        self.description = _fitted(self.description or "")
        self.epilog = _fitted(self.epilog or "")
        return super().format_help(*args, **options)

    def _print_message(self, message: str, file: Any = None) -> None:
        # Print by ``show``. With argparse's own print, text that a full disk refuses would stay in
        # the stream's buffer, and Python would fail when it flushes the buffer at exit.
        if file is sys.stdout:
            show(message.rstrip("\n"))
        else:
            super()._print_message(message, file)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # argparse takes the "-1G" of "--vm-mem -1G" for a flag, and would only report a missing
        # argument. Join the two to "--vm-mem=-1G", which is refused as a wrong size.
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


def _discover(text: str) -> Discover:
    kind, equals, where = text.partition("=")
    match kind:
        case Kind.LIBVIRT.value if not equals:
            return Discover(libvirt=(LIBVIRT_SYSTEM,))
        case Kind.LIBVIRT.value:
            return Discover(libvirt=(parse_libvirt_uri(where),))
        case Kind.QMP.value if equals:
            return Discover(qmp=(parse_pattern(where),))
        case _:
            raise ConfigError(f"{text!r} is neither libvirt, libvirt=URI nor qmp=PATTERN")


def _metrics(text: str) -> MetricsPlace:
    return parse_metrics(str(Path(text).absolute()) if text.endswith(ENDING) else text)


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
        # argparse makes a formatter for each flag added, only to check the flag. A formatter
        # without a width asks shutil for the terminal's, and importing shutil loads three
        # compression libraries.
        formatter_class=partial(argparse.HelpFormatter, width=80),
        allow_abbrev=False,
    )
    size = _checked(parse_memory_size)
    parser.add_argument(
        "--vm-mem",
        type=size,
        metavar="SIZE",
        help="size at most of each VM that connects to the socket (default: what its VMM and its "
        "guest say)",
    )
    parser.add_argument(
        "--socket",
        type=_path,
        metavar="PATH",
        help="where VMMs connect that have no balloon of their own; made with mode 0600 (default: "
        f"{str(default_socket()).replace('%', '%%')}, unless VMs are named otherwise)",
    )
    named = parser.add_argument_group("VMs that have a balloon of their own")
    named.add_argument(
        "--config",
        type=_named,
        metavar="FILE",
        help="file that names VMs and their limits, and a margin, and after it balloond.d/*.toml "
        "beside it (docs/config.md); with - before it (--config=-FILE) it may be absent",
    )
    named.add_argument(
        "--discover",
        type=_checked(_discover),
        action="append",
        default=[],
        metavar="WHERE",
        help="drive all VMs that are there, now and later: libvirt (or libvirt=URI), or "
        "qmp='/run/qemu/*.qmp' for QEMU's monitors; may be repeated",
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
    source.add_argument(
        "--profile",
        type=_checked(parse_profile),
        metavar="NAME",
        help="the rules for VMs that name none: seed, careful or adaptive (default: careful; seed "
        "for VMs that connect to a socket without a configuration file)",
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
        "--api",
        type=_path,
        metavar="PATH",
        help="where balloonctl and other clients ask (docs/api.md), in a directory that nobody "
        "else may write; none: nowhere (default: api.sock in a service's runtime directory, else "
        "nowhere)",
    )
    parser.add_argument(
        "--log",
        choices=("text", "json"),
        default="text",
        help="how to write the log to standard error (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="decide and log, and change no VM's balloon; guests are asked for statistics alone",
    )
    parser.add_argument(
        "--history",
        type=_path,
        metavar="FILE",
        help="keep the last 24 hours there, at most 8 MiB (SQLite): decisions, and each minute "
        "what host and VMs have; for balloonctl history; a file of anything else is refused",
    )
    parser.add_argument(
        "--record",
        type=_path,
        metavar="FILE",
        help="write a trace of what the balloon policy sees and decides, for balloonctl simulate; "
        "at most 64 MiB; earlier traces are kept as FILE.1 to FILE.5",
    )
    parser.add_argument(
        "--metrics",
        type=_checked(_metrics),
        metavar="PLACE",
        help="where metrics for Prometheus go beside the API's socket: ADDRESS:PORT, where "
        "whoever reaches it may read them, or FILE.prom for node_exporter (docs/metrics.md)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="N",
        help="run the balloon policy's timers N times faster, for demonstrations and tests; the "
        "times of guest protection stay, as guests are no faster",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check flags, files, permissions and source, let a trial device do its work and "
        "libseccomp compile the policy too, say what was found and where each setting comes from, "
        "and end",
    )
    parser.add_argument("--version", action="version", version=f"balloond {__version__}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


class Settings(NamedTuple):
    """All settings, and where they come from.

    Attributes:
        config: the settings of the controller.
        args: the flags.
        origins: where the configuration file and its drop-ins set each key; empty without
            ``--check``, unless they were asked for.
    """

    config: Config
    args: argparse.Namespace
    origins: Mapping[Key, tuple[Origin, ...]]


def read_settings(args: argparse.Namespace, *, with_origins: bool = False) -> Settings:
    """The settings of parsed flags and of the files that they name. Changes nothing.

    Args:
        args: the flags.
        with_origins: True: finds where each key is set, as for ``--check``.

    Raises:
        ConfigFileError: a file cannot be read, or has mistakes; it names all mistakes.
        ConfigError: a flag contradicts another flag or the file.
    """
    file = read_named_config(args.config, with_origins=args.check or with_origins)
    if file is None:
        return Settings(config_of(args), args, {})
    return Settings(config_of(args, file.config), args, file.origins)


def read_named_config(named: str | None, *, with_origins: bool = False) -> FromFiles | None:
    """The settings in the file that ``--config`` names, and its drop-ins; None where there are no
    such files to read.

    Args:
        named: the flag's value. After "-" the file may be absent, as in a unit's
            ``EnvironmentFile=``.
        with_origins: True: finds where each key is set, too.

    Raises:
        ConfigFileError: a file cannot be read, or has mistakes.
    """
    if named is None:
        return None
    from balloon_daemon.config.toml import read_config

    path = Path(named.removeprefix("-"))
    return read_config(path, optional=named.startswith("-"), with_origins=with_origins)


def config_of(args: argparse.Namespace, file: Config | None = None) -> Config:
    """The settings of parsed flags, and of a configuration file.

    Args:
        args: the flags; a flag that was given overrides the file.
        file: the settings of the configuration file; None: there is none.

    Raises:
        ConfigError: a flag contradicts another flag or the file.
    """
    base = Config(socket=None) if file is None else file
    if args.profile is not None:
        base = base.with_profile(args.profile)
    discover = Discover(
        libvirt=_joined(base.discover.libvirt, *(more.libvirt for more in args.discover)),
        qmp=_joined(base.discover.qmp, *(more.qmp for more in args.discover)),
    )
    socket = base.socket if args.socket is None else args.socket
    is_default = socket is None and not base.vms and discover == Discover()
    if is_default:
        # Neither flags nor file name any VM: listen for VMs that connect.
        socket = default_socket()
    if socket is None and args.vm_mem is not None:
        raise ConfigError(
            "--vm-mem is for VMs that connect to --socket; name a socket, or give a VM its size "
            "in the configuration file (memory)"
        )
    if twice := next((vm for vm in base.vms if vm.address == str(socket)), None):
        raise ConfigError(
            f"--socket {printable(str(socket))}: the VM {twice.name} is reached there; name "
            "another path"
        )
    return replace(
        base,
        socket=socket,
        is_default_socket=is_default,
        discover=discover,
        vm_mem_bytes=args.vm_mem,
        policy_file=args.policy,
        low_mem_dir=base.low_mem_dir if args.low_mem_dir is None else args.low_mem_dir,
        margin_bytes=base.margin_bytes if args.margin is None else args.margin,
        policy=PolicySettings().faster(args.speed),
        poll_s=1.0 / args.speed,
        page_reporting=args.page_reporting,
        api=base.api if args.api is None else args.api,
        dry_run=args.dry_run or base.dry_run,
        history=base.history if args.history is None else args.history,
        record=base.record if args.record is None else args.record,
        metrics=base.metrics if args.metrics is None else args.metrics,
    )


def _joined(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """All items, each once."""
    return tuple(dict.fromkeys(item for part in parts for item in part))
