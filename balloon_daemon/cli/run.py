"""``balloond``: from flags to Config to Controller, and to the exit status."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from balloon_daemon.cli.asyncio_lean import asyncio
from balloon_daemon.cli.device_user import (
    SHARED_USER,
    default_user,
    identity_of,
    warning_first,
)
from balloon_daemon.cli.flags import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, build_parser, config_of
from balloon_daemon.cli.opening import (
    look,
    make_directory,
    open_all,
    remove_directory,
    why_not_private,
)
from balloon_daemon.cli.printing import (
    answer,
    complain,
    how_to_attach,
    is_for_people,
    print_no_more,
    show,
)
from balloon_daemon.config.model import default_socket
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
from balloon_daemon.events import (
    DevicesShareUser,
    KeeperUnreachable,
    PolicyFileWarning,
    SocketNotPrivate,
    SourceTrouble,
    TemplateLost,
    TemplateStarted,
    UserIgnored,
)
from balloon_daemon.guests.jailed.listener import VhostUserGuests
from balloon_daemon.guests.jailed.supervisor import Jail
from balloon_daemon.guests.open_guest import open_drivers
from balloon_daemon.host.low_memory import choose_source
from balloon_daemon.host.margin import beyond_host
from balloon_daemon.linux.events import allow_all_fds
from balloon_daemon.linux.signals import Interruptible
from balloon_daemon.records.bus import Bus
from balloon_daemon.records.log import Log
from balloon_daemon.records.words.daemon import said_of_daemon
from balloon_daemon.seccomp.filter import CompiledFilter, compile_policy
from balloon_daemon.seccomp.policy import Dialect
from balloon_daemon.seccomp.policy_file import why_unreadable

LEAST_FDS = 64
"""With fewer open files allowed, balloond does not start."""

MISTAKES_SHOWN = 5
"""How many mistakes of a policy file balloond shows; ``balloonctl seccomp check`` shows all."""


def _check_platform() -> None:
    """Refuses machines on which a ring in shared memory cannot be served from Python."""
    system, machine = os.uname().sysname, os.uname().machine
    if (system, machine) != ("Linux", "x86_64"):
        # A ring in shared memory needs the interpreter's stores to arrive in their order, which
        # x86-64 guarantees and other architectures do not (virtio/split_queue.py).
        raise ConfigError(f"balloond runs on x86-64 Linux, not on {machine} {system}")


def _compile(path: Path, dialect: Dialect) -> CompiledFilter:
    try:
        return compile_policy(path, dialect=dialect)
    except PolicyFileError:
        raise
    except OSError as err:
        raise ConfigError(f"policy file {printable(str(path))}: {why_unreadable(err)}") from err


def _first_mistakes(err: PolicyFileError, args: argparse.Namespace) -> str:
    """The first mistakes of a policy file: a file that is none has one in each line."""
    shown = [str(problem) for problem in err.problems[:MISTAKES_SHOWN]]
    if (more := len(err.problems) - len(shown)) > 0:
        python = args.policy_dialect == Dialect.PYTHON.value
        dialect = "" if python else f"--dialect {args.policy_dialect} "
        command = f"balloonctl seccomp check {dialect}{printable(shlex.quote(str(args.policy)))}"
        shown.append(f"balloond: and {more} more ({command} shows all)")
    return "\n".join(shown)


def _serve(controller: Controller, bus: Bus, undo: contextlib.ExitStack) -> None:
    """Runs the controller to its end; cancels ``undo`` once the controller has begun to serve."""

    async def run() -> None:
        bus.drain_by(asyncio.get_running_loop().call_soon)
        try:
            await controller.run()
        finally:
            bus.drain_by(None)

    try:
        asyncio.run(run())
    finally:
        if controller.listening:
            undo.pop_all()


def _run(args: argparse.Namespace, template: Template) -> int:
    config = config_of(args)
    _check_platform()
    # Raise the limit of open files now: a keeper process started later inherits it. To keep a
    # hundred VMs a keeper needs more descriptors than the usual 1024.
    if (limit := allow_all_fds()) < LEAST_FDS:
        complain(
            f"balloond: {limit} files may be open here, and a VM alone needs some forty; allow "
            "more (ulimit -n, LimitNOFILE=)"
        )
        return EXIT_FAILURE
    # Interruptible: a signal must end balloond even while it waits for the files and the user
    # database. They may be on a server that does not answer.
    with Interruptible():
        compiled = _compile(config.policy_file, Dialect(args.policy_dialect))
        config = replace(config, device_user=default_user() if args.user is None else args.user)
        # Devices of a balloond that is not root keep its user, whatever --user says.
        ignored = "" if args.user is None or os.geteuid() == 0 else args.user
        jail = Jail(identity_of(config.device_user), template.fork)
        # ``shared``: a warning is due, because other programs run as the devices' user too. A user
        # given by --user causes no warning, as the operator has chosen it.
        shared = jail.identity and args.user is None and config.device_user == SHARED_USER
        source = choose_source(low_mem_dir=config.low_mem_dir, margin_bytes=config.margin_bytes)
        too_much = beyond_host(config.margin_bytes)
        if args.check:
            template.wait_until_ready()
    bus = Bus(Log(sys.stderr.fileno(), args.log, verbose=args.verbose))
    template.prepare(
        compiled.bpf,
        lambda why: bus.publish(TemplateLost(why)),
        lambda what: bus.publish(TemplateStarted(what)),
    )
    leftovers = contextlib.ExitStack()
    try:
        if config.socket == default_socket() and make_directory(config.socket) and args.check:
            leftovers.callback(remove_directory, config.socket.parent)
        risk = why_not_private(config.socket)
        if args.check:
            look(config.socket, keep_fds=args.keep_fds)
            with Interruptible():
                for warning in compiled.warnings:
                    complain(warning.with_mark("warning: "))
                if risk:
                    complain(f"warning: {printable(risk)}")
                if ignored:
                    complain(f"warning: {printable(said_of_daemon(UserIgnored(ignored))[1])}")
                if too_much:
                    complain(f"warning: {too_much}")
                # Imported here, so that the daemon does not load modules that only --check needs.
                from balloon_daemon.cli.check import check

                found = check(config, source, jail, compiled)
                if shared:
                    _, whose = said_of_daemon(DevicesShareUser(SHARED_USER))
                    found += f"\nwarning      {whose}"
                return EXIT_OK if answer(found) else EXIT_FAILURE
        with contextlib.ExitStack() as undo:
            listener, store, lost = open_all(config, undo, keep_fds=args.keep_fds)
            template.reserve_low_numbers()
            if risk:
                bus.publish(SocketNotPrivate(risk))
            if ignored:
                bus.publish(UserIgnored(ignored))
            if too_much:
                bus.publish(SourceTrouble(too_much))
            if lost:
                bus.publish(KeeperUnreachable(lost))
            if shared:
                jail = replace(jail, fork=warning_first(jail.fork, bus.publish))
            for warning in compiled.warnings:
                # Log only the first line of a warning: it has the place and the problem, with
                # unprintable characters escaped. The other lines quote the policy file.
                bus.publish(PolicyFileWarning(str(warning).splitlines()[0]))
            bus.drain()
            taken_over = any("." in name for name in store.kept)
            if not taken_over and is_for_people(sys.stdout.fileno()):
                # Interruptible: a signal must end balloond even while the print blocks. A stopped
                # terminal (Ctrl-S) or a full pipe can block it for ever.
                with Interruptible():
                    show(how_to_attach(config))
            guests = VhostUserGuests(config, jail, listener, store, bus.publish)
            drivers = [guests, *open_drivers(config, bus.publish, low=template.share_low_numbers)]
            controller = Controller(config, source, drivers, bus.publish, bus.drain)
            _serve(controller, bus, undo)
    except ConfigError as err:
        complain(f"balloond: {err}")
        return EXIT_FAILURE
    finally:
        leftovers.close()
        # Write all published events, whatever ends this process.
        bus.drain()
    return EXIT_OK


def main(argv: Sequence[str] | None = None, template: Template | None = None) -> int:
    """Runs ``balloond``.

    Args:
        argv: the arguments without the program's name; by default the process's own.
        template: forks the devices; None: a template is started here, and ended at the end.

    Returns:
        The exit status: 0, 1 (cannot run) or 2 (wrong flag, setting or policy file).
    """
    args = build_parser().parse_args(argv)
    if template is None:
        with contextlib.closing(Template()) as own:
            return main(argv, own)
    try:
        return _run(args, template)
    except PolicyFileError as err:
        complain(_first_mistakes(err, args))
        return EXIT_USAGE
    except BalloondError as err:
        complain(f"balloond: {err}")
        failed = isinstance(err, SourceError | TrialError | JudgeError)
        return EXIT_FAILURE if failed else EXIT_USAGE
    except OSError as err:
        where = f"{err.filename}: " if err.filename else ""
        complain(f"balloond: {where}{err.strerror or err}")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print_no_more(sys.stdout)
        return EXIT_OK
