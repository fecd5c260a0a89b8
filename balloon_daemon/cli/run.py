"""``balloond``: from flags to Config to Controller, and to the exit status."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from time import monotonic

from balloon_daemon.cli.asyncio_lean import asyncio
from balloon_daemon.cli.default_directory import (
    close_default_directory,
    make_default_directory,
    remove_directory,
)
from balloon_daemon.cli.flags import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_USAGE,
    build_parser,
    read_settings,
)
from balloon_daemon.cli.handed_over import taken_over_sockets
from balloon_daemon.cli.own_metrics import check_metrics, open_services
from balloon_daemon.cli.printing import (
    complain,
    print_no_more,
)
from balloon_daemon.cli.reloading import ConfigFiles
from balloon_daemon.cli.risks import risks
from balloon_daemon.controller.heartbeat import Heartbeat
from balloon_daemon.controller.loop import Controller
from balloon_daemon.device.template import Template
from balloon_daemon.errors import (
    BalloondError,
    ConfigError,
    ConfigFileError,
    JudgeError,
    PolicyFileError,
    SourceError,
    TrialError,
    printable,
)
from balloon_daemon.events import SocketNotPrivate, SourceTrouble
from balloon_daemon.guests.open_guest import NEW_LOW, Drivers, asker
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.host.low_memory import choose_source
from balloon_daemon.host.margin import beyond_host
from balloon_daemon.linux.events import allow_all_fds
from balloon_daemon.linux.signals import Interruptible
from balloon_daemon.linux.systemd import has_stored_fds, take_watchdog_s
from balloon_daemon.records.bus import Bus
from balloon_daemon.records.log import Log
from balloon_daemon.seccomp.policy import Dialect

LEAST_FDS = 64
"""With fewer open files allowed, balloond does not start."""

MISTAKES_SHOWN = 5
"""How many mistakes of a seccomp policy file are shown; ``balloonctl seccomp check`` shows all."""

CONFIG_MISTAKES_SHOWN = 1000
"""How many mistakes of configuration files balloond shows: all mistakes of any file that a person
has written."""


def _check_platform() -> None:
    """Refuses machines on which Python cannot serve a virtqueue's rings in shared memory."""
    system, machine = os.uname().sysname, os.uname().machine
    if (system, machine) != ("Linux", "x86_64"):
        # The guest must see the stores to a used ring in program order. Python has no memory
        # barriers; x86-64 keeps stores in order, other architectures do not
        # (virtio/split_queue.py).
        raise ConfigError(f"balloond runs on x86-64 Linux, not on {machine} {system}")


def _first_mistakes(err: PolicyFileError, args: argparse.Namespace) -> str:
    """The first mistakes of a seccomp policy file. Only the first, because a file that was never
    meant to be one has a mistake in each line."""
    shown = [str(problem) for problem in err.problems[:MISTAKES_SHOWN]]
    if (more := len(err.problems) - len(shown)) > 0:
        # Imported here: only this mistake needs it.
        import shlex

        python = args.policy_dialect == Dialect.PYTHON.value
        dialect = "" if python else f"--dialect {args.policy_dialect} "
        command = f"balloonctl seccomp check {dialect}{printable(shlex.quote(str(args.policy)))}"
        shown.append(f"balloond: and {more} more ({command} shows all)")
    return "\n".join(shown)


