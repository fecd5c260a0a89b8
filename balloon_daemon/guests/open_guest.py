"""Makes the drivers of all VMs whose balloon belongs to their own VMM.

Runs in the controller. With ``look.py`` the only module that knows all kinds. Each kind's modules
are imported when a configuration names the first VM of that kind: a host without such VMs loads
none of them.
"""

from collections.abc import Callable

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind
from balloon_daemon.events import Publish
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.linux.apart import LowNumbers

Low = Callable[[], LowNumbers]
"""Gives descriptor numbers to start processes with."""

NEW_LOW: Low = LowNumbers
"""Gives them in a process that starts none yet."""


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
        is_own: whether the VM of this process is attached to a device of ours; such a VM is not
            driven in another way, too.
        low: gives descriptor numbers to start processes with.
    """
    drivers: list[GuestDriver] = []
    with_socket = [vm for vm in config.vms if vm.kind not in (Kind.VHOST_USER, Kind.LIBVIRT)]
    kinds = {vm.kind for vm in with_socket} | ({Kind.QMP} if config.discover.qmp else set())
    domains = [vm for vm in config.vms if vm.kind is Kind.LIBVIRT]
    if not kinds and not domains and not config.discover.libvirt:
        return drivers
    from balloon_daemon.guests.driven.claims import Claims

    claims, main = Claims(), config.main_socket
    if kinds:
        from balloon_daemon.guests.driven.driver import DrivenVms, Wanted
        from balloon_daemon.guests.driven.kinds import control_of

        controls = {kind: control_of(kind) for kind in kinds}
        bases = main.with_name(f"{main.name}.bases")
        names = frozenset(vm.name for vm in config.vms)
        wanted = Wanted(with_socket, config.discover.qmp, controls, bases, names)
        drivers.append(DrivenVms(wanted, publish, is_own, claims))
    if domains or config.discover.libvirt:
        from balloon_daemon.guests.libvirt import driver as libvirt

        bases = main.with_name(f"{main.name}.libvirt-bases")
        of_libvirt = libvirt.Wanted(domains, config.discover.libvirt, bases)
        drivers.append(libvirt.LibvirtVms(of_libvirt, publish, is_own, low, claims))
    return drivers
