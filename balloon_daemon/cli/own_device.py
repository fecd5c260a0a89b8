"""Prepares balloond's own device before the first VM connects: seccomp policy, user, sockets."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from balloon_daemon.cli.device_user import (
    SHARED_USER,
    default_user,
    identity_of,
)
from balloon_daemon.cli.opening import Opened, TakeHanded, open_all
from balloon_daemon.cli.printing import how_to_attach, is_for_people, show
from balloon_daemon.cli.risks import risks
from balloon_daemon.config.model import Config
from balloon_daemon.device.template import Template
from balloon_daemon.errors import ConfigError, PolicyFileError, printable
from balloon_daemon.events import (
    DevicesShareUser,
    KeeperUnreachable,
    PolicyFileWarning,
    Publish,
    SocketNotPrivate,
    TemplateLost,
    TemplateStarted,
    UserIgnored,
)
from balloon_daemon.guests.jailed.forks import Forks
from balloon_daemon.guests.jailed.listener import VhostUserGuests
from balloon_daemon.guests.vmm_files import Ask
from balloon_daemon.linux.bounded_file import why_unreadable
from balloon_daemon.linux.jail import Identity
from balloon_daemon.linux.signals import Interruptible
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.records.bus import Bus
from balloon_daemon.records.words.daemon import said_of_daemon
from balloon_daemon.seccomp.filter import CompiledFilter, compile_policy
from balloon_daemon.seccomp.policy import Dialect


class OwnDevice(NamedTuple):
    """The settings of every device, checked.

    Attributes:
        template: forks the devices.
        compiled: the seccomp policy.
        identity: the user that a device becomes; None where balloond is not root: devices keep
            its user.
        user: the name of the user that a device becomes where balloond is root.
        ignored_user: ``--user`` where it has no effect, as balloond is not root; else "".
        shares_user: True: devices run as the user ``nobody``, as other programs do, only because
            there is no user ``balloond`` and ``--user`` was not given.
    """

    template: Template
    compiled: CompiledFilter
    identity: Identity | None
    user: str
    ignored_user: str
    shares_user: bool

    def prepare(self, publish: Publish) -> None:
        """Gives the template the compiled seccomp policy, and has the template's end and restart
        published."""
        self.template.prepare(
            self.compiled.bpf,
            lambda why: publish(TemplateLost(why)),
            lambda what: publish(TemplateStarted(what)),
        )

    def open_vms(
        self,
        config: Config,
        bus: Bus,
        undo: contextlib.ExitStack,
        ask: Ask,
        handed: TakeHanded,
        *,
        keep_fds: bool,
    ) -> VhostUserGuests:
        """Opens the vhost-user sockets and the store of VMs' descriptors (``opening``), and
        publishes what an operator should know.

        Args:
            config: the settings.
            bus: publishes events.
            undo: gets the steps that undo the opening.
            ask: has a child look at VMMs' processes.
            handed: gives sockets that systemd hands over.
            keep_fds: True: use a keeper process where systemd has no store (``--keep-fds``).

        Raises:
            ConfigError: the store or the socket for VMs without a name cannot be opened.
        """
        opened = open_all(config, undo, handed, keep_fds=keep_fds)
        self.template.reserve_low_numbers()
        for risk in risks(config):
            bus.publish(SocketNotPrivate(risk))
        for failed in opened.failed:
            bus.publish(failed)
        if opened.lost:
            bus.publish(KeeperUnreachable(opened.lost))
        self._announce(bus.publish)
        bus.drain()
        _show_how_to_attach(config, opened)
        forks = Forks(self.template, lambda: self._say_shared(bus.publish))
        return VhostUserGuests(
            config, self.identity, forks, opened.sockets, opened.store, bus.publish, ask
        )

    def _announce(self, publish: Publish) -> None:
        """Publishes what the operator should know of the jail from the start."""
        if self.ignored_user:
            publish(UserIgnored(self.ignored_user))
        for warning in self.compiled.warnings:
            # Log only the first line of a warning: it has the place and the problem, with
            # unprintable characters escaped. The other lines quote the policy file.
            publish(PolicyFileWarning(str(warning).splitlines()[0]))

    def _say_shared(self, publish: Publish) -> None:
        """Publishes that devices share their user with other programs; called before the first
        device is forked, because until then no device exists that could be harmed."""
        if self.shares_user:
            publish(DevicesShareUser(SHARED_USER))

    def warnings(self) -> Iterator[str]:
        """The warnings that ``--check`` prints before it tries a device."""
        for warning in self.compiled.warnings:
            yield warning.with_mark("warning: ")
        if self.ignored_user:
            _, said = said_of_daemon(UserIgnored(self.ignored_user))
            yield f"warning: {printable(said)}"

    def shares_user_said(self) -> str:
        """The warning that devices share their user with other programs; "" where they do not."""
        return said_of_daemon(DevicesShareUser(SHARED_USER))[1] if self.shares_user else ""


def prepare_device(config: Config, args: argparse.Namespace, template: Template) -> OwnDevice:
    """Compiles the seccomp policy file and chooses the devices' user.

    Args:
        config: the settings.
        args: the flags.
        template: forks the devices.

    Raises:
        ConfigError: the policy file cannot be read, or the user cannot be a device's.
        PolicyFileError: the policy file has mistakes.
    """
    compiled = _compile(config.policy_file, Dialect(args.policy_dialect))
    user = default_user() if args.user is None else args.user
    # Devices of a balloond that is not root keep its user, whatever --user says.
    ignored = "" if args.user is None or os.geteuid() == 0 else args.user
    identity = identity_of(user)
    shared = identity is not None and args.user is None and user == SHARED_USER
    return OwnDevice(template, compiled, identity, user, ignored, shared)


def _show_how_to_attach(config: Config, opened: Opened) -> None:
    """Prints how to attach a VM, where a person may read it and no VM was taken over."""
    taken_over = any("." in name for name in opened.store.kept)
    if opened.sockets and not taken_over and is_for_people(sys.stdout.fileno()):
        # Interruptible: a signal must end balloond even while the print blocks. A stopped terminal
        # (Ctrl-S) or a full pipe can block it for ever.
        with Interruptible():
            show(how_to_attach(config))


def _compile(path: Path, dialect: Dialect) -> CompiledFilter:
    try:
        return compile_policy(path, dialect=dialect)
    except PolicyFileError:
        raise
    except OSError as err:
        raise ConfigError(f"policy file {printable(str(path))}: {why_unreadable(err)}") from err
