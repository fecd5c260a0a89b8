"""``balloond``: flags to Config to Controller. All of the daemon's print() and exit codes."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TextIO

from balloon_daemon import __version__
from balloon_daemon.cli.asyncio_lean import asyncio
from balloon_daemon.cli.device_user import (
    OWN_USER,
    SHARED,
    SHARED_USER,
    default_user,
    identity_of,
    warning_first,
)
from balloon_daemon.cli.opening import look, make_directory, open_all, why_not_private
from balloon_daemon.config.model import Config, default_policy_file, default_socket
from balloon_daemon.controller.loop import Controller
from balloon_daemon.device.template import Template
from balloon_daemon.errors import (
    BalloondError,
    ConfigError,
    JudgeError,
    PolicyFileError,
    SourceError,
    TrialError,
    printable,
)
from balloon_daemon.guests.jailed.supervisor import Jail
from balloon_daemon.host.low_memory import LowMemorySource, choose_source
from balloon_daemon.linux.events import allow_all_fds
from balloon_daemon.linux.signals import Interruptible
from balloon_daemon.linux.systemd import logs_to_journal, runs_as_service
from balloon_daemon.records.log import EventLog, configure
from balloon_daemon.seccomp.filter import CompiledFilter, compile_policy
from balloon_daemon.seccomp.policy import Dialect
from balloon_daemon.sizing.balloon_policy import PolicySettings, max_balloon_bytes
from balloon_daemon.units import format_size, parse_size

LEAST_FDS = 64
"""Open files without which there is no use in starting."""

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

_DESCRIPTION = """\
Keeps a host that runs virtual machines out of memory trouble: when it runs low, takes memory back
from the guests through a virtio balloon, step by step; when it has memory again, gives it back.

Listens on one vhost-user socket. Each VM that connects gets a balloon of its own, served by a
jailed process of its own. Ends on SIGTERM or SIGINT, after giving the guests their memory back;
at once on a second one.
"""

_EPILOG = """\
SIZE is a number with K, M, G or T (binary): 4G, 512M, 1.5GiB.

exit status: 0 ended as asked, 1 could not run (socket in use, no permission, --check saw no memory
figures, its trial device failed or libseccomp disagrees), 2 a wrong flag, setting or policy file.