def _serve(
    controller: Controller, beat: Heartbeat | None, bus: Bus, undo: contextlib.ExitStack
) -> None:
    """Runs the controller to its end; cancels ``undo`` once the controller has begun to serve."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        # asyncio's own method is a function of Python's around this one, and each turn of the loop
        # calls it twice.
        loop.time = monotonic  # type: ignore[method-assign]
        bus.drain_by(loop.call_soon)
        try:
            await controller.run(beat)
        finally:
            bus.drain_by(None)

    # Give SIGINT another action than KeyboardInterrupt, which would make asyncio.run() install a
    # handler of its own. END_SIGNALS stay blocked until the controller has installed its handlers.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        asyncio.run(run())
    finally:
        if controller.listening:
            undo.pop_all()


def _heartbeat(bus: Bus, tend: Callable[[], None]) -> Heartbeat | None:
    """Makes the sender of watchdog messages and of the status line to the service manager; None:
    the service manager has set no watchdog.

    Args:
        bus: gives the status line its events.
        tend: replaces processes that devices need and that have ended.
    """
    if (watchdog_s := take_watchdog_s()) is None:
        return None
    # Imported here: a balloond without a watchdog does not load it.
    from balloon_daemon.records.status_line import StatusLine

    status = StatusLine()
    bus.read_by(status)
    # Half of the watchdog time, as sd_watchdog_enabled(3) recommends: one message may be late.
    return Heartbeat(watchdog_s / 2, status.line, tend)


def _run(args: argparse.Namespace, template: Template) -> int:
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
        settings = read_settings(args)
        config = settings.config
        # Descriptors in systemd's file descriptor store belong to VMs that an earlier balloond
        # served. This balloond goes on to serve them, whatever the configuration says now.
        own, handed = None, taken_over_sockets()
        if config.own_sockets or has_stored_fds():
            # Imported here: a balloond that only drives the balloons of VMMs does not need it.
            from balloon_daemon.cli.own_device import prepare_device

            own = prepare_device(config, args, template)
        if config.record is not None or config.history is not None:
            # Imported here: a balloond that records nothing does without it.
            from balloon_daemon.cli.recording import check_places

            check_places(config)
        if config.metrics is not None and config.metrics.file is not None:
            check_metrics(config.metrics)
        source = choose_source(low_mem_dir=config.low_mem_dir, margin_bytes=config.margin_bytes)
        too_much = beyond_host(config.margin_bytes)
        if own is None:
            template.close()
        elif args.check:
            template.wait_until_ready()
    bus = Bus(Log(sys.stderr.fileno(), args.log, verbose=args.verbose))
    low = NEW_LOW if own is None else template.share_low_numbers
    if own is not None:
        own.prepare(bus.publish)
    try:
        with contextlib.ExitStack() as leftovers:
            made = make_default_directory(config)
            if args.check:
                if made is not None:
                    leftovers.callback(remove_directory, made)
                # Imported here, so that the daemon does not load modules that only --check needs.
                from balloon_daemon.cli.check import check

                return check(settings, source, own, too_much, low)
        close_default_directory()
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as records:
            if config.record is not None:
                from balloon_daemon.cli.recording import record

                records.enter_context(record(config.record, config.policy, bus, low()))
            if config.history is not None:
                from balloon_daemon.cli.recording import keep_history

                records.enter_context(keep_history(config.history, bus, low()))
            if too_much:
                bus.publish(SourceTrouble(too_much))
            services = open_services(config, bus, undo, low, handed.take)
            service = records.enter_context(services)
            own_vms = None
            if own is None:
                for risk in risks(config):
                    bus.publish(SocketNotPrivate(risk))
                drivers = Drivers(bus.publish, low=low)
            else:
                own_vms = own.open_vms(
                    config, bus, undo, asker(low), handed.take, keep_fds=args.keep_fds
                )
                drivers = Drivers(bus.publish, own_vms.has_vm_of, low)
            for unit in handed.close():
                bus.publish(unit)
            opened: list[GuestDriver] = [] if own_vms is None else [own_vms]
            opened += drivers.open(config)
            files = ConfigFiles(args, low, drivers, own_vms)
            controller = Controller(config, source, opened, bus.publish, bus.drain, service, files)
            beat = _heartbeat(bus, (lambda: None) if own_vms is None else own_vms.tend)
            _serve(controller, beat, bus, undo)
    except ConfigError as err:
        complain(f"balloond: {err}")
        return EXIT_FAILURE
    finally:
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
    except ConfigFileError as err:
        shown = [f"balloond: {mistake}" for mistake in err.mistakes[:CONFIG_MISTAKES_SHOWN]]
        if (more := len(err.mistakes) - len(shown)) > 0:
            shown.append(f"balloond: and {more} more")
        complain("\n".join(shown))
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
