"""``balloond --check``: which VMs balloond would drive through their own VMM's balloon, and why it
would not drive the others."""

import os
import pwd
import stat
from collections.abc import Iterator

from balloon_daemon.cli.asyncio_lean import asyncio
from balloon_daemon.cli.printing import limits_said, vm_said
from balloon_daemon.config.model import Config
from balloon_daemon.events import (
    DirectoryNotListed,
    DomainsNotFound,
    Fault,
    ProcessNotSeen,
    SocketIgnored,
    VmNotDriven,
)
from balloon_daemon.guests.look import Looked, Seen, look_at_vms
from balloon_daemon.guests.open_guest import Low
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.listing import name_order
from balloon_daemon.records.words.driven import said_of_driven
from balloon_daemon.sizing.vm_settings import Profile
from balloon_daemon.units import VmId, format_size

_LACKS = {
    Ability.STATS: "its guest's statistics are not to be had",
    Ability.DEFLATE_ON_OOM: "not known to deflate on OOM",
    Ability.DISK_READS: "its disk reads are not to be seen",
}
"""For each ability, the remark on a VM of the profile careful or adaptive that lacks it."""


def check_vms(config: Config, low: Low) -> Iterator[str]:
    """A line for each VM, in the order of their names.

    Args:
        config: the settings.
        low: gives the low descriptor numbers that are needed to start processes (``LowNumbers``).
    """
    seen = asyncio.run(look_at_vms(config, low))
    for each in sorted(seen, key=lambda each: name_order(_name(each))):
        match each:
            case Looked(vm, vm_mem_bytes, most_bytes):
                limits = limits_said(vm_mem_bytes, most_bytes)
                yield f"vm           {vm_said(vm)}: {limits}{_remarks(each)}"
                if each.closed_pid:
                    said = said_of_driven(ProcessNotSeen(VmId(0, vm.name), each.closed_pid))
                    assert said is not None
                    yield f"warning      {vm.name}: {said[1]}"
            case VmNotDriven() | DomainsNotFound() | SocketIgnored() | DirectoryNotListed():
                said = said_of_driven(each)
                assert said is not None
                yield f"not driven   {said[1]}{_owner(each)}"
    if not seen:
        yield f"vm           none is at {' or '.join(config.discover.places)} now"


def _remarks(vm: Looked) -> str:
    """Remarks on a VM: on a balloon that it had before balloond, on its guest's state, and on
    abilities that it lacks for the guest's protection; "" where there are none."""
    said = []
    if vm.base_bytes:
        said.append(f"a balloon of {format_size(vm.base_bytes)} is there already, and stays")
    if vm.state is GuestState.NO_DRIVER:
        said.append("no balloon driver listens in its guest now")
    if vm.state is GuestState.PAUSED:
        said.append("stands still now")
    if vm.vm.settings.profile is not Profile.SEED:
        said += [words for ability, words in _LACKS.items() if ability not in vm.can]
    return f"; {', '.join(said)}" if said else ""


def _owner(seen: Seen) -> str:
    """The owner and mode of a socket to which balloond may not connect; "" for another fault."""
    if not isinstance(seen, VmNotDriven) or seen.fault is not Fault.NO_PERMISSION:
        return ""
    try:
        status = os.stat(seen.address)
        owner = pwd.getpwuid(status.st_uid).pw_name
    except (OSError, KeyError):
        return ""
    return f"; the socket is {owner}'s, mode {stat.S_IMODE(status.st_mode):o}"


def _name(seen: Seen) -> str:
    match seen:
        case Looked(vm):
            return vm.name
        case VmNotDriven(name):
            return name
        case DomainsNotFound(uri):
            return uri
        case SocketIgnored(path) | DirectoryNotListed(path):
            return path