examples:
  balloond --vm-mem 4G
  balloond --socket /run/balloond/web.sock --margin 400M --log json
  balloond --check
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read on."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own leaves what a full disk does not take to the interpreter's end.
        if file is sys.stdout:
            _show(message.rstrip("\n"))
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        _complain(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Lets argparse show a ConfigError as the flag's own."""

    def wrapper(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return wrapper


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
    size = _checked(parse_size)
    parser.add_argument(
        "--vm-mem",
        type=size,
        metavar="SIZE",
        help="size of a VM (default: what its memory table says)",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=default_socket(),
        metavar="PATH",
        help="where VMMs connect; made with mode 0600 (default: %(default)s)",
    )
    source = parser.add_argument_group("when the host is low on memory")
    source.add_argument(
        "--low-mem-dir",
        type=Path,
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
        type=Path,
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


def _config(args: argparse.Namespace) -> Config:
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


def _check_platform() -> None:
    """Refuses machines on which a shared ring cannot be served from Python."""
    system, machine = os.uname().sysname, os.uname().machine
    if (system, machine) != ("Linux", "x86_64"):
        # Elsewhere nothing orders the interpreter's stores to a shared ring (split_queue.py).
        raise ConfigError(f"balloond runs on x86-64 Linux, not on {machine} {system}")


def _compile(path: Path, dialect: Dialect) -> CompiledFilter:
    try:
        return compile_policy(path, dialect=dialect)
    except PolicyFileError:
        raise
    except OSError as err:
        raise ConfigError(f"policy file {printable(str(path))}: {err.strerror}") from err


def _serve(controller: Controller, undo: contextlib.ExitStack) -> None:
    """Runs the controller to its end; what was to be undone stays once it has begun to serve."""
    try:
        asyncio.run(controller.run())
    finally:
        if controller.listening:
            undo.pop_all()


def _how_to_attach(config: Config) -> str:
    size = config.vm_mem_bytes
    mem = "SIZE" if size is None else f"{size >> 20}M"
    crosvm_mem = "MIB" if size is None else f"{size >> 20}"
    return f"""\
Attach a VM to {config.socket}

  crosvm:
    crosvm run --mem {crosvm_mem} --no-balloon --vhost-user balloon,socket={config.socket} ...

  QEMU 10.2 or newer:
    qemu-system-x86_64 ... -m {mem} \\
      -object memory-backend-memfd,id=mem,size={mem},share=on -machine q35,memory-backend=mem \\
      -chardev socket,id=balloond,path={config.socket} \\
      -device vhost-user-test-device-pci,chardev=balloond,virtio-id=5,num_vqs=5,config_size=16
"""


def _is_for_people(fd: int) -> bool:
    """Whether somebody may read what is printed: not where a service manager collects it."""
    # A terminal may be a service itself, and all that is started in it has its variables.
    return os.isatty(fd) or not (runs_as_service() or logs_to_journal(fd))


def _show(text: str) -> None:
    """Prints what is good to know and nothing depends on: a full disk or a closed pipe is fine."""
    try:
        # A path need not be UTF-8.
        print(text.encode(errors="backslashreplace").decode(), flush=True)
    except OSError:
        _print_no_more(sys.stdout)


def _print_no_more(stream: TextIO) -> None:
    """Has what is left in its buffer go nowhere: at the end that would fail again, or hang."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _complain(message: str) -> None:
    """Prints why balloond does not run."""
    try:
        with Interruptible():
            print(message, file=sys.stderr)
    except KeyboardInterrupt:
        _print_no_more(sys.stderr)


def _check(config: Config, source: LowMemorySource, jail: Jail, compiled: CompiledFilter) -> None:
    """What ``--check`` prints once all is well.

    Raises:
        SourceError: low memory cannot be seen here.
        TrialError: no device can live here.
        JudgeError: libseccomp makes another filter of the policy.
    """
    source.check()
    # Here, so that the daemon does not load what it never needs.
    from balloon_daemon.cli.trial import GIVEN_BYTES, try_device

    outcome = try_device(jail.load_filter, jail.identity, jail.fork)
    opinion = _second_opinion(compiled)
    print(f"policy file  {printable(str(config.policy_file))}: compiled")
    print(f"judge        {opinion}")
    print(f"low memory   {source.describe()}")
    if config.vm_mem_bytes is not None:
        limit = max_balloon_bytes(config.vm_mem_bytes)
        step = format_size(limit // config.policy.steps)
        print(
            f"balloon      at most {format_size(limit)} of {format_size(config.vm_mem_bytes)}, "
            f"in {config.policy.steps} steps of {step}"
        )
    who = (
        f"user {config.device_user}"
        if jail.identity
        else "the user who starts balloond (not root)"
    )
    print(f"device       runs as {who}, under seccomp")
    print(
        f"trial        a jailed device was ready after {outcome.ready_s * 1000:.1f} ms and gave "
        f"{format_size(GIVEN_BYTES)} back in {outcome.given_s * 1000:.1f} ms"
    )
    print(f"socket       {config.socket}: free", flush=True)


def _second_opinion(compiled: CompiledFilter) -> str:
    """What libseccomp says of the filter, in one line.

    Raises:
        JudgeError: libseccomp's filter answers a call differently.
    """
    # Here, so that the daemon does not load what it never needs.
    from balloon_daemon.seccomp.judge import Disagreement, opinion_in_words
    from balloon_daemon.seccomp.libseccomp import second_opinion

    opinion = second_opinion(compiled.policy, compiled.bpf)
    if isinstance(opinion, Disagreement):
        raise JudgeError(f"policy file {compiled.policy.files[0]}: {opinion_in_words(opinion)}")
    return opinion_in_words(opinion)


def _run(args: argparse.Namespace, template: Template | None) -> int:
    config = _config(args)
    _check_platform()
    # A keeper that is started inherits it: what a hundred VMs need is beyond the usual 1024.
    if (limit := allow_all_fds()) < LEAST_FDS:
        _complain(
            f"balloond: {limit} files may be open here, and a VM alone needs some forty; allow "
            "more (ulimit -n, LimitNOFILE=)"
        )
        return EXIT_FAILURE
    # Files and users may be on a host that does not answer.
    with Interruptible():
        compiled = _compile(config.policy_file, Dialect(args.policy_dialect))
        config = replace(config, device_user=default_user() if args.user is None else args.user)
        jail = Jail(compiled.load, identity_of(config.device_user))
        # Who was named was meant.
        shared = jail.identity and args.user is None and config.device_user == SHARED_USER
        source = choose_source(low_mem_dir=config.low_mem_dir, margin_bytes=config.margin_bytes)
    if template is not None:
        log = EventLog()
        template.prepare(
            compiled.bpf,
            lambda what: log.warning("device", what),
            lambda what: log.info("device", what),
        )
        jail = replace(jail, fork=template.fork)
    try:
        if config.socket == default_socket():
            make_directory(config.socket)
        risk = why_not_private(config.socket)
        if args.check:
            look(config.socket, keep_fds=args.keep_fds)
            with Interruptible():
                for warning in compiled.warnings:
                    print(warning.told("warning: "), file=sys.stderr)
                if risk:
                    print(f"warning: {printable(risk)}", file=sys.stderr)
                _check(config, source, jail, compiled)
                if shared:
                    print(f"warning      {SHARED}", flush=True)
            return EXIT_OK
        with contextlib.ExitStack() as undo:
            listener, store, lost = open_all(config, undo, keep_fds=args.keep_fds)
            if template is not None:
                template.occupy()
            configure(args.log, verbose=args.verbose)
            if risk:
                EventLog().warning("socket", risk)
            if lost:
                EventLog().error("store", lost)
            if shared:
                jail = replace(jail, fork=warning_first(jail.fork))
            for warning in compiled.warnings:
                # Its first line; what it quotes of the file is in there escaped.
                EventLog().warning("policy-file", str(warning).splitlines()[0])
            taken_over = store is not None and any("." in name for name in store.kept)
            if not taken_over and _is_for_people(sys.stdout.fileno()):
                # A terminal that was stopped (Ctrl-S), or a pipe that is full, takes nothing.
                with Interruptible():
                    _show(_how_to_attach(config))
            _serve(Controller(config, source, jail, listener, store), undo)
    except ConfigError as err:
        _complain(f"balloond: {err}")
        return EXIT_FAILURE
    return EXIT_OK


def main(argv: Sequence[str] | None = None, template: Template | None = None) -> int:
    """Runs ``balloond``.

    Args:
        argv: the arguments without the program's name; by default the process's own.
        template: forks the devices; None: they are forked from this very process.

    Returns:
        The exit status: 0, 1 (cannot run) or 2 (wrong flag, setting or policy file).
    """
    args = build_parser().parse_args(argv)
    try:
        return _run(args, template)
    except PolicyFileError as err:
        _complain(str(err))
        return EXIT_USAGE
    except BalloondError as err:
        _complain(f"balloond: {err}")
        failed = isinstance(err, SourceError | TrialError | JudgeError)
        return EXIT_FAILURE if failed else EXIT_USAGE
    except OSError as err:
        where = f"{err.filename}: " if err.filename else ""
        _complain(f"balloond: {where}{err.strerror or err}")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        _print_no_more(sys.stdout)
        return EXIT_OK
