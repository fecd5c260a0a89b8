"""``balloond --check``: of the VMs whose balloon is served by their own VMM, which balloond would
drive, and why not the others."""

import os
import pwd
import stat
from collections.abc import Iterator

from balloon_daemon.cli.asyncio_lean import asyncio
from balloon_daemon.cli.printing import limits_said, vm_said
from balloon_daemon.config.model import Config
from balloon_daemon.events import DomainsNotFound, Fault, VmNotDriven
from balloon_daemon.guests.look import Looked, Seen, look_at_vms
from balloon_daemon.guests.open_guest import Low
from balloon_daemon.records.words.driven import said_of_driven


def check_vms(config: Config, low: Low) -> Iterator[str]:
    """A line for each VM, in the order of their names.

    Args:
        config: the settings.
        low: gives the low descriptor numbers that are needed to start processes (``LowNumbers``).
    """
    seen = asyncio.run(look_at_vms(config, low))
    for each in sorted(seen, key=_order):
        match each:
            case Looked(vm, vm_mem_bytes, most_bytes):
                yield f"vm           {vm_said(vm)}: {limits_said(vm_mem_bytes, most_bytes)}"
            case VmNotDriven() | DomainsNotFound():
                said = said_of_driven(each)
                assert said is not None
                yield f"not driven   {said[1]}{_owner(each)}"
    if not seen:
        yield f"vm           none is at {' or '.join(config.discover.places)} now"


def _owner(seen: VmNotDriven | DomainsNotFound) -> str:
    """The owner and mode of a socket to which balloond may not connect; "" for another fault."""
    if not isinstance(seen, VmNotDriven) or seen.fault is not Fault.NO_PERMISSION:
        return ""
    try:
        status = os.stat(seen.address)
        owner = pwd.getpwuid(status.st_uid).pw_name
    except (OSError, KeyError):
        return ""
    return f"; the socket is {owner}'s, mode {stat.S_IMODE(status.st_mode):o}"


def _order(seen: Seen) -> str:
    match seen:
        case Looked(vm):
            return vm.name
        case VmNotDriven(name):
            return name
        case DomainsNotFound(uri):
            return uri
