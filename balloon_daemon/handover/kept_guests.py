"""The VMs that another controller has left in a store."""

from collections.abc import Iterator
from typing import assert_never

from balloon_daemon.errors import StateFileError
from balloon_daemon.handover.keys import FdKey, StateKey, group_of, parse_key
from balloon_daemon.handover.state import MAX_STATE_BYTES, GuestState, decode_state
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import read_sealed
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId


class KeptGuest(NamedTuple):
    """A VM that another controller left.

    Attributes:
        vm: its id; if its state cannot be read, the id has a name made of the VM's number.
        serial: the serial number of its newest state.
        state: that state, or the reason why the state is unusable.
        fds: its descriptors by number.
    """

    vm: VmId
    serial: int
    state: GuestState | StateFileError
    fds: dict[int, OwnedFd]


def find_guests(store: Store) -> Iterator[KeptGuest]:
    """Takes every VM out of ``store.kept``, in the order of their numbers.

    Descriptors that belong to no VM stay in ``store.kept``.
    """
    fds: dict[int, dict[int, OwnedFd]] = {}
    states: dict[int, dict[int, OwnedFd]] = {}
    for name in list(store.kept):
        match parse_key(name):
            case FdKey(vm_number, fd_number):
                fds.setdefault(vm_number, {})[fd_number] = store.kept.pop(name)
            case StateKey(vm_number, serial):
                states.setdefault(vm_number, {})[serial] = store.kept.pop(name)
            case None:
                pass
            case unreachable:
                assert_never(unreachable)
    for number in sorted(fds.keys() | states.keys()):
        serials, vm_fds = states.get(number, {}), fds.get(number, {})
        newest = max(serials, default=0)
        state = _decode(number, serials.get(newest), vm_fds)
        for serial, fd in serials.items():
            fd.close()
            if serial != newest:
                store.remove(str(StateKey(number, serial)))
        vm = state.vm if isinstance(state, GuestState) else VmId(number, group_of(number))
        yield KeptGuest(vm, newest, state, vm_fds)


def discard(store: Store, guest: KeptGuest) -> None:
    """Closes a VM that cannot be restored: its VMM sees the connection end."""
    store.remove(str(StateKey(guest.vm.number, guest.serial)))
    for number, fd in guest.fds.items():
        store.remove(str(FdKey(guest.vm.number, number)))
        fd.close()


def _decode(
    number: int, memory: OwnedFd | None, fds: dict[int, OwnedFd]
) -> GuestState | StateFileError:
    if memory is None:
        return StateFileError("is not there")
    try:
        state = decode_state(read_sealed(memory.fileno(), MAX_STATE_BYTES))
    except (OSError, ValueError) as err:
        return StateFileError(f"cannot be read: {err}")
    except StateFileError as err:
        return err
    missing = state.jailed.fds() - fds.keys()
    if missing:
        return StateFileError(f"names {len(missing)} descriptors that were not kept")
    if state.vm.number != number:
        return StateFileError(f"is that of {state.vm.name!r}")
    return state
