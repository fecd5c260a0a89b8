"""Makes the drivers of all VMs whose balloon belongs to their own VMM.

Runs in the controller. Only this module and ``look.py`` import the modules of all kinds of VMs,
each kind's where the configuration has VMs of that kind.
"""

from collections.abc import Callable

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind
from balloon_daemon.events import Publish
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.linux.apart import LowNumbers

Low = Callable[[], LowNumbers]
"""Makes a ``LowNumbers``, which starts a process without any VMM's descriptors."""

NEW_LOW: Low = LowNumbers
"""For a balloond without devices of its own; otherwise the template shares its ``LowNumbers``."""


def open_drivers(
    config: Config,
    publish: Publish,
    is_own: Callable[[int], bool] = lambda pid: False,
    low: Low = NEW_LOW,
) -> list[GuestDriver]:
    """The drivers of all VMs of a configuration but those on our own device.

    Args:
        config: the configuration.
        publish: takes events.
        is_own: tells by a VMM's pid whether its VM is attached to balloond's own device; such a VM
            is not driven through its VMM as well.
        low: makes a ``LowNumbers``, which starts libvirt's client and children that look paths up
            without any VMM's descriptors.
    """
    drivers: list[GuestDriver] = []
    with_socket = [vm for vm in config.vms if vm.kind not in (Kind.VHOST_USER, Kind.LIBVIRT)]
    kinds = {vm.kind for vm in with_socket} | ({Kind.QMP} if config.discover.qmp else set())
    domains = [vm for vm in config.vms if vm.kind is Kind.LIBVIRT]
    if not kinds and not domains and not config.discover.libvirt:
        return drivers
    from balloon_daemon.guests.driven.bases import bases_path
    from balloon_daemon.guests.driven.claims import Claims
    from balloon_daemon.guests.driven.lookups import LOOKUPS

    LOOKUPS.low = low()
    claims, main = Claims(), config.main_socket
    if config.dry_run:
        # By the file of bases a balloond first gives back what an earlier one has taken. A dry run
        # must not do that: it gets the name of a file that nobody writes, so that every balloon
        # that it finds counts as base and stays.
        main = main.with_name(f"{main.name}.dry-run")
    if kinds:
        from balloon_daemon.guests.driven.driver import DrivenVms, Wanted
        from balloon_daemon.guests.driven.kinds import control_of

        controls = {kind: control_of(kind) for kind in kinds}
        bases = bases_path(main, Kind.QMP)
        names = frozenset(vm.name for vm in config.vms)
        wanted = Wanted(with_socket, config.discover.qmp, controls, bases, names)
        drivers.append(DrivenVms(wanted, publish, is_own, claims))
    if domains or config.discover.libvirt:
        from balloon_daemon.guests.libvirt import driver as libvirt

        bases = bases_path(main, Kind.LIBVIRT)
        of_libvirt = libvirt.Wanted(domains, config.discover.libvirt, bases)
        drivers.append(libvirt.LibvirtVms(of_libvirt, publish, is_own, low, claims))
    return drivers
